"""Reference: a model x its test images -> what batches are compared with.

Reads the model folder, its evaluation and embeddings. Writes ``references/<key>/``,
once for a model: REFERENCE, test images with what the model said of them and how near
training images lie.
"""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from tl_pipeline.data.splits import TEST
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.pipeline.compared_images import some, vectors
from tl_pipeline.pipeline.stage import Unit
from tl_pipeline.registry import model_folder, nearest
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact
from tl_pipeline.store.keys import KeyDocument, key_document
from tl_pipeline.store.tables import PREDICTIONS, REFERENCE

# Bump when the same model must give other rows.
VERSION = 1


@dataclass(frozen=True)
class Reference(Unit[Artifact]):
    """Test images of the model ``name``, whose key is ``model``, under ``encoders``.

    There are none where its evaluation or their embeddings are gone.
    """

    stage: ClassVar[str] = "reference"
    kind: ClassVar[str] = "references"
    label: ClassVar[str] = "reference"

    name: str
    model: str
    encoders: tuple[Encoder, ...]

    @property
    def subject(self) -> str:
        return self.name

    def depends_on(self) -> KeyDocument:
        return key_document("reference", VERSION, {}, {"model": self.model})

    def missing(self) -> str:
        return f"how near test images of {self.name} lie: {super().missing()}"

    def found(self, made: Artifact) -> str:
        images = tables.count(REFERENCE, self.at.store.path(made))
        return f"{images:,} test images to compare with"

    def output(self, made: Artifact | None) -> Artifact:
        return made or Artifact(self.kind, self.key, self.key)

    def write(self, folder: Path) -> str:
        tables.write(REFERENCE, self._rows(), folder)
        return self.key

    def _rows(self) -> pa.Table:
        store = self.at.store
        place = store.path(Artifact("models", self.model, self.model))
        about = json.loads((place / model_folder.MODEL).read_text())
        made = store.find("evaluations", about.get("evaluation") or "")
        nothing = REFERENCE.schema.empty_table()
        if made is None:
            return nothing
        names = ["image_id", "split", "predicted", "accepted"]
        scored = tables.read(PREDICTIONS, store.path(made), names)
        rows = some(scored.filter(pc.equal(scored["split"], TEST)))
        there = vectors(self.at.store, self.encoders, rows["image_id"].to_pylist())
        if there is None or not rows.num_rows:
            return nothing
        encoder = self.encoders[0].key
        training = nearest.training_images(
            store, self.model, about.get("manifest"), encoder
        )
        like = nearest.nearest(store, there, training)
        near = pa.array(like.similarities, pa.float32())
        return rows.drop_columns("split").append_column("nearest_similarity", near)

"""Reference: a model x its test images -> what batches are compared with.

Reads the model folder, its evaluation and embeddings. Writes ``references/<key>/``,
once for a model, and again where its test images went or came back: REFERENCE, test
images with what the model said of them and how near training images lie.
"""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from tl_pipeline.data.splits import TEST
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.pipeline.compared_images import some, vectors
from tl_pipeline.pipeline.stage import Unit
from tl_pipeline.registry import model_folder, nearest
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.keys import KeyDocument, digest, key_document
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

    @cached_property
    def tested(self) -> pa.Table:
        """What the model said of its test images; none where an embedding is gone."""
        store = self.at.store
        made = store.find("evaluations", self._about.get("evaluation") or "")
        if made is None:
            return REFERENCE.schema.empty_table()
        names = ["image_id", "split", "predicted", "accepted"]
        scored = tables.read(PREDICTIONS, store.path(made), names)
        rows = some(scored.filter(pc.equal(scored["split"], TEST)))
        ids = set(rows["image_id"].to_pylist())
        folders = (EmbeddingFolder(store, encoder.key) for encoder in self.encoders)
        whole = all(ids <= folder.embedded() for folder in folders)
        return rows.drop_columns("split") if whole else rows[:0]

    @cached_property
    def _about(self) -> dict[str, Any]:
        place = self.at.store.path(Artifact("models", self.model, self.model))
        return json.loads((place / model_folder.MODEL).read_text())

    def depends_on(self) -> KeyDocument:
        images = digest(self.tested["image_id"].to_pylist())
        inputs = {"model": self.model, "images": images}
        return key_document("reference", VERSION, {}, inputs)

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
        store, rows = self.at.store, self.tested
        there = vectors(store, self.encoders, rows["image_id"].to_pylist())
        if there is None or not rows.num_rows:
            return REFERENCE.schema.empty_table()
        encoder = self.encoders[0].key
        training = nearest.training_images(
            store, self.model, self._about.get("manifest"), encoder
        )
        like = nearest.nearest(store, there, training)
        near = pa.array(like.similarities, pa.float32())
        return rows.append_column("nearest_similarity", near)

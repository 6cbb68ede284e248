"""Predict: a registered model x images that it has not predicted yet -> predictions.

Reads the manifest, the embeddings and the model folder. Writes ``predictions/<key>/``:
BATCH_PREDICTIONS. An image is predicted once by each model, whatever runs how often.

A batch an hour would leave thousands of small tables in a year. So a new one takes in
the earlier tables of the model that are small, or no larger than itself: there are as
many as the logarithm of their number, and a row is written as often. What was taken in
stays for the records that name it, until ``tl store gc`` drops those.
"""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.errors import DamagedArtifact
from tl_pipeline.evaluation import drift
from tl_pipeline.pipeline.manifest import Manifest
from tl_pipeline.pipeline.stage import Unit
from tl_pipeline.registry import nearest
from tl_pipeline.runs.planning import Outcome, Step
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.keys import KeyDocument, digest, key_document
from tl_pipeline.store.tables import BATCH_PREDICTIONS, REFERENCE

if TYPE_CHECKING:
    from tl_pipeline.registry.model import Model
    from tl_pipeline.registry.prediction import Decided

# Bump when the same inputs must give other rows.
VERSION = 1
TOP = 5  # labels whose probabilities are kept
_VALUES = 1 << 24  # float32 of one encoder in memory at a time
# Tables of so few rows are always taken in, and those of so many never.
_SMALL, _LARGE = 4_096, 1_048_576


class Predicted(NamedTuple):
    """The keys of all predictions of the dataset by the model; the ids just made."""

    keys: tuple[str, ...]
    new: Sequence[str]


@dataclass(frozen=True)
class Predict(Unit[Predicted]):
    """What a ``version`` of the model ``name`` says of the images of ``manifest``.

    Its key is ``model``; the images are embedded under its ``encoders``. ``before`` are
    the keys of earlier predictions of the dataset by it, the oldest first.
    ``reference``, which is the model's, says how near test images lie; without it no
    novelty is told.
    """

    stage: ClassVar[str] = "predict"
    kind: ClassVar[str] = "predictions"
    label: ClassVar[str] = "predictions"

    manifest: Manifest
    name: str
    version: int
    model: str
    encoders: tuple[Encoder, ...]
    before: tuple[str, ...]
    reference: Artifact | None = None

    @property
    def subject(self) -> str:
        return f"{self.manifest.dataset} by {self.name} version {self.version}"

    def depends_on(self) -> KeyDocument:
        params = {"dataset": self.manifest.dataset, "version": self.version}
        inputs = {
            "model": self.model,
            "images": tables.rows_fingerprint(self._new),
            "predictions before": digest([made.key for made in self._taken_in]),
        }
        return key_document("predict", VERSION, params, inputs)

    def look(self) -> Outcome[Predicted]:
        """Nothing is to be done where every image was predicted."""
        if self._new.num_rows:
            return super().look()
        started = time.perf_counter()
        images = self._usable.num_rows
        step = Step(
            stage=self.stage,
            subject=self.subject,
            cached=True,
            reason=f"all {images:,} images are predicted" if images else "no images",
            keys={},
            seconds=time.perf_counter() - started,
        )
        kept = tuple(made.key for made in self._earlier)
        return Outcome(Predicted(kept, ()), (step,))

    def missing(self) -> str:
        new, images = self._new.num_rows, self._usable.num_rows
        return f"{new:,} of {images:,} images are not predicted yet"

    def found(self, made: Artifact) -> str:
        return "predicted already"

    def units(self, made: Artifact | None) -> int:
        """The images to predict."""
        return 0 if made else self._new.num_rows

    def output(self, made: Artifact | None) -> Predicted:
        others = self._earlier[: len(self._earlier) - len(self._taken_in)]
        keys = (*(one.key for one in others), self.key)
        return Predicted(keys, self._new["image_id"].to_pylist())

    def write(self, folder: Path) -> str:
        from tl_pipeline.registry.model import open_model  # noqa: PLC0415 - seconds

        store = self.at.store
        made = Artifact("models", self.model, self.model)
        model = open_model(store.path(made), store)
        known = model.about.get("manifest")
        encoder = self.encoders[0].key
        training = nearest.training_images(store, self.model, known, encoder)
        parts = [
            tables.read(BATCH_PREDICTIONS, store.path(one)) for one in self._taken_in
        ]
        step = self._step(len(model.classes))
        for start in range(0, self._new.num_rows, step):
            rows = self._new.slice(start, step)
            parts.append(self._predicted(model, rows, training))
        rows = pa.concat_tables(parts).sort_by("image_id")
        tables.write(BATCH_PREDICTIONS, rows, folder)
        return self.key

    def _predicted(
        self, model: "Model", rows: pa.Table, training: Sequence[str]
    ) -> pa.Table:
        """BATCH_PREDICTIONS of the images ``rows``, which are sorted."""
        from tl_pipeline.registry import prediction  # noqa: PLC0415 - torch

        ids = rows["image_id"].to_pylist()
        vectors = self._vectors(ids)
        raw = prediction.probabilities(model, vectors, ids)
        found = prediction.decide(model, raw)
        like = nearest.nearest(self.at.store, vectors, training)
        about = {
            "dataset": self.manifest.dataset,
            "name": self.name,
            "version": self.version,
            "model": self.model,
            "predicted_at": datetime.now(UTC),
        }
        columns = {
            **{name: pa.repeat(pa.scalar(v), len(ids)) for name, v in about.items()},
            "image_id": rows["image_id"],
            "uri": rows["uri"],
            **_decided(found, model.classes),
            "nearest_id": pa.array(like.ids, pa.string()),
            "nearest_similarity": pa.array(like.similarities, pa.float32()),
            "novelty": pa.array(self._novelty(like.similarities), pa.float32()),
        }
        names = BATCH_PREDICTIONS.schema.names
        return pa.table({name: columns[name] for name in names}).cast(
            BATCH_PREDICTIONS.schema
        )

    def _novelty(self, similarities: Sequence[float | None]) -> Sequence[float | None]:
        """Of images with these ``similarities``; None where nothing can be said."""
        if self.reference is None or None in similarities:
            return [None] * len(similarities)
        folder = self.at.store.path(self.reference)
        usual = tables.read(REFERENCE, folder)["nearest_similarity"].drop_null()
        if not len(usual):
            return [None] * len(similarities)
        found = drift.novelty(np.array(similarities), usual.to_numpy())
        return found.tolist()

    def _vectors(self, ids: Sequence[str]) -> Mapping[str, np.ndarray]:
        """The embeddings of ``ids``, (n, width) by encoder key.

        Raises:
            DamagedArtifact: some of them are gone since they were embedded.
        """
        vectors: dict[str, np.ndarray] = {}
        for encoder in self.encoders:
            found = EmbeddingFolder(self.at.store, encoder.key).load(ids)
            if found.image_ids != list(ids):
                raise DamagedArtifact(
                    f"embeddings of {len(ids) - len(found.image_ids):,} images are "
                    "gone since they were made; run again"
                )
            vectors[encoder.key] = found.vectors
        return vectors

    def _step(self, classes: int) -> int:
        """How many images are predicted at a time."""
        one = self._new["image_id"][:1].to_pylist()
        widths = [block.shape[1] for block in self._vectors(one).values()]
        return max(1, _VALUES // max(classes, *widths))

    @cached_property
    def _earlier(self) -> list[Artifact]:
        """The earlier predictions that are still whole."""
        found = (self.at.store.find(self.kind, key) for key in self.before)
        return [made for made in found if made]

    @cached_property
    def _new(self) -> pa.Table:
        """``image_id`` and ``uri`` of the images to predict: usable, not predicted."""
        done = set[str]()
        for made in self._earlier:
            folder = self.at.store.path(made)
            ids = tables.read(BATCH_PREDICTIONS, folder, ["image_id"])
            done.update(ids["image_id"].to_pylist())
        ids = self._usable["image_id"]
        here = pc.is_in(ids, pa.array(list(done), pa.string()))
        return self._usable.filter(pc.invert(here))

    @cached_property
    def _usable(self) -> pa.Table:
        """``image_id`` and ``uri`` of the images that no encoder refused."""
        refused = set[str]()
        for encoder in self.encoders:
            refused |= EmbeddingFolder(self.at.store, encoder.key).refused().keys()
        images = self.manifest.images
        here = pc.is_in(images["image_id"], pa.array(list(refused), pa.string()))
        return images.filter(pc.invert(here))

    @cached_property
    def _taken_in(self) -> list[Artifact]:
        """The latest of the earlier predictions that become one with the new."""
        size, taken = self._new.num_rows, list[Artifact]()
        for made in reversed(self._earlier):
            rows = tables.count(BATCH_PREDICTIONS, self.at.store.path(made))
            if rows > min(max(size, _SMALL), _LARGE):
                break
            size += rows
            taken.insert(0, made)
        return taken


def _decided(found: "Decided", classes: Sequence[str]) -> dict[str, pa.Array]:
    """The columns of BATCH_PREDICTIONS that a model decides."""
    names = pa.array(classes, pa.string())
    images, most = found.order.shape[0], min(TOP, len(classes))
    first = found.order[:, :most]
    values = np.take_along_axis(found.probabilities, first, axis=1)
    ends = pa.array(np.arange(images + 1, dtype=np.int32) * most)
    top = pa.StructArray.from_arrays(
        [names.take(pa.array(first.ravel())), pa.array(values.ravel(), pa.float32())],
        ["label", "probability"],
    )
    nothing = [None] * images
    sets = found.labels(classes)
    accepted = nothing if found.accepted is None else found.accepted.tolist()
    return {
        "label": names.take(pa.array(first[:, 0])),
        "confidence": pa.array(values[:, 0], pa.float32()),
        "top": pa.ListArray.from_arrays(ends, top),
        "labels": pa.array(nothing if sets is None else sets, pa.list_(pa.string())),
        "accepted": pa.array(accepted, pa.bool_()),
    }

"""Shuffle: a manifest drawn by group -> the same, drawn image by image: a control.

Reads the manifest. Writes ``manifests/<key>/`` with the training and validation images
dealt anew, one by one, in the same shares; test is untouched. How much better
validation gets by that is the leakage that the groups prevent.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from tl_pipeline.data import splits
from tl_pipeline.pipeline.manifest import Manifest
from tl_pipeline.pipeline.stage import Unit
from tl_pipeline.runs.planning import ONE_BY_ONE, Outcome
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact
from tl_pipeline.store.keys import KeyDocument, key_document
from tl_pipeline.store.tables import MANIFEST

# Bump when the same inputs must give other rows.
VERSION = 1


@dataclass(frozen=True)
class Shuffle(Unit[Manifest]):
    """The images of ``manifest``, drawn one by one with ``seed``."""

    stage: ClassVar[str] = "shuffle"
    kind: ClassVar[str] = "manifests"
    label: ClassVar[str] = "manifest"

    manifest: Manifest
    seed: int

    @property
    def subject(self) -> str:
        return self.manifest.dataset

    def depends_on(self) -> KeyDocument:
        inputs = {"manifest": self.manifest.artifact.fingerprint}
        return key_document("shuffle", VERSION, {"seed": self.seed}, inputs)

    def plan(self) -> Outcome[Manifest]:
        """Shuffle into the overlay of the store: it is cheap enough."""
        return self.run()

    def found(self, made: Artifact) -> str:
        return self.missing()

    def missing(self) -> str:
        return "a control for leakage: validation drawn image by image"

    def units(self, made: Artifact | None) -> int:
        """See ``Unit``: nothing that is worth counting."""
        return 0

    def output(self, made: Artifact | None) -> Manifest:
        made = made or Artifact(self.kind, self.key, self.key)
        return Manifest(self.at.store, made, self.manifest.dataset, ONE_BY_ONE)

    def write(self, folder: Path) -> str:
        rows = tables.read(MANIFEST, self.at.store.path(self.manifest.artifact))
        sides = rows["split"].to_numpy(zero_copy_only=False).astype(object)
        shuffled = np.flatnonzero(np.isin(sides, (splits.TRAIN, splits.VALIDATION)))
        held = int((sides == splits.VALIDATION).sum())
        ids = rows["image_id"].to_pylist()
        draws = [splits.draw(ids[i], self.seed) for i in shuffled]
        order = np.argsort(draws, kind="stable")
        sides[shuffled] = splits.TRAIN
        sides[shuffled[order[:held]]] = splits.VALIDATION
        place = rows.schema.get_field_index("split")
        field = MANIFEST.schema.field("split")
        rows = rows.set_column(place, field, pa.array(sides))
        tables.write(MANIFEST, rows, folder)
        return tables.content(rows)

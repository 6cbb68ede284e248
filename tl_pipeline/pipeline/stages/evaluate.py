"""Evaluate: a trained head x held-out images -> metrics, predictions.

Reads the manifest, the embeddings, and what ``train`` chose.
Writes ``evaluations/<key>/``: METRICS, CLASS_SCORES, PREDICTIONS, ``chosen.json`` (key
of the head, its classes) and ``calibration.json`` (its operating point). That is
learned from what the chosen configuration said of images that it did not learn from;
then the fitted head meets test, once.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from tl_pipeline import heads
from tl_pipeline.config.specs import HeadSpec, Method, SearchSpec
from tl_pipeline.data.splits import TEST
from tl_pipeline.encoders import concat
from tl_pipeline.encoders.concat import AnyEncoder
from tl_pipeline.errors import DatasetError
from tl_pipeline.evaluation import scored_rows
from tl_pipeline.evaluation.averaging import Predictions
from tl_pipeline.evaluation.costs import Costs
from tl_pipeline.pipeline import choices
from tl_pipeline.pipeline.choices import Roles
from tl_pipeline.pipeline.manifest import EncodedImages, Manifest, Rows
from tl_pipeline.pipeline.stage import Unit
from tl_pipeline.store.artifacts import Artifact
from tl_pipeline.store.keys import KeyDocument, digest, key_document

if TYPE_CHECKING:
    from tl_pipeline.heads.fitted import FittedHead

# Bump when the same inputs must give other rows.
VERSION = 7
CHOSEN = "chosen.json"
# Of the images that the head learned from, so many tell how well it knows them.
_LEARNED = 10_000


@dataclass(frozen=True)
class Evaluate(Unit[Artifact]):
    """What ``trained`` chose, on images that it did not learn from.

    Raises:
        DatasetError: no test image could be embedded.
    """

    stage: ClassVar[str] = "evaluate"
    kind: ClassVar[str] = "evaluations"
    label: ClassVar[str] = "evaluation"

    manifest: Manifest
    embeddings: Artifact
    trained: Artifact
    encoder: AnyEncoder
    head: HeadSpec
    search: SearchSpec
    seed: int
    calibration: Method
    error: float
    costs: Costs = field(default_factory=dict)

    @property
    def subject(self) -> str:
        own = "finetuned" in self.head.params  # trained with the network
        name = "own head" if own else self.head.name
        return f"{name} on {self.manifest.named(self.encoder.label)}"

    def depends_on(self) -> KeyDocument:
        held, test = self._roles.scored, self._images.held_out(TEST)
        control = self.encoder.control or heads.HEADS[self.head.name].control
        params: dict[str, Any] = {
            "encoder": self.manifest.named(self.encoder.label),
            "family": self.head.name,
            "control": control or bool(self.manifest.control),
            "seed": self.seed,
            "calibration": self.calibration,
            "error": self.error,
            **({"costs": self.costs} if self.costs else {}),
        }
        inputs = {
            "encoder": self.embeddings.key,
            "heads": self.trained.fingerprint,
            "held-out rows": held.fingerprint,
            "test rows": test.fingerprint,
        }
        groups = [rows.groups_fingerprint for rows in (held, test)]
        if any(groups):  # they count together in all intervals
            inputs["held-out groups"] = digest(groups)
        return key_document("evaluate", VERSION, params, inputs)

    def found(self, made: Artifact) -> str:
        return "scored already"

    def output(self, made: Artifact | None) -> Artifact:
        return Artifact(self.kind, self.key, self.key)

    def write(self, folder: Path) -> str:
        """Learn the operating point, look at test once."""
        # scikit-learn and scipy are imported only when there is something to score
        from tl_pipeline.evaluation import cross_fitting, scoring  # noqa: PLC0415
        from tl_pipeline.heads import fitted  # noqa: PLC0415

        store = self.at.store
        final = choices.fitted(store, self.trained)
        held = choices.held_out(store, self.trained)
        head = fitted.load(store.path(final))
        tested, units = self._said(head, self._tested)
        learned = self._roles.all
        learned = self._said(head, learned.part(learned.ids[:_LEARNED]))
        found = scoring.score(
            self._roles.split,
            cross_fitting.fixed(self.calibration, held, self._rows(held).groups),
            tested,
            units,
            self.calibration,
            self.error,
            self.seed,
            learned,
            costs=self.costs,
        )
        about = {
            "encoder_key": self.embeddings.key,
            "encoder": self.manifest.named(self.encoder.label),
            "family": self.head.name,
            "head": choices.label_of(store, self.trained),
        }
        scored_rows.write(self.key, about, found, self.manifest.groups_of, folder)
        told = {"head": final.key, "classes": tested.classes}
        (folder / CHOSEN).write_text(json.dumps(told, ensure_ascii=False))
        return self.key

    @cached_property
    def _images(self) -> EncodedImages:
        return self.manifest.encoded(self.embeddings)

    @cached_property
    def _roles(self) -> Roles:
        return choices.roles(self._images, self.search)

    def _rows(self, predictions: Predictions) -> Rows:
        return self.manifest.rows_of(predictions.image_ids.to_pylist())

    @property
    def _tested(self) -> Rows:
        rows = self._images.held_out(TEST)
        if not len(rows):
            raise DatasetError(
                f"{self.manifest.dataset}: no test image could be embedded; see the "
                "quarantine table"
            )
        return rows

    def _said(self, head: "FittedHead", rows: Rows) -> tuple[Predictions, np.ndarray]:
        """What ``head`` says of ``rows``, and what each of them belongs to, (n,)."""
        found = concat.load(self.at.store, self.embeddings, rows.ids)
        rows = rows.aligned(found.image_ids)
        ids, labels = (pa.array(v) for v in (rows.ids, rows.labels.tolist()))
        said = Predictions(ids, labels, head.classes, head.predict_proba(found))
        return said, rows.groups

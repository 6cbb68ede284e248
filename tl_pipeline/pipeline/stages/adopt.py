"""Adopt: the head that was trained with a network -> a candidate like any other.

Reads what finetune wrote, and the embeddings of validation images under the network
that never saw them. Writes ``searches/<key>/`` as train does, with one configuration,
and ``heads/<key>/``. Nothing is fitted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa

from tl_pipeline import heads
from tl_pipeline.data.splits import VALIDATION
from tl_pipeline.encoders import concat
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.errors import DatasetError
from tl_pipeline.evaluation.averaging import Predictions
from tl_pipeline.pipeline import choices
from tl_pipeline.pipeline.finetuned import OWN_HEAD, own_head
from tl_pipeline.pipeline.manifest import Manifest, Rows
from tl_pipeline.pipeline.stage import Unit
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact
from tl_pipeline.store.keys import KeyDocument, digest, key_document
from tl_pipeline.store.tables import HELD_OUT, SEARCH

if TYPE_CHECKING:
    from tl_pipeline.heads.fitted import FittedHead

# Bump when the same inputs must give another head.
VERSION = 1


@dataclass(frozen=True)
class Adopt(Unit[Artifact]):
    """The head of the network ``final``, judged by that of ``judged``.

    Both are keys of what finetune made; they are one where nothing was refitted.
    ``embeddings`` are those of the judged network, ``encoder`` is the final one.

    Raises:
        DatasetError: no validation image could be embedded.
    """

    stage: ClassVar[str] = "adopt"
    kind: ClassVar[str] = "searches"
    label: ClassVar[str] = "search"

    manifest: Manifest
    judged: Artifact
    embeddings: Artifact
    final: Artifact
    encoder: Encoder
    seed: int

    @property
    def subject(self) -> str:
        return f"own head on {self.encoder.label}"

    def depends_on(self) -> KeyDocument:
        inputs = {
            "judged": self.judged.key,
            "encoder": self.embeddings.key,
            "final": self.final.key,
            "final encoder": self.encoder.key,
            "validation rows": self._held.fingerprint,
        }
        return key_document("adopt", VERSION, {"seed": self.seed}, inputs)

    def found(self, made: Artifact) -> str:
        return "trained with the network"

    def missing(self) -> str:
        return f"trained with the network: {super().missing()}"

    def keys(self, made: Artifact) -> Mapping[str, str]:
        """The fitted head, which is used as it is."""
        return {"fitted": choices.fitted(self.at.store, made).key}

    def output(self, made: Artifact | None) -> Artifact:
        return Artifact(self.kind, self.key, self.key)

    def write(self, folder: Path) -> str:
        """Ask the judged head about validation; keep the final one."""
        if not len(self._held):
            raise DatasetError(
                f"{self.manifest.dataset}: no validation image could be embedded, and "
                "a network that was fine-tuned is judged by them; see the quarantine "
                "table"
            )
        store = self.at.store
        found = concat.load(store, self.embeddings, self._held.ids)
        rows = self._held.aligned(found.image_ids)
        judge = own_head(store, self.judged, self.embeddings.key, self.seed)
        said = Predictions(
            pa.array(rows.ids),
            pa.array(rows.labels.tolist()),
            judge.classes,
            judge.predict_proba(found),
        )
        held = {"image_id": said.image_ids, "label": said.labels}
        held["probabilities"] = said.column()
        tables.write(HELD_OUT, pa.table(held), folder)
        tables.write(SEARCH, tables.from_rows(SEARCH, [self._row(said)]), folder)
        final = own_head(store, self.final, self.encoder.key, self.seed)
        inputs = {"encoder": self.encoder.key, "finetuned": self.final.key}
        document = key_document("adopt", VERSION, {}, inputs)
        head = store.build("heads", document, partial(_save, final, document))
        choices.write(folder, OWN_HEAD, final.classes, head.key)
        return self.key

    @cached_property
    def _held(self) -> Rows:
        return self.manifest.encoded(self.embeddings).held_out(VALIDATION)

    def _row(self, said: Predictions) -> dict[str, object]:
        from tl_pipeline.heads.cross_validation import FoldPredictions  # noqa: PLC0415

        rows = np.arange(len(said.image_ids))
        classes = np.array(said.classes)
        score = FoldPredictions(
            0, rows, said.names(), classes, said.probabilities
        ).score()
        return {
            "search": self.key,
            "encoder": self.encoder.label,
            "family": OWN_HEAD.name,
            "head": heads.label(OWN_HEAD),
            "round": 0,
            "images": len(rows),
            "folds": 1,
            "accuracy": score.accuracy,
            "log_loss": score.log_loss,
            "chosen": True,
            "trial": self.key,
        }


def _save(head: "FittedHead", document: KeyDocument, folder: Path) -> str:
    from tl_pipeline.heads import fitted  # noqa: PLC0415 - as above

    fitted.save(head, folder)
    return digest(document)

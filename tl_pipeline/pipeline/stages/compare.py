"""Compare: new images of a batch x test images of its model -> whether they drifted.

Reads what ``reference`` and ``predict`` wrote, and the embeddings. Writes nothing: the
record of the batch holds what is found.
"""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.evaluation import drift
from tl_pipeline.evaluation.drift import Drift, Sample
from tl_pipeline.pipeline.compared_images import some, vectors
from tl_pipeline.runs.planning import Outcome, Step, Workspace
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact
from tl_pipeline.store.tables import BATCH_PREDICTIONS, REFERENCE

_SEED = 0


@dataclass(frozen=True)
class Compare:
    """Whether the images ``new``, just predicted, are like those of ``reference``.

    They stand in the ``predictions`` of that key. Both are embedded under ``encoders``.
    Nothing is compared where either side has fewer than ``drift.FEWEST`` images.
    """

    at: Workspace
    dataset: DatasetSpec
    encoders: tuple[Encoder, ...]
    reference: Artifact
    predictions: str | None
    new: Sequence[str]

    @property
    def title(self) -> str:
        """See ``Stage``."""
        return f"drift {self.dataset.name}"

    def plan(self) -> Outcome[Sequence[Drift]]:
        """See ``Stage``."""
        new = len(self.new)
        few = new < drift.FEWEST
        reason = f"{new:,} new images are compared with test images of the model"
        if few:
            reason = f"{new:,} new images are too few to tell, of {drift.FEWEST}"
        step = Step("drift", self.dataset.name, few, reason, {}, 0 if few else new)
        return Outcome((), (step,))

    def run(self) -> Outcome[Sequence[Drift]]:
        """See ``Stage``."""
        started, planned = time.perf_counter(), self.plan()
        if planned.step.cached:
            return planned
        found, said = self._compared()
        ran = planned.ran(time.perf_counter() - started, reason=said)
        return Outcome(found, ran.steps)

    def _compared(self) -> tuple[Sequence[Drift], str]:
        store = self.at.store
        usual = tables.read(REFERENCE, store.path(self.reference))
        if not usual.num_rows:
            return (), "test images of the model, or their embeddings, are gone"
        if usual.num_rows < drift.FEWEST:
            return (), f"{usual.num_rows:,} test images are too few to compare with"
        made = Artifact("predictions", str(self.predictions), "")
        names = ["image_id", "label", "accepted", "nearest_similarity"]
        new = tables.read(BATCH_PREDICTIONS, store.path(made), names)
        known = pa.array(self.new, pa.string())
        new = some(new.filter(pc.is_in(new["image_id"], known)))
        new = new.rename_columns({"label": "predicted"})
        both = self._sample(new), self._sample(usual)
        if both[0] is None or both[1] is None:
            return (), "embeddings of test images are gone: nothing to compare with"
        found = drift.compare(both[0], both[1], self.dataset.drift.error, _SEED)
        tripped = [one.statistic for one in found if one.tripped]
        told = f"drift of {', '.join(tripped)}" if tripped else "no drift"
        return found, f"{new.num_rows:,} new and {usual.num_rows:,} test images: {told}"

    def _sample(self, rows: pa.Table) -> Sample | None:
        """``rows`` with columns as REFERENCE has them; None if embeddings are gone."""
        there = vectors(self.at.store, self.encoders, rows["image_id"].to_pylist())
        if there is None:
            return None
        near, accepted = rows["nearest_similarity"], rows["accepted"]
        return Sample(
            np.concatenate(list(there.values()), axis=1),
            None if near.null_count else near.to_numpy(),
            np.array(rows["predicted"].to_pylist()),
            None if accepted.null_count else np.array(accepted.to_pylist(), bool),
        )

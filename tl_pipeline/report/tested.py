"""What the best model of a run predicted of the test images, as columns."""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow.compute as pc

from tl_pipeline.data.splits import TEST
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.tables import PREDICTIONS

_COLUMNS = ("image_id", "split", "label", "predicted", "confidence")


@dataclass(frozen=True)
class PredictedTest:
    """One row per test image, ordered by image id; every column is of shape (n,).

    ``labels`` and ``predicted`` are names, ``confidence`` is float32.
    """

    image_ids: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray

    @cached_property
    def classes(self) -> list[str]:
        """The names that are a label or a prediction, sorted."""
        return sorted({*self.labels.tolist(), *self.predicted.tolist()})

    @cached_property
    def right(self) -> np.ndarray:
        """Whether each prediction is right, bool (n,)."""
        return self.labels == self.predicted

    @cached_property
    def truth(self) -> np.ndarray:
        """The number of each label in ``classes``, (n,)."""
        return np.searchsorted(self.classes, self.labels)

    @cached_property
    def guess(self) -> np.ndarray:
        """The number of each prediction in ``classes``, (n,)."""
        return np.searchsorted(self.classes, self.predicted)

    @cached_property
    def errors(self) -> np.ndarray:
        """The rows of wrong predictions, the most confident first."""
        wrong = np.flatnonzero(~self.right)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")]


def read(store: Store, evaluation: str) -> PredictedTest:
    """The test rows of the evaluation with this key.

    Raises:
        DamagedArtifact: the table is missing or not whole.
    """
    folder = store.path(Artifact("evaluations", evaluation, evaluation))
    rows = tables.read(PREDICTIONS, folder, _COLUMNS)
    rows = rows.filter(pc.equal(rows["split"], TEST)).sort_by("image_id")
    names = ("image_id", "label", "predicted")
    ids, labels, predicted = (np.array(rows[n].to_pylist(), object) for n in names)
    return PredictedTest(ids, labels, predicted, rows["confidence"].to_numpy())

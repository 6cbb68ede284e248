"""Heads that compare directions only: the nearest class mean, and nearest rows."""

from typing import Any, Self

import numpy as np
from scipy.sparse import csr_array

from tl_pipeline.heads.estimators import NumericHead
from tl_pipeline.heads.linear.design_matrix import BLOCK
from tl_pipeline.heads.linear.temperature import fit_inverse_temperature
from tl_pipeline.heads.predictors import Centroids, Neighbours, unit_rows


class CentroidHead(NumericHead):
    """The class whose mean direction has the greatest cosine with the row.

    Probabilities are the softmax of ``inverse_temperature_`` times the cosines. That
    factor is found on the cosines of each training row with means that leave this row
    out, in closed form; a row that is alone in its class has no part in that.

    Args:
        random_state: of no effect: nothing is drawn.

    Attributes:
        centroids_: (K, width), of length 1.
        inverse_temperature_: see ``temperature.fit_inverse_temperature``.
    """

    def __init__(self, random_state: int | None = None) -> None:
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Learn from ``X`` (n, width), labels ``y`` (n,) and weights (n,)."""
        x, targets, weights, _ = self.training_set(X, y, sample_weight)
        rows, counts = unit_rows(x), np.bincount(targets)
        shares = csr_array((weights, (targets, np.arange(len(rows)))))
        blocks = [slice(at, at + BLOCK) for at in range(0, len(rows), BLOCK)]
        sums = np.zeros((len(counts), rows.shape[1]))
        for block in blocks:
            sums += shares[:, block] @ rows[block].astype(np.float64)
        self.centroids_ = unit_rows(sums)
        scores = np.empty((len(rows), len(counts)))
        for block in blocks:
            scores[block] = rows[block] @ self.centroids_.T
            less = sums[targets[block]] - weights[block, None] * rows[block]
            own = np.arange(len(less)), targets[block]
            scores[block][own] = (rows[block] * unit_rows(less)).sum(axis=1)
        used = counts[targets] > 1
        self.inverse_temperature_ = fit_inverse_temperature(
            scores[used], targets[used], weights[used]
        )
        return self

    def predictor(self) -> Centroids:
        """What was learned, in numbers."""
        return Centroids(self.centroids_, self.inverse_temperature_)


class NeighbourHead(NumericHead):
    """A vote of the ``k`` training rows of the greatest cosine.

    Each votes with exp(cosine / temperature) (Wu et al. 2018, "Unsupervised feature
    learning via non-parametric instance discrimination", section 3.4). One more
    vote, of the weight of the last of them, is dealt among the classes by their shares,
    so that none is held impossible. Keeps the training rows; one matrix product serves
    some hundreds of new rows.

    Args:
        k: neighbours that vote; all rows if there are fewer.
        temperature: the greater, the more equal are the votes.
        random_state: of no effect: nothing is drawn.
    """

    def __init__(
        self, k: int = 10, temperature: float = 0.07, random_state: int | None = None
    ) -> None:
        self.k = k
        self.temperature = temperature
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Keep ``X`` (n, width) at length 1, and the labels ``y`` (n,)."""
        x, self.targets_, _, _ = self.training_set(X, y)
        self.rows_ = unit_rows(x)
        return self

    def predictor(self) -> Neighbours:
        """What was learned, in numbers."""
        count = len(self.classes_)
        return Neighbours(self.rows_, self.targets_, count, self.k, self.temperature)

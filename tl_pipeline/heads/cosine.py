"""Heads that compare directions only: the nearest class mean, and nearest rows."""

from typing import Any, Self

import numpy as np
from scipy.sparse import csr_array
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    validate_data,
)

from tl_pipeline.heads.linear.design_matrix import BLOCK
from tl_pipeline.heads.linear.temperature import probabilities, sharpness

PRODUCTS = 1 << 24  # similarities at once


class CosineHead(ClassifierMixin, BaseEstimator):
    """What both share: rows of length 1, and a fit that is checked.

    A row of zeros has no direction: it is as far from everything.
    """

    def _begin(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:  # noqa: N803
        """Rows of length 1 and class numbers; sets ``classes_``."""
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])  # noqa: N806
        check_classification_targets(y)
        self.classes_, targets = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"{type(self).__name__} needs two classes; got 1 class")
        return _unit(X), targets

    def _rows(self, X: Any) -> np.ndarray:  # noqa: N803
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)  # noqa: N806
        return _unit(X)

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The most probable class of each row of ``X``."""
        found = self.predict_proba(X)
        return self.classes_[found.argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Class probabilities (n, K)."""
        raise NotImplementedError


class CentroidHead(CosineHead):
    """The class whose mean direction has the greatest cosine with the row.

    Probabilities are the softmax of ``sharpness_`` times the cosines. That number is
    found on the cosines of each training row with means that leave this row out, in
    closed form; a row that is alone in its class has no part in that.

    Args:
        random_state: of no effect: nothing is drawn.

    Attributes:
        centroids_: (K, width), of length 1.
        sharpness_: see ``sharpness.sharpness``.
    """

    def __init__(self, random_state: int | None = None) -> None:
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Learn from ``X`` (n, width), labels ``y`` (n,) and weights (n,)."""
        rows, targets = self._begin(X, y)
        weights = _check_sample_weight(
            sample_weight, rows, dtype=np.float64, ensure_non_negative=True
        )
        counts = np.bincount(targets, weights > 0)
        if (counts == 0).any():
            raise ValueError("a class has no row with a weight above 0")
        shares = csr_array((weights, (targets, np.arange(len(rows)))))
        blocks = [slice(at, at + BLOCK) for at in range(0, len(rows), BLOCK)]
        sums = np.zeros((len(counts), rows.shape[1]))
        for block in blocks:
            sums += shares[:, block] @ rows[block].astype(np.float64)
        self.centroids_ = _unit(sums)
        scores = np.empty((len(rows), len(counts)))
        for block in blocks:
            scores[block] = rows[block] @ self.centroids_.T
            less = sums[targets[block]] - weights[block, None] * rows[block]
            own = np.arange(len(less)), targets[block]
            scores[block][own] = (rows[block] * _unit(less)).sum(axis=1)
        used = (weights > 0) & (counts[targets] > 1)
        self.sharpness_ = sharpness(scores[used], targets[used], weights[used])
        return self

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Class probabilities (n, K)."""
        rows = self._rows(X)
        cosines = rows @ self.centroids_.T.astype(rows.dtype)
        return probabilities(cosines, self.sharpness_)

    def tensors(self) -> dict[str, np.ndarray]:
        """All that was learned, by name: what ``from_tensors`` needs."""
        return {"centroids": self.centroids_, "sharpness": np.array([self.sharpness_])}

    def from_tensors(self, tensors: dict[str, np.ndarray], classes: list[str]) -> Self:
        """Become the fitted head whose ``tensors`` these are.

        Raises:
            ValueError: they are of another number of classes.
        """
        self.centroids_ = tensors["centroids"]
        if len(self.centroids_) != len(classes):
            raise ValueError(
                f"{len(self.centroids_)} centroids, {len(classes)} classes"
            )
        self.sharpness_ = tensors["sharpness"].item()
        self.classes_ = np.array(classes)
        self.n_features_in_ = self.centroids_.shape[1]
        return self


class NeighbourHead(CosineHead):
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
        self.rows_, self.targets_ = self._begin(X, y)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Class probabilities (n, K)."""
        rows = self._rows(X)
        found = np.empty((len(rows), len(self.classes_)), rows.dtype)
        count = min(self.k, len(self.rows_))
        step = max(1, PRODUCTS // len(self.rows_))
        shares = np.bincount(self.targets_, minlength=len(self.classes_))
        shares = shares / shares.sum()
        for first in range(0, len(rows), step):
            cosines = rows[first : first + step] @ self.rows_.T
            nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
            close = np.take_along_axis(cosines, nearest, axis=1)
            close -= close.max(axis=1, keepdims=True)
            votes = np.exp(close / self.temperature)
            at = np.arange(len(cosines))[:, None] * len(self.classes_)
            cells = (at + self.targets_[nearest]).ravel()
            sums = np.bincount(
                cells, votes.ravel(), len(cosines) * len(self.classes_)
            ).reshape(len(cosines), -1)
            sums += votes.min(axis=1, keepdims=True) * shares
            found[first : first + step] = sums / sums.sum(axis=1, keepdims=True)
        return found

    def tensors(self) -> dict[str, np.ndarray]:
        """All that was learned, by name: what ``from_tensors`` needs."""
        return {"rows": self.rows_, "targets": self.targets_}

    def from_tensors(self, tensors: dict[str, np.ndarray], classes: list[str]) -> Self:
        """Become the fitted head whose ``tensors`` these are.

        Raises:
            ValueError: they do not belong together, or not to these classes.
        """
        self.rows_, self.targets_ = tensors["rows"], tensors["targets"]
        whole = self.targets_.shape == self.rows_.shape[:1]
        if not whole or not 0 <= self.targets_.min() <= self.targets_.max() < len(
            classes
        ):
            raise ValueError("rows and targets do not belong together")
        self.classes_ = np.array(classes)
        self.n_features_in_ = self.rows_.shape[1]
        return self


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)

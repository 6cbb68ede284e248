"""Trees as one table of their nodes, which scikit-learn grew.

What is kept is our own: its trees are compiled objects that no safe file format holds
(their loaders believe the node numbers they are given).
"""

from abc import abstractmethod
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

CELLS = 1 << 19  # rows times trees that are walked at once
COLUMNS = ("left", "right", "feature", "threshold", "values", "roots")


class TreesHead(ClassifierMixin, BaseEstimator):
    """Trees as one table of nodes.

    Attributes:
        left_: (nodes,) the node for values up to the threshold; a leaf's is itself.
        right_: (nodes,) the node for greater ones.
        feature_: (nodes,) the column that is compared.
        threshold_: (nodes,) with what.
        values_: (nodes, m) what a leaf says; of other nodes zeros.
        roots_: (trees,) their first nodes.
        depth_: steps from a root to any leaf at most.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Learn from ``X`` (n, width), labels ``y`` (n,) and weights (n,)."""
        X, y = validate_data(self, X, y, dtype=np.float32)  # noqa: N806
        check_classification_targets(y)
        if len(np.unique(y)) < 2:
            raise ValueError(f"{type(self).__name__} needs two classes; got 1 class")
        grower = self._grower(y)
        grower.fit(X, y, sample_weight=sample_weight)
        self.classes_ = grower.classes_
        self._take(self._tables(grower))
        return self

    @abstractmethod
    def _grower(self, y: np.ndarray) -> Any:
        """An unfitted classifier of scikit-learn for the labels ``y``."""

    @abstractmethod
    def _tables(self, grower: Any) -> list[dict[str, np.ndarray]]:
        """Of each tree the first five of ``COLUMNS``, its nodes counted from 0."""

    @abstractmethod
    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Class probabilities (n, K)."""

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The most probable class of each row of ``X``."""
        found = self.predict_proba(X)
        return self.classes_[found.argmax(axis=1)]

    def _take(self, tables: list[dict[str, np.ndarray]]) -> None:
        sizes = [len(table["left"]) for table in tables]
        self.roots_ = np.cumsum([0, *sizes[:-1]])
        shifts = np.repeat(self.roots_, sizes)
        joined = {
            name: np.concatenate([t[name] for t in tables]) for name in COLUMNS[:-1]
        }
        leaves = joined["left"] == 0  # no node has the first one as its child
        own = np.arange(len(shifts))
        self.left_ = np.where(leaves, own, joined["left"] + shifts)
        self.right_ = np.where(leaves, own, joined["right"] + shifts)
        self.feature_ = np.where(leaves, 0, joined["feature"])
        self.threshold_ = np.where(leaves, 0.0, joined["threshold"])
        self.values_ = np.where(leaves[:, None], joined["values"], 0)
        self.depth_ = self._depth()

    def _depth(self) -> int:
        at, depth = self.roots_, 0
        while True:
            inner = at[self.left_[at] != at]
            if not len(inner):
                return depth
            at, depth = (
                np.concatenate([self.left_[inner], self.right_[inner]]),
                depth + 1,
            )

    def _leaves(self, X: Any) -> list[tuple[slice, np.ndarray]]:  # noqa: N803
        """Blocks of rows, each with the leaves (rows, trees) in which they end."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float32, reset=False)  # noqa: N806
        step = max(1, CELLS // len(self.roots_))
        found = []
        for first in range(0, len(X), step):
            block = X[first : first + step]
            rows = np.arange(len(block))[:, None]
            at = np.tile(self.roots_, (len(block), 1))
            for _ in range(self.depth_):
                low = block[rows, self.feature_[at]] <= self.threshold_[at]
                at = np.where(low, self.left_[at], self.right_[at])
            found.append((slice(first, first + step), at.astype(np.int32)))
        return found

    def tensors(self) -> dict[str, np.ndarray]:
        """All that was learned, by name: what ``from_tensors`` needs."""
        tables = {name: getattr(self, f"{name}_") for name in COLUMNS}
        about = [self.depth_, self.n_features_in_]
        return {**tables, "about": np.array(about)}

    def from_tensors(self, tensors: dict[str, np.ndarray], classes: list[str]) -> Self:
        """Become the fitted head whose ``tensors`` these are.

        Raises:
            ValueError: node numbers or shapes are not those of trees.
        """
        for name in COLUMNS:
            setattr(self, f"{name}_", tensors[name])
        self.depth_, self.n_features_in_ = (int(n) for n in tensors["about"])
        self.classes_ = np.array(classes)
        count = len(self.left_)
        if any(len(tensors[name]) != count for name in COLUMNS[:-1]):
            raise ValueError("the columns of the nodes have different lengths")
        for name, end in (
            ("left", count),
            ("right", count),
            ("roots", count),
            ("feature", self.n_features_in_),
        ):
            numbers = tensors[name]
            if numbers.min() < 0 or numbers.max() >= end:
                raise ValueError(f"{name} is out of its range")
        if not 0 <= self.depth_ <= count:
            raise ValueError(f"a depth of {self.depth_} with {count} nodes")
        self._check(tensors)
        return self

    @abstractmethod
    def _check(self, tensors: dict[str, np.ndarray]) -> None:
        """Raise a ValueError if ``tensors`` do not fit the classes."""

"""Heads of many trees: random forest, and gradient boosting."""

from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

from tl_pipeline.heads.linear.temperature import probabilities
from tl_pipeline.heads.tree_nodes import TreesHead

PENALTY = 1.0  # on leaves: without one, steps of many rare classes can run away


class ForestHead(TreesHead):
    """Random forest (Breiman 2001): the mean of its trees' class shares.

    Args:
        trees: their number.
        min_leaf: fewest rows in a leaf.
        class_weight: none, or balanced as in scikit-learn.
        random_state: seed.
    """

    def __init__(
        self,
        trees: int = 300,
        min_leaf: int = 1,
        class_weight: str = "none",
        random_state: int | None = None,
    ) -> None:
        self.trees = trees
        self.min_leaf = min_leaf
        self.class_weight = class_weight
        self.random_state = random_state

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Class probabilities (n, K)."""
        parts = []
        for _, leaves in self._leaves(X):
            total = np.zeros((len(leaves), len(self.classes_)))
            for of_tree in leaves.T:
                total += self.values_[of_tree]
            parts.append(total / total.sum(axis=1, keepdims=True))
        return np.concatenate(parts)

    def _grower(self, y: np.ndarray) -> Any:  # noqa: ARG002
        return RandomForestClassifier(
            self.trees,
            min_samples_leaf=self.min_leaf,
            class_weight=None if self.class_weight == "none" else self.class_weight,
            n_jobs=-1,
            random_state=self.random_state,
        )

    def _tables(self, grower: Any) -> list[dict[str, np.ndarray]]:
        return [
            {
                "left": grown.tree_.children_left.clip(0),
                "right": grown.tree_.children_right.clip(0),
                "feature": grown.tree_.feature,
                "threshold": grown.tree_.threshold,
                "values": grown.tree_.value[:, 0].astype(np.float32),
            }
            for grown in grower.estimators_
        ]

    def _check(self, tensors: dict[str, np.ndarray]) -> None:
        if tensors["values"].shape[1:] != (len(self.classes_),):
            raise ValueError("the leaves are of another number of classes")


class BoostingHead(TreesHead):
    """Gradient boosting on histograms of features (Ke et al. 2017, as scikit-learn's).

    A round adds one tree a class (one in all of two classes).

    Args:
        rounds: their number.
        learning_rate: by which each tree is shrunk.
        leaves: most leaves of a tree.
        max_features: share of the features that each split looks at, drawn anew.
        min_leaf: fewest rows in a leaf.
        class_weight: none, or balanced as in scikit-learn.
        random_state: seed.
    """

    def __init__(
        self,
        rounds: int = 100,
        learning_rate: float = 0.1,
        leaves: int = 31,
        max_features: float = 1.0,
        min_leaf: int = 20,
        class_weight: str = "none",
        random_state: int | None = None,
    ) -> None:
        self.rounds = rounds
        self.learning_rate = learning_rate
        self.leaves = leaves
        self.max_features = max_features
        self.min_leaf = min_leaf
        self.class_weight = class_weight
        self.random_state = random_state

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Class probabilities (n, K)."""
        parts = []
        for _, leaves in self._leaves(X):
            said = self.values_[leaves, 0]
            of_rounds = said.reshape(len(said), -1, len(self.base_))
            scores = of_rounds.sum(axis=1) + self.base_
            parts.append(scores[:, 0] if len(self.base_) == 1 else scores)
        return probabilities(np.concatenate(parts), 1.0)

    def tensors(self) -> dict[str, np.ndarray]:
        """All that was learned, by name: what ``from_tensors`` needs."""
        return {**super().tensors(), "base": self.base_}

    def _grower(self, y: np.ndarray) -> Any:  # noqa: ARG002
        return HistGradientBoostingClassifier(
            max_iter=self.rounds,
            learning_rate=self.learning_rate,
            max_leaf_nodes=self.leaves,
            max_features=self.max_features,
            min_samples_leaf=self.min_leaf,
            l2_regularization=PENALTY,
            class_weight=None if self.class_weight == "none" else self.class_weight,
            early_stopping=False,  # pyright: ignore[reportArgumentType]
            random_state=self.random_state,
        )

    def _tables(self, grower: Any) -> list[dict[str, np.ndarray]]:
        # not public in scikit-learn; a test holds our probabilities to its own
        self.base_ = np.asarray(grower._baseline_prediction, float).reshape(-1)  # noqa: SLF001
        nodes = [tree.nodes for trees in grower._predictors for tree in trees]  # noqa: SLF001
        return [
            {
                "left": tree["left"].astype(np.int64),
                "right": tree["right"].astype(np.int64),
                "feature": tree["feature_idx"].astype(np.int64),
                "threshold": tree["num_threshold"],
                "values": tree["value"][:, None],
            }
            for tree in nodes
        ]

    def _check(self, tensors: dict[str, np.ndarray]) -> None:
        self.base_ = tensors["base"]
        scores = 1 if len(self.classes_) == 2 else len(self.classes_)
        if self.base_.shape != (scores,) or len(self.roots_) % scores:
            raise ValueError("the trees are of another number of classes")
        if self.values_.shape[1:] != (1,):
            raise ValueError("a leaf of boosting holds one number")

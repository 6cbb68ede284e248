"""What the estimators of this package share: they are scikit-learn's, and numbers.

An estimator fits; once fitted, its ``predictor`` holds what it learned, and predicts.
"""

from typing import Any, ClassVar, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    validate_data,
)

from tl_pipeline.heads.predictors import KernelMachine, Linear, Predictor


class TrainingSet(NamedTuple):
    """Checked rows of a weight above 0.

    ``x`` (n, width); ``targets`` (n,) are class numbers, ``weights`` (n,) float64.
    ``groups`` (n,) are None where nobody named any.
    """

    x: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    groups: np.ndarray | None


class NumericHead(ClassifierMixin, BaseEstimator):
    """A classifier that predicts by its ``predictor``.

    Attributes:
        classes_: labels (K,), sorted.
    """

    dtypes: ClassVar[Any] = [np.float64, np.float32]  # that rows are taken as

    def predictor(self) -> Predictor:
        """What was learned, in numbers."""
        raise NotImplementedError

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803 - sklearn's names
        """Class probabilities (n, K)."""
        rows = self._new_rows(X)
        return self.predictor().predict_proba(rows)

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The most probable class of each row of ``X``."""
        found = self.predict_proba(X)
        return self.classes_[found.argmax(axis=1)]

    def _new_rows(self, X: Any) -> np.ndarray:  # noqa: N803
        check_is_fitted(self)
        rows: Any = validate_data(self, X, dtype=self.dtypes, reset=False)
        return rows

    def training_set(
        self,
        X: Any,  # noqa: N803
        y: Any,
        sample_weight: Any = None,
        groups: Any = None,
    ) -> TrainingSet:
        """What ``fit`` was given, checked; sets ``classes_``.

        Raises:
            ValueError: fewer than two classes have a weight above 0.
        """
        X, y = validate_data(self, X, y, dtype=self.dtypes)  # noqa: N806
        check_classification_targets(y)
        weights = _check_sample_weight(
            sample_weight, X, dtype=np.float64, ensure_non_negative=True
        )
        groups = None if groups is None else np.asarray(groups)
        there = weights > 0
        if not there.all():
            X, y, weights = X[there], y[there], weights[there]  # noqa: N806
            groups = None if groups is None else groups[there]
        self.classes_, targets = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least two classes with a weight above "
                f"0; got {len(self.classes_)} class"
            )
        return TrainingSet(X, targets, weights, groups)


class DecisionHead(NumericHead):
    """A classifier with decisions, of which it takes the softmax."""

    def predictor(self) -> Linear | KernelMachine:
        """What was learned, in numbers."""
        raise NotImplementedError

    def decision_function(self, X: Any) -> np.ndarray:  # noqa: N803
        """Scores (n, K), or (n,) of two classes: positive for the second."""
        rows = self._new_rows(X)
        return self.predictor().decisions(rows)

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The class of the greatest score of each row of ``X``."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return self.classes_[(scores > 0).astype(int)]
        return self.classes_[scores.argmax(axis=1)]


def balanced(targets: np.ndarray, weights: np.ndarray, class_weight: str) -> np.ndarray:
    """``weights`` (n,), for ``balanced`` such that all classes have the same sum.

    With the sum over all rows as it was, as scikit-learn does.
    """
    if class_weight == "none":
        return weights
    factors = compute_class_weight(
        class_weight, classes=np.unique(targets), y=targets, sample_weight=weights
    )
    return weights * factors[targets]

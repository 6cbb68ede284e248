"""Probabilities for classifiers that have margins only, such as SVMs."""

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    validate_data,
)

from tl_pipeline.heads.folds import dealt
from tl_pipeline.heads.linear.temperature import probabilities, sharpness


class MarginHead(ClassifierMixin, BaseEstimator):
    """``machine`` fitted on all rows, and the softmax of its decisions.

    The softmax is of the decisions times ``sharpness_``, one number for all classes,
    found on decisions of training rows that a fit of the same machine has not seen: the
    rows of each class, or whole groups, are dealt to ``folds`` parts by chance, each
    left out in turn (Platt 1999 by cross-validation, with the one parameter of Guo et
    al. 2017, so that the class with the greatest margin keeps the greatest
    probability). A class of one row or group is in every fit and left out in none; if
    all are, the sharpness is 1. Rows that are near duplicates of each other, and whose
    groups nobody tells, make it too great.

    Args:
        machine: an unfitted classifier with ``decision_function``.
        folds: fits for the sharpness.
        random_state: seed of the dealing.

    Attributes:
        machine_: fitted.
        sharpness_: see ``sharpness.sharpness``.
    """

    def __init__(
        self, machine: Any, folds: int = 3, random_state: int | None = None
    ) -> None:
        self.machine = machine
        self.folds = folds
        self.random_state = random_state

    def fit(
        self,
        X: Any,  # noqa: N803
        y: Any,
        sample_weight: Any = None,
        groups: Any = None,
    ) -> Self:
        """Learn from ``X`` (n, width), labels ``y``, weights and groups, all (n,)."""
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])  # noqa: N806
        check_classification_targets(y)
        weights = _check_sample_weight(
            sample_weight, X, dtype=np.float64, ensure_non_negative=True
        )
        there = weights > 0
        X, y, weights = X[there], y[there], weights[there]  # noqa: N806
        groups = None if groups is None else np.asarray(groups)[there]
        self.classes_, targets = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("MarginHead needs at least two classes; got 1 class")
        fold = dealt(targets, self.folds, self.random_state, groups)
        left_out = fold >= 0
        machine: Any
        scores: Any = None
        for part in range(self.folds):
            held = fold == part
            if held.any():
                kept = ~held
                machine = clone(self.machine)
                machine.fit(X[kept], y[kept], sample_weight=weights[kept])
                found = machine.decision_function(X[held])
                if scores is None:
                    scores = np.zeros((len(X), *found.shape[1:]))
                scores[held] = found
        self.sharpness_ = 1.0
        if scores is not None:
            self.sharpness_ = sharpness(
                scores[left_out], targets[left_out], weights[left_out]
            )
        machine = clone(self.machine)
        self.machine_ = machine.fit(X, y, sample_weight=weights)
        return self

    def decision_function(self, X: Any) -> np.ndarray:  # noqa: N803
        """Margins (n, K), or (n,) of two classes."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)  # noqa: N806
        return self.machine_.decision_function(X)

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Class probabilities (n, K)."""
        return probabilities(self.decision_function(X), self.sharpness_)

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The class of the greatest margin of each row of ``X``."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return self.classes_[(scores > 0).astype(int)]
        return self.classes_[scores.argmax(axis=1)]

"""Heads that scikit-learn fits: naive Bayes, an SVM with a kernel, the majority."""

from typing import Any, Self

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.dummy import DummyClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.svm import SVC

from tl_pipeline.heads.calibrated_svm import CalibratedSVM

LEAST_VARIANCE = 1e-12


class NaiveBayes(GaussianNB):
    """scikit-learn's, which divides by 0 where all features are constant."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Learn from ``X`` (n, width), labels ``y`` (n,) and weights (n,)."""
        super().fit(X, y, sample_weight)
        self.var_ = np.maximum(self.var_, LEAST_VARIANCE)
        return self


def rbf_svm(
    C: float,  # noqa: N803
    gamma: float | str,
    class_weight: str,
    random_state: int,
) -> ClassifierMixin:
    """SVM with a Gaussian kernel; its time grows with the square of the rows."""
    machine = SVC(
        C=C,
        gamma=gamma,  # pyright: ignore[reportArgumentType] - a number, or "scale"
        class_weight=None if class_weight == "none" else class_weight,
        cache_size=500,
    )
    return CalibratedSVM(machine, random_state=random_state)


def naive_bayes(smoothing: float, random_state: int) -> ClassifierMixin:  # noqa: ARG001 - nothing is drawn
    """Gaussian naive Bayes: normal features, independent given the class."""
    return NaiveBayes(var_smoothing=smoothing)


def majority(random_state: int) -> ClassifierMixin:
    """Always the class shares of the training rows, so the most frequent class wins."""
    return DummyClassifier(strategy="prior", random_state=random_state)

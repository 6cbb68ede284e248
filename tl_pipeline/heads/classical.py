"""Heads that are scikit-learn's own classifiers; ``preparation`` goes before them."""

from typing import Any, Self

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.svm import SVC

from tl_pipeline.heads.margins import MarginHead

LEAST_VARIANCE = 1e-12


class NaiveBayes(GaussianNB):
    """scikit-learn's, which divides by 0 where all features are constant."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Learn from ``X`` (n, width), labels ``y`` (n,) and weights (n,)."""
        super().fit(X, y, sample_weight)
        self.var_ = np.maximum(self.var_, LEAST_VARIANCE)
        return self


def logistic(C: float, class_weight: str, random_state: int) -> ClassifierMixin:  # noqa: N803 - sklearn's name
    """Multinomial logistic regression.

    ``C`` is the inverse strength of the L2 penalty, as in scikit-learn.
    """
    return LogisticRegression(
        C=C,
        class_weight=_of_classes(class_weight),
        max_iter=5000,
        random_state=random_state,
    )


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
        class_weight=_of_classes(class_weight),
        break_ties=True,
        cache_size=500,
    )
    return MarginHead(machine, random_state=random_state)


def naive_bayes(smoothing: float, random_state: int) -> ClassifierMixin:  # noqa: ARG001 - nothing is drawn
    """Gaussian naive Bayes: normal features, independent given the class."""
    return NaiveBayes(var_smoothing=smoothing)


def majority(random_state: int) -> ClassifierMixin:
    """Always the class shares of the training rows, so the most frequent class wins."""
    return DummyClassifier(strategy="prior", random_state=random_state)


def _of_classes(class_weight: str) -> Any:
    return None if class_weight == "none" else class_weight

"""Heads that are scikit-learn pipelines."""

from sklearn.base import ClassifierMixin
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler


def logistic(C: float, random_state: int) -> Pipeline:  # noqa: N803 - sklearn's name
    """Multinomial logistic regression on standardised embeddings.

    ``C`` is the inverse strength of the L2 penalty, as in scikit-learn.
    """
    model = LogisticRegression(C=C, max_iter=5000, random_state=random_state)
    return make_pipeline(StandardScaler(), model)


def majority(random_state: int) -> ClassifierMixin:
    """Always the class shares of the training rows, so the most frequent class wins."""
    return DummyClassifier(strategy="prior", random_state=random_state)

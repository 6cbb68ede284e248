"""Classifiers on embeddings: one visible row each in ``table.HEADS``.

In: rows of embeddings, their labels, weights and groups. Out: fitted heads, which are
numbers. To add one: an estimator with ``fit``, as scikit-learn's, whose ``predictor``
gives what it learned, and a row in the table. A default that is a list is a grid: each
of its values is trained.
"""

from tl_pipeline.heads.configurations import (
    complete,
    describe,
    grid,
    is_range,
    label,
    sampled,
)
from tl_pipeline.heads.presets import PRESETS, expanded
from tl_pipeline.heads.table import HEADS, Head

__all__ = [
    "HEADS",
    "PRESETS",
    "Head",
    "complete",
    "cross_validation",
    "describe",
    "estimators",
    "expanded",
    "fitted",
    "fitting",
    "folds",
    "grid",
    "grids",
    "is_range",
    "label",
    "linear",
    "neural",
    "predictors",
    "sampled",
    "search",
]

"""Two classifiers on the same rows: how much better is one, and how surely."""

from dataclasses import dataclass

import numpy as np

from tl_pipeline.evaluation.metrics import LEVEL

RESAMPLES = 10_000


@dataclass(frozen=True)
class Difference:
    """Accuracy of the first minus accuracy of the second, with a 95 % interval."""

    value: float
    low: float
    high: float
    rows: int


def paired_difference(first: np.ndarray, second: np.ndarray, seed: int) -> Difference:
    """The difference of two accuracies on the same rows.

    ``first`` and ``second`` are booleans of shape (n,): whether each classifier is
    right about row i. Rows on which both agree say nothing about the difference, so the
    interval is narrower than two separate ones suggest. It is a percentile bootstrap
    over rows: one multinomial draw over the cells (only first right, only second right,
    the rest) per resample (Efron & Tibshirani 1993, ch. 13).

    Raises:
        ValueError: no rows, or a different number of them.
    """
    if first.shape != second.shape or not len(first):
        raise ValueError("paired comparison needs the same rows, and at least one")
    rows = len(first)
    won, lost = int((first & ~second).sum()), int((~first & second).sum())
    shares = np.array([won, lost, rows - won - lost]) / rows
    drawn = np.random.default_rng(seed).multinomial(rows, shares, size=RESAMPLES)
    differences = (drawn[:, 0] - drawn[:, 1]) / rows
    low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference((won - lost) / rows, float(low), float(high), rows)

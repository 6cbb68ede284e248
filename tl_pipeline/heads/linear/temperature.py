"""From decisions to probabilities by one number: temperature scaling."""

from typing import Any

import numpy as np
from scipy.special import logsumexp, softmax

LIMITS = (1e-3, 1e3)


def fit_inverse_temperature(
    scores: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    pseudo_rows: int | None = None,
) -> float:
    """The factor of least log loss on decisions of rows that were not learned from.

    Guo et al. 2017 (its inverse, the temperature). With one number for all classes the
    order of the classes of a row stays that of the decisions, and a class of few rows
    needs none of its own. The targets are smoothed as if every class had one row more
    behind each decision (after Platt 1999, section 2.2), so that rows without an error
    do not make it boundless. 1 where there are no rows.

    Args:
        scores: decisions (n, K), or (n,) of two classes, positive for the second.
        targets: class numbers (n,); -1 for a row of none of the classes, which is
            taken as spread over all.
        weights: how much each row counts, (n,).
        pseudo_rows: how many rows more, spread over all classes, the smoothing adds; by
            default as many as classes.

    Returns:
        A number within ``LIMITS``.
    """
    from scipy.optimize import minimize_scalar  # noqa: PLC0415 - only to fit one

    if not len(scores):
        return 1.0
    logits = _logits(scores)
    logits = logits - logits.max(axis=1, keepdims=True)
    own = np.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    own = np.where(targets < 0, logits.mean(axis=1), own)
    more = logits.shape[1] if pseudo_rows is None else pseudo_rows
    smoothing = more / (len(logits) + more)
    own = (1 - smoothing) * own + smoothing * logits.mean(axis=1)

    def loss(log_factor: float) -> float:
        factor = np.exp(log_factor)
        return weights @ (logsumexp(factor * logits, axis=1) - factor * own)

    found: Any = minimize_scalar(loss, bounds=np.log(LIMITS), method="bounded")
    return float(np.exp(found.x))


def probabilities(scores: np.ndarray, inverse_temperature: float) -> np.ndarray:
    """Softmax (n, K) of decisions (n, K), or (n,) of two classes, times a factor."""
    return softmax(_logits(scores) * inverse_temperature, axis=1)


def _logits(scores: np.ndarray) -> np.ndarray:
    if scores.ndim == 1:
        return np.stack([np.zeros_like(scores), scores], axis=1)
    return scores

"""Sets of labels that hold the right one at a chosen error rate: split conformal.

A label is in the set of an image if its probability is at least a threshold (least
ambiguous sets: Sadinle, Lei & Wasserman 2019, JASA 114). The threshold is a quantile
over rows that neither head nor threshold were learned from, so that the right label of
a new image is left out with at most the error rate, on average over images like those.
"""

import numpy as np

# 0.95 * 20 as floating point numbers may come out above 19.
_ROUNDING = 1e-9


def least_probability(given: np.ndarray, units: np.ndarray, error: float) -> float:
    """The threshold of labels: sets hold the right one in 1 - ``error`` of cases.

    Of n rows of different units it is the ceil((n + 1)(1 - error))-th largest
    probability of the right label. Rows of one unit (frames of one film) count together
    as one, and the promise is for an image of a new unit (Lee, Barber & Willett 2023,
    arXiv:2306.06342, hierarchical conformal prediction).

    Args:
        given: the probability of the right label of each row, (n,); 0 for a label that
            the head cannot name.
        units: what each row belongs to, (n,).
        error: how often the right label may be missing, above 0 and below 1.

    Returns:
        A probability; 0, at which all labels are in every set, where there are too few
        units to promise anything: fewer than ``units_needed``.
    """
    _, unit, sizes = np.unique(units, return_inverse=True, return_counts=True)
    weights = 1 / ((len(sizes) + 1) * sizes[unit])
    order = np.argsort(-given, kind="stable")
    reached = np.cumsum(weights[order]) >= 1 - error - _ROUNDING
    return float(given[order[reached.argmax()]]) if reached.any() else 0.0


def units_needed(error: float) -> int:
    """The fewest units with which a set need not hold all labels."""
    return int(np.ceil((1 - error) / error - _ROUNDING))


def members(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """Which labels are in the set of each row: bool of shape (n, K).

    The most probable label is always among them. That leaves no set empty and can only
    make the right label missing less often.
    """
    found = probabilities >= threshold
    found[np.arange(len(found)), probabilities.argmax(axis=1)] = True
    return found

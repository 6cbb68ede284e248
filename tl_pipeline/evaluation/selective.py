"""How sure a prediction must be for the accepted ones to keep to an error rate."""

import numpy as np
from scipy import stats

from tl_pipeline.evaluation.metrics import LEVEL

STARTS = 4
_TAIL = (1 - LEVEL) / STARTS


def least_confidence(
    confidence: np.ndarray, wrong: np.ndarray, units: np.ndarray, error: float
) -> float | None:
    """The lowest confidence such that errors among the accepted are at most ``error``.

    That holds with a confidence of 95 % over the rows that the threshold is learned
    from (selection with guaranteed risk: Geifman & El-Yaniv 2017). Thresholds are
    tested from the strict to the loose until one fails, so that no correction for their
    number is needed (fixed sequence testing: Angelopoulos, Bates, Candès, Jordan & Lei
    2021, "Learn then test", section 4); from ``STARTS`` starts, each at a part of the
    5 %, as the strictest have too few rows to pass after one chance error.

    A threshold fails unless so few errors would be that unlikely were their rate any
    higher: an exact binomial test where every row is a unit of its own; rows of one
    unit (frames of one film) are one observation, their share of errors, under
    Hoeffding's bound (1963, theorem 1).

    Args:
        confidence: of the predicted label, (n,).
        wrong: whether the prediction is wrong, bool (n,).
        units: what each row belongs to, (n,).
        error: the rate, above 0 and below 1.

    Returns:
        The threshold; None if none passes, and everything is to be rejected.
    """
    order = np.argsort(-confidence, kind="stable")
    confidence, wrong = confidence[order], wrong[order]
    seen, chance = _tests(wrong, units[order], error)
    # rows of one confidence are accepted together
    ends = np.flatnonzero(np.append(confidence[1:] != confidence[:-1], True))
    fewest = units_needed(error)
    if not len(seen) or seen[-1] < fewest:
        return None
    last = -1
    for start in np.geomspace(fewest, seen[-1], STARTS, endpoint=False):
        sequence = ends[seen[ends] >= start]
        failed = np.append(chance[sequence] > _TAIL, True).argmax()
        last = max([last, *sequence[:failed]])
    return float(confidence[last]) if last >= 0 else None


def units_needed(error: float) -> int:
    """The fewest units that can show a rate of ``error``: all of them right."""
    return int(np.ceil(np.log(_TAIL) / np.log(1 - error)))


def _tests(
    wrong: np.ndarray, units: np.ndarray, error: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of the first 1 ... n rows: their units, and how likely so few errors would be."""
    names, unit = np.unique(units, return_inverse=True)
    if len(names) == len(wrong):
        seen = np.arange(1, len(wrong) + 1)
        return seen, stats.binom.cdf(np.cumsum(wrong), seen, error)
    rows, errors = np.zeros(len(names)), np.zeros(len(names))
    seen, total = np.zeros(len(wrong), int), np.zeros(len(wrong))
    units_seen, shares = 0, 0.0
    for i, (here, is_wrong) in enumerate(zip(unit, wrong, strict=True)):
        shares -= errors[here] / max(rows[here], 1)
        units_seen += rows[here] == 0
        rows[here] += 1
        errors[here] += is_wrong
        shares += errors[here] / rows[here]
        seen[i], total[i] = units_seen, shares
    mean = np.clip(total / seen, 0, error)  # rounding may leave a mean below 0
    distance = stats.entropy([mean, 1 - mean], [[error], [1 - error]])
    return seen, np.exp(-seen * distance)

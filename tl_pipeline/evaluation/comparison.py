"""Whether one classifier is better than another on the same images, or it is a tie.

Images on which both are right, or both wrong, say nothing about the difference.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from tl_pipeline.evaluation import costs, intervals, metrics
from tl_pipeline.evaluation.choice import Comparison
from tl_pipeline.evaluation.scored_rows import Compared
from tl_pipeline.score import Score


def compared(
    evaluation: str,
    against: str,
    both: Compared,
    metric: str,
    seed: int,
    prices: costs.Costs | None = None,
) -> Comparison:
    """The first classifier of ``both``, a candidate, and the second, by ``metric``.

    ``p_holm`` is that of one comparison: see ``adjusted``.

    Raises:
        ValueError: no image was scored by both.
    """
    first, second = both.right
    if metric == "accuracy":
        difference = intervals.adjusted_difference(first, second, both.units)
        p = mcnemar(first, second, both.units)
    else:
        difference = difference_by(metric, both, seed, prices or {})
        p = _of_interval(difference)
    return Comparison(
        evaluation=evaluation,
        against=against,
        metric=metric,
        difference=difference,
        images=len(first),
        won=int((first & ~second).sum()),
        lost=int((second & ~first).sum()),
        p=p,
        p_holm=p,
    )


def difference_by(metric: str, both: Compared, seed: int, prices: costs.Costs) -> Score:
    """By how much the first of ``both`` is better by ``metric``, another than accuracy.

    Of ``cost``, at these ``prices``, it is what the first saves.
    """
    if metric != costs.COST:
        return metrics.paired_difference(metric, both, seed)
    first, second = (
        costs.of_rows(prices, both.names, both.truth, side)
        for side in (both.first, both.second)
    )
    return intervals.mean_change(second - first, both.units)


def mcnemar(first: np.ndarray, second: np.ndarray, units: np.ndarray) -> float:
    """How often chance alone makes two equal classifiers differ at least so much.

    ``first`` and ``second`` tell where each is right, bool (n,). Of independent images
    it is the exact test (McNemar 1947, Psychometrika 12), two-sided. Of ``units`` with
    several, whose sums of differences are independent, it is Obuchowski's (1998, Stat.
    Med. 17) with Student's quantile.
    """
    change = first.astype(int) - second
    unit = np.unique(units, return_inverse=True)[1]
    number = int(unit.max(initial=0)) + 1
    if number == len(unit):
        won, lost = int((change > 0).sum()), int((change < 0).sum())
        # twice a tail of a fair coin
        return min(1.0, 2 * float(special.bdtr(min(won, lost), won + lost, 0.5)))
    sums = np.bincount(unit, change)
    if not sums.any() or number == 1:
        return 1.0
    statistic = abs(sums.sum()) / np.sqrt((sums**2).sum())
    return float(2 * special.stdtr(number - 1, -statistic))


def adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """With ``p_holm``, see ``holm``, among all of ``comparisons``."""
    found = holm([one.p for one in comparisons])
    return [
        one.model_copy(update={"p_holm": p})
        for one, p in zip(comparisons, found, strict=True)
    ]


def holm(ps: Sequence[float]) -> list[float]:
    """``ps`` such that one false difference among all of them is no more likely.

    Holm 1979, Scand. J. Stat. 6: the smallest of m is multiplied by m, the next by
    m - 1, and none is below the one before.
    """
    found, least = [0.0] * len(ps), 0.0
    for rank, at in enumerate(np.argsort(ps, kind="stable")):
        least = max(least, min(1.0, ps[at] * (len(ps) - rank)))
        found[at] = least
    return found


class ClassChange(NamedTuple):
    """How the recall of a class changed from one classifier to another.

    ``p_holm`` is how often chance alone brings such a change among all classes.
    """

    label: str
    images: int
    difference: float
    p_holm: float


def of_classes(both: Compared) -> list[ClassChange]:
    """The recall of each class by the first of ``both`` minus that by the second."""
    first, second = both.right
    order = np.argsort(both.truth, kind="stable")
    numbers, starts = np.unique(both.truth[order], return_index=True)
    rows = np.split(order, starts[1:])
    found = holm([mcnemar(first[at], second[at], both.units[at]) for at in rows])
    return [
        ClassChange(
            both.names[int(number)],
            len(at),
            float(first[at].mean() - second[at].mean()),
            p,
        )
        for number, at, p in zip(numbers, rows, found, strict=True)
    ]


def _of_interval(difference: Score) -> float:
    """Two-sided, of a normal difference with that interval."""
    if difference.low is None or difference.high is None:
        return 1.0
    spread = (difference.high - difference.low) / (2 * intervals.NORMAL)
    if not spread:
        return 1.0 if not difference.value else 0.0
    return float(2 * special.ndtr(-abs(difference.value) / spread))

"""Whether one classifier is better than another on the same images, or it is a tie.

Images on which both are right, or both wrong, say nothing about the difference.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from tl_pipeline.evaluation import intervals, metrics
from tl_pipeline.evaluation.choice import Comparison
from tl_pipeline.evaluation.scored_rows import Compared
from tl_pipeline.score import Score


def compared(
    evaluation: str, against: str, both: Compared, metric: str, seed: int
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
        difference = metrics.paired_difference(metric, both, seed)
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
        return float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
    sums = np.bincount(unit, change)
    if not sums.any() or number == 1:
        return 1.0
    statistic = abs(sums.sum()) / np.sqrt((sums**2).sum())
    return float(2 * stats.t.sf(statistic, number - 1))


def adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """With ``p_holm`` such that one false difference among all is no more likely.

    Holm 1979, Scand. J. Stat. 6: the smallest of m is multiplied by m, the next by
    m - 1, and none is below the one before.
    """
    order = np.argsort([one.p for one in comparisons], kind="stable")
    found, least = list(comparisons), 0.0
    for rank, at in enumerate(order):
        least = max(least, min(1.0, comparisons[at].p * (len(order) - rank)))
        found[at] = comparisons[at].model_copy(update={"p_holm": least})
    return found


def _of_interval(difference: Score) -> float:
    """Two-sided, of a normal difference with that interval."""
    if difference.low is None or difference.high is None:
        return 1.0
    spread = (difference.high - difference.low) / (2 * intervals.NORMAL)
    if not spread:
        return 1.0 if not difference.value else 0.0
    return float(2 * stats.norm.sf(abs(difference.value) / spread))

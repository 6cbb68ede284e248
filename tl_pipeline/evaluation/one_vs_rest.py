"""How well probabilities rank the images of one class above all others.

Of each class the area under the ROC curve and the average precision: as scikit-learn's
``roc_auc_score`` and ``average_precision_score``, but for thousands of classes. Only
the scores of a class's own rows are sorted, and a class is a column at a time.

Both come with what each row adds to them, their influence: the sum of its squares over
units is the variance (DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44; of units
Obuchowski 1997, Biometrics 53), and the mean over classes is that of the macro score.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tl_pipeline.evaluation import intervals
from tl_pipeline.evaluation.intervals import Shares, Spread
from tl_pipeline.score import Score

AUC, AVERAGE_PRECISION = "roc_auc", "average_precision"
METRICS = (AUC, AVERAGE_PRECISION)
# Bytes of the columns that are turned at one time.
_BLOCK = 2**25
_STEP = 256
_FEW = 100


@dataclass(frozen=True, eq=False)
class Ranks:
    """Both of ``METRICS`` for each class that some rows have, and some have not.

    ``at`` (k,) are the numbers of these classes, ``of_class`` the scores of each. The
    macro score has the influence (n,) of each row in units ``unit``.
    """

    at: np.ndarray
    of_class: tuple[Shares, ...]
    _influence: tuple[np.ndarray, ...]
    _unit: np.ndarray | None

    def macro(self, name: str) -> Score | None:
        """The mean over classes; None where all rows are of one."""
        if not len(self.at):
            return None
        metric = METRICS.index(name)
        units = (
            len(self._influence[metric]) if self._unit is None else self._unit.max() + 1
        )
        found = intervals.by_influence(
            self.of_class[metric].value.mean(keepdims=True),
            [Spread.of(self._influence[metric], self._unit)],
            int(units),
            np.array([units]),
        )
        return found.at(0)


def ranks(truth: np.ndarray, probabilities: np.ndarray, unit: np.ndarray) -> Ranks:
    """How well the ``probabilities`` (n, K) of each class rank its rows.

    Args:
        truth: the column of each row's label, (n,); see ``ranked``.
        probabilities: (n, K).
        unit: the number of the unit that each row belongs to, (n,).
    """
    units = int(unit.max(initial=0)) + 1
    grouped = unit if units < len(unit) else None
    at: list[int] = []
    positives: list[int] = []
    values: list[tuple[float, float]] = []
    spreads: list[tuple[Spread, ...]] = []
    total = tuple(np.zeros(len(unit)) for _ in METRICS)
    for one in ranked(truth, probabilities):
        at.append(one.at)
        positives.append(len(np.unique(unit[one.own])))
        values.append(one.values)
        spreads.append(tuple(Spread.of(each, grouped) for each in one.influence))
        for metric, each in enumerate(one.influence):
            total[metric][:] += each
    of_class = tuple(
        intervals.by_influence(
            np.array([value[metric] for value in values]),
            [spread[metric] for spread in spreads],
            units,
            np.array(positives),
        )
        for metric in range(len(METRICS))
    )
    mean = tuple(sums / max(len(at), 1) for sums in total)
    return Ranks(np.array(at, int), of_class, mean, grouped)


class Ranked(NamedTuple):
    """The area under the ROC curve and the average precision of class ``at``.

    ``values`` and ``influence`` are in the order of ``METRICS``; the latter are float64
    (n,), what each row adds to either. ``own`` are the numbers of the class's rows.
    """

    at: int
    own: np.ndarray
    values: tuple[float, float]
    influence: tuple[np.ndarray, np.ndarray]


def ranked(truth: np.ndarray, probabilities: np.ndarray) -> Iterator[Ranked]:
    """Each class that some rows have, and some have not.

    Args:
        truth: the column of each row's label, (n,); others than columns are no class,
            and such rows are among the rest of every class.
        probabilities: (n, K).
    """
    rows, k = probabilities.shape
    order = np.argsort(truth, kind="stable")
    first, end = (np.searchsorted(truth[order], range(k), s) for s in ("left", "right"))
    step = max(1, _BLOCK // (rows * probabilities.itemsize))
    for start in range(0, k, step):
        block = _turned(probabilities[:, start : start + step])
        for at, scores in enumerate(block, start):
            own = order[first[at] : end[at]]
            if 0 < len(own) < rows:
                yield _ranked(at, own, scores)


def _turned(columns: np.ndarray) -> np.ndarray:
    """The transpose of some ``columns`` (n, k), by steps that fit a cache."""
    found = np.empty(columns.shape[::-1], columns.dtype)
    for start in range(0, len(columns), _STEP):
        found[:, start : start + _STEP] = columns[start : start + _STEP].T
    return found


def _ranked(at: int, own: np.ndarray, scores: np.ndarray) -> Ranked:
    """Of class ``at``, whose rows are ``own``, by the ``scores`` of all rows (n,)."""
    levels, counts = np.unique(scores[own], return_counts=True)
    place = _places(levels, scores)
    here = place[own]
    # by place: positives below, on and above it, and the negatives on and above
    on, below = np.zeros((2, 2 * len(levels) + 1))
    on[1::2] = counts
    below[1:] = np.cumsum(on)[:-1]
    positives, negatives = len(own), len(scores) - len(own)
    above = positives - below - on
    others = np.bincount(place, minlength=len(on)) - on
    higher = negatives - np.cumsum(others)
    # of a negative: the share of positives above; of a positive: of negatives below
    of_negative = (above + on / 2) / positives
    of_positive = (negatives - higher - others / 2) / negatives
    area = float(on @ of_positive) / positives
    areas = (of_negative - area) / negatives * _unbiased(negatives)
    own_areas = (of_positive - area) / positives * _unbiased(positives)
    # precision at each level, and what one more row at or above it changes
    hits = above + on
    chosen = np.maximum(hits + higher + others, 1)
    precision = hits / chosen
    mean = float(on @ precision) / positives
    fewer = np.cumsum(on * hits / chosen**2)
    more = np.cumsum(on * (chosen - hits) / chosen**2)
    precisions = -fewer / positives
    own_precisions = (more + precision - mean) / positives
    influence = areas[place], precisions[place]
    influence[0][own], influence[1][own] = own_areas[here], own_precisions[here]
    return Ranked(at, own, (area, mean), influence)


def _places(levels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Where each score (n,) is among L sorted ``levels``: below 2 L + 1.

    Odd places are the levels themselves. Few levels are compared one by one, which is
    far quicker than to look for a place.
    """
    if len(levels) > _FEW:
        below = np.searchsorted(levels, scores)
        return below + np.searchsorted(levels, scores, side="right")
    place = np.zeros(len(scores), np.uint8)
    for level in levels:
        place += scores > level
        place += scores >= level
    return place.astype(np.intp)


def _unbiased(rows: int) -> float:
    return (rows / (rows - 1)) ** 0.5 if rows > 1 else 1.0

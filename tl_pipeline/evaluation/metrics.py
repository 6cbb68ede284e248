"""Scores of one classifier on one set of rows, by name, with 95 % intervals.

``METRICS`` is the table of them: a metric is a row, of a kind that knows its interval.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.sparse import csr_array

from tl_pipeline.evaluation import costs, intervals, one_vs_rest
from tl_pipeline.evaluation.intervals import LEVEL
from tl_pipeline.evaluation.predicted_rows import PredictedRows
from tl_pipeline.evaluation.scored_rows import Compared
from tl_pipeline.score import Score

RESAMPLES = 2000
TOP = 5
_BINS = 15
# Resamples, or units left out, at one time: memory stays bounded for many classes.
_STEP = 100
# Rows whose probabilities are compared at one time.
_ROWS = 1024


class Kind(Protocol):
    """How a metric is computed, and with it the interval."""

    def score(self, rows: PredictedRows) -> Score | None:
        """That of ``rows``; None where it is not defined."""
        ...


@dataclass(frozen=True)
class Share:
    """The share of rows of which ``of`` is true, bool (n,): see ``intervals.share``."""

    of: Callable[[PredictedRows], np.ndarray]

    def score(self, rows: PredictedRows) -> Score:
        """See ``Kind``."""
        return intervals.share(self.of(rows), rows.unit)


@dataclass(frozen=True)
class Mean:
    """The mean of ``of``, (n,) and none below 0: see ``intervals.mean``."""

    of: Callable[[PredictedRows], np.ndarray]

    def score(self, rows: PredictedRows) -> Score:
        """See ``Kind``."""
        return intervals.mean(self.of(rows), rows.unit)


class Priced:
    """The mean cost of a row; None where nothing is said of costs."""

    def score(self, rows: PredictedRows) -> Score | None:
        """See ``Kind``."""
        if not rows.costs:
            return None
        paid = costs.of_rows(rows.costs, rows.names, rows.truth, rows.predicted)
        return intervals.mean(paid, rows.unit)


@dataclass(frozen=True)
class Ranked:
    """The mean over classes of one of ``one_vs_rest.METRICS``."""

    name: str

    def score(self, rows: PredictedRows) -> Score | None:
        """See ``Kind``."""
        return rows.ranks.macro(self.name)


@dataclass(frozen=True)
class Plain:
    """A number without an interval."""

    of: Callable[[PredictedRows], float]

    def score(self, rows: PredictedRows) -> Score:
        """See ``Kind``."""
        return Score(value=self.of(rows))


@dataclass(frozen=True)
class Counts:
    """A number that follows from rows by class; the interval is a bootstrap's.

    ``of`` is handed how many rows of each class are right, are of it and are predicted
    as it, each (..., K), and gives numbers (...,) between ``least`` and 1. The interval
    is that of a percentile bootstrap (Efron & Tibshirani 1993, ch. 13), the same draws
    for all such metrics, without its bias (see ``_interval``); of units with several
    rows it is the jackknife's.
    """

    of: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    least: float = 0.0


@dataclass(frozen=True)
class Metric:
    """A row of ``METRICS``.

    It is left out below ``classes`` columns.
    """

    kind: Kind | Counts
    meaning: str
    classes: int = 1


def scores(rows: PredictedRows, seed: int) -> dict[str, Score]:
    """All of ``METRICS``; a label that is none of the classes counts as an error."""
    counts = _of_counts(rows, seed)
    found = {
        name: counts[name]
        if isinstance(metric.kind, Counts)
        else metric.kind.score(rows)
        for name, metric in METRICS.items()
        if len(rows.classes) >= metric.classes
    }
    return {name: score for name, score in found.items() if score}


def probability_scores(rows: PredictedRows) -> dict[str, Score]:
    """Those of ``METRICS`` that calibration changes: log loss, Brier score, ``ece``."""
    return {
        "log_loss": intervals.mean(_log_loss(rows), rows.unit),
        "brier": intervals.mean(_brier(rows), rows.unit),
        "ece": Score(value=_calibration_error(rows)),
    }


def value(name: str, rows: PredictedRows) -> float:
    """That of the metric ``name``, which ``rows`` must have, without an interval."""
    kind = METRICS[name].kind
    if not isinstance(kind, Counts):
        found = kind.score(rows)
        assert found is not None  # noqa: S101 - see above
        return found.value
    k = len(rows.names)
    hits = np.bincount(rows.truth[rows.right], minlength=k)
    sides = (np.bincount(side, minlength=k) for side in (rows.truth, rows.predicted))
    return float(kind.of(hits, *sides))


def paired_difference(name: str, both: Compared, seed: int) -> Score:
    """The metric ``name``, of ``Counts``, of the first minus that of the second.

    On the same rows: each draw of the bootstrap scores both. See ``Counts``.
    """
    kind = _COUNTED[name]
    said = np.concatenate([both.truth, both.first, both.second])
    names, said = np.unique(said, return_inverse=True)
    truth, *sides = said.reshape(3, -1)
    k, unit = len(names), np.unique(both.units, return_inverse=True)[1]
    number = int(unit.max()) + 1
    if number < len(unit):
        changes = [
            _left_out(truth, side, k, unit, {name: kind})[name] for side in sides
        ]
        (one, of_one), (other, of_other) = changes
        return intervals.statistic(one - other, of_one - of_other, -1.0)
    cells, counts = np.unique((truth * k + sides[0]) * k + sides[1], return_counts=True)
    true = _columns(cells // k**2, k)
    guessed = [_columns(cells // k % k, k), _columns(cells % k, k)]
    right = [csr_array(true.multiply(one)) for one in guessed]

    def of(drawn: np.ndarray) -> np.ndarray:
        one, other = (
            kind.of(drawn @ hits, drawn @ true, drawn @ guess)
            for hits, guess in zip(right, guessed, strict=True)
        )
        return one - other

    chance, shares = np.random.default_rng(seed), counts / len(truth)
    drawn = np.concatenate(
        [
            of(chance.multinomial(len(truth), shares, size=_STEP))
            for _ in range(0, RESAMPLES, _STEP)
        ]
    )
    value = float(of(counts[None])[0])
    low, high = _interval(value, drawn)
    return Score(value=value, low=low, high=high)


def decision_scores(
    right: np.ndarray,
    covered: np.ndarray,
    sizes: np.ndarray,
    accepted: np.ndarray,
    units: np.ndarray,
) -> dict[str, Score]:
    """What prediction sets and a threshold of acceptance came to, on n rows.

    ``set_coverage`` is the share of sets that hold the right label, ``set_size`` their
    mean size, ``accepted`` the share of accepted predictions, ``error_of_accepted`` the
    share of wrong ones among those; it is left out where nothing was accepted.

    Args:
        right: whether the prediction is right, bool (n,).
        covered: whether the set holds the right label, bool (n,).
        sizes: labels in each set, (n,).
        accepted: bool (n,).
        units: equal for rows that belong together, (n,).
    """
    found = {
        "set_coverage": intervals.share(covered, units),
        "set_size": intervals.mean(sizes, units),
        "accepted": intervals.share(accepted, units),
    }
    if accepted.any():
        wrong = ~right[accepted]
        found["error_of_accepted"] = intervals.share(wrong, units[accepted])
    return found


# Of counts by class: rows that are right, of a class, and predicted as it, (..., K).


def _balanced_accuracy(
    right: np.ndarray,
    true: np.ndarray,
    predicted: np.ndarray,  # noqa: ARG001 - the signature of such metrics
) -> np.ndarray:
    return _ratio(right, true).sum(axis=-1) / np.maximum((true > 0).sum(axis=-1), 1)


def _macro_recall(
    right: np.ndarray, true: np.ndarray, predicted: np.ndarray
) -> np.ndarray:
    return _ratio(right, true).sum(axis=-1) / _present(true, predicted)


def _macro_precision(
    right: np.ndarray, true: np.ndarray, predicted: np.ndarray
) -> np.ndarray:
    return _ratio(right, predicted).sum(axis=-1) / _present(true, predicted)


def _macro_f1(right: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return _f1(right, true, predicted).sum(axis=-1) / _present(true, predicted)


def _weighted_precision(
    right: np.ndarray, true: np.ndarray, predicted: np.ndarray
) -> np.ndarray:
    return (true * _ratio(right, predicted)).sum(axis=-1) / true.sum(axis=-1)


def _weighted_f1(
    right: np.ndarray, true: np.ndarray, predicted: np.ndarray
) -> np.ndarray:
    return (true * _f1(right, true, predicted)).sum(axis=-1) / true.sum(axis=-1)


def _matthews(right: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    of, by = _squares(true, true), _squares(predicted, predicted)
    together = _squares(right, true, predicted)
    return _ratio(together, np.sqrt(of * by))


def _kappa(right: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    rows = true.sum(axis=-1).astype(float)
    chance = (true * predicted).sum(axis=-1) / rows**2
    return _ratio(right.sum(axis=-1) / rows - chance, 1 - chance)


def _squares(
    right: np.ndarray, true: np.ndarray, predicted: np.ndarray | None = None
) -> np.ndarray:
    predicted = true if predicted is None else predicted
    rows = true.sum(axis=-1).astype(float)
    hits = rows if right is true else right.sum(axis=-1)
    return hits * rows - (true * predicted).sum(axis=-1)


def _f1(right: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return _ratio(2 * right, true + predicted)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """0 where ``whole`` is."""
    return np.divide(part, whole, out=np.zeros(whole.shape), where=whole > 0)


def _present(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """How many classes are true or predicted somewhere."""
    return np.maximum((true + predicted > 0).sum(axis=-1), 1)


# Of rows.


def _in_top(rows: PredictedRows) -> np.ndarray:
    """Whether fewer than ``TOP`` classes are more probable than the label, (n,)."""
    own = rows.of_truth[:, None]
    above = [
        (rows.probabilities[at : at + _ROWS] > own[at : at + _ROWS]).sum(axis=1)
        for at in range(0, len(own), _ROWS)
    ]
    return (np.concatenate(above) < TOP) & rows.known


def _log_loss(rows: PredictedRows) -> np.ndarray:
    floor = float(np.finfo(np.float32).eps)
    return -np.log(np.clip(rows.of_truth, floor, 1.0))


def _brier(rows: PredictedRows) -> np.ndarray:
    squares = np.einsum(
        "ij,ij->i", rows.probabilities, rows.probabilities, dtype=np.float64
    )  # no table of squares
    return squares - 2 * rows.of_truth + 1


def _calibration_error(rows: PredictedRows) -> float:
    confidence = rows.probabilities.max(axis=1).astype(np.float64)
    place = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    gaps = np.bincount(place, weights=confidence - rows.right, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


METRICS: Mapping[str, Metric] = {
    "accuracy": Metric(
        Share(lambda rows: rows.right), "the share of right predictions"
    ),
    "balanced_accuracy": Metric(
        Counts(_balanced_accuracy), "mean recall of the classes that have images"
    ),
    "macro_precision": Metric(
        Counts(_macro_precision), "mean precision of the classes that occur"
    ),
    "macro_recall": Metric(
        Counts(_macro_recall),
        "mean recall of the classes that occur, as labels or as predictions",
    ),
    "macro_f1": Metric(Counts(_macro_f1), "mean F1 of the classes that occur"),
    "weighted_precision": Metric(
        Counts(_weighted_precision),
        "mean precision by images of each class; recall so weighted is accuracy",
    ),
    "weighted_f1": Metric(Counts(_weighted_f1), "mean F1 by images of each class"),
    "mcc": Metric(Counts(_matthews, -1.0), "Matthews' correlation coefficient"),
    "kappa": Metric(Counts(_kappa, -1.0), "Cohen's kappa"),
    costs.COST: Metric(Priced(), "mean cost of the errors, by costs in the catalogue"),
    f"top_{TOP}_accuracy": Metric(
        Share(_in_top),
        f"the share of labels among the {TOP} most probable classes",
        classes=TOP + 1,
    ),
    "log_loss": Metric(
        Mean(_log_loss),
        "mean of -log p of the label, p clipped at the float32 epsilon",
    ),
    "brier": Metric(
        Mean(_brier),
        "mean squared distance of the probabilities from 1 for the label and 0 for "
        "others, between 0 and 2 (Brier 1950, Monthly Weather Review 78)",
    ),
    # a bootstrap would add to what few rows have by chance
    "ece": Metric(
        Plain(_calibration_error),
        "expected calibration error (Guo et al. 2017): in 15 bins of equal width by "
        "confidence, the mean distance of confidence and accuracy",
    ),
    one_vs_rest.AUC: Metric(
        Ranked(one_vs_rest.AUC),
        "mean over classes of the area under the ROC curve against the rest; of two "
        "classes it is the area",
        classes=2,
    ),
    one_vs_rest.AVERAGE_PRECISION: Metric(
        Ranked(one_vs_rest.AVERAGE_PRECISION),
        "mean over classes of the average precision against the rest",
        classes=2,
    ),
}
_COUNTED = {
    name: metric.kind
    for name, metric in METRICS.items()
    if isinstance(metric.kind, Counts)
}


def _of_counts(rows: PredictedRows, seed: int) -> dict[str, Score]:
    both = np.concatenate([rows.truth, rows.predicted])
    names, both = np.unique(both, return_inverse=True)
    truth, predicted = both[: len(rows.truth)], both[len(rows.truth) :]
    if rows.grouped:
        return _units_left_out(truth, predicted, len(names), rows.unit)
    return _resampled(truth, predicted, len(names), seed)


def _resampled(
    truth: np.ndarray, predicted: np.ndarray, k: int, seed: int
) -> dict[str, Score]:
    # Drawing n rows with replacement and counting them by (truth, predicted) is one
    # multinomial draw over the cells: the same distribution without touching a row.
    # Empty cells are never drawn, so only the others are kept.
    cells, counts = np.unique(truth * k + predicted, return_counts=True)
    by_truth, by_prediction = _columns(cells // k, k), _columns(cells % k, k)
    by_hit = csr_array(by_truth.multiply(by_prediction))

    def of(drawn: np.ndarray) -> dict[str, np.ndarray]:
        classes = [drawn @ by for by in (by_hit, by_truth, by_prediction)]
        return {name: kind.of(*classes) for name, kind in _COUNTED.items()}

    chance, shares = np.random.default_rng(seed), counts / len(truth)
    draws = [
        of(chance.multinomial(len(truth), shares, size=_STEP))
        for _ in range(0, RESAMPLES, _STEP)
    ]
    found = {}
    for name, (value,) in of(counts[None]).items():
        drawn = np.concatenate([draw[name] for draw in draws])
        low, high = np.clip(_interval(value, drawn), _COUNTED[name].least, 1.0)
        found[name] = Score(value=float(value), low=float(low), high=float(high))
    return found


def _interval(value: float, drawn: np.ndarray) -> tuple[float, float]:
    """Percentiles of ``drawn``, moved by twice the bias that they show.

    Resamples of few rows a class lie beside the ``value`` of the sample as it lies
    beside the truth (Efron & Tibshirani 1993, ch. 10), all on one side in the end.
    """
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    moved = 2 * (float(drawn.mean()) - value)
    return float(low) - moved, float(high) - moved


def _units_left_out(
    truth: np.ndarray, predicted: np.ndarray, k: int, position: np.ndarray
) -> dict[str, Score]:
    """The jackknife over units, whose numbers ``position`` (n,) holds."""
    found = _left_out(truth, predicted, k, position, _COUNTED)
    return {
        name: intervals.statistic(value, changes, _COUNTED[name].least)
        for name, (value, changes) in found.items()
    }


def _left_out(
    truth: np.ndarray,
    predicted: np.ndarray,
    k: int,
    position: np.ndarray,
    kinds: Mapping[str, Counts],
) -> dict[str, tuple[float, np.ndarray]]:
    """By name the value, and what leaving out each unit takes off it, (units,)."""
    hits = truth == predicted
    of_rows = [(position[hits], truth[hits]), (position, truth), (position, predicted)]
    totals = [np.bincount(classes, minlength=k) for _, classes in of_rows]
    number = int(position.max()) + 1
    of_units = [
        csr_array((np.ones(len(at), np.int64), (at, classes)), shape=(number, k))
        for at, classes in of_rows
    ]
    found = {}
    for name, kind in kinds.items():
        value = float(kind.of(*totals))
        without = np.concatenate(
            [
                kind.of(
                    *(
                        total - of[first : first + _STEP].toarray()
                        for total, of in zip(totals, of_units, strict=True)
                    )
                )
                for first in range(0, number, _STEP)
            ]
        )
        found[name] = value, value - without
    return found


def _columns(classes: np.ndarray, k: int) -> csr_array:
    """(cells, k): 1 in the column of each cell's class."""
    rows = np.arange(len(classes))
    return csr_array(
        (np.ones(len(classes), np.int64), (rows, classes)), shape=(len(classes), k)
    )

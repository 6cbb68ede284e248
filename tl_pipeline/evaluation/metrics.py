"""Scores of one classifier on one set of rows, by name, with 95 % intervals.

``units`` (n,) are equal for rows that belong together, such as images of one group: all
intervals count such rows as ``intervals`` says.
"""

from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_array

from tl_pipeline.evaluation import intervals
from tl_pipeline.evaluation.intervals import LEVEL
from tl_pipeline.score import Score

RESAMPLES = 2000
_BINS = 15
# Resamples, or units left out, at one time: memory stays bounded for many classes.
_STEP = 100

# Of (right, true, predicted) rows by class, each (..., K), a number (...,).
_Macro = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def scores(
    labels: np.ndarray,
    classes: list[str],
    probabilities: np.ndarray,
    units: np.ndarray,
    seed: int,
) -> dict[str, Score]:
    """Accuracy, balanced accuracy, macro F1, and ``probability_scores``.

    ``labels`` are names of shape (n,); ``probabilities`` is of shape (n, n_classes)
    with columns in the order of ``classes``. A label that is not among the classes
    counts as an error: the classifier cannot name it.

    The intervals of balanced accuracy and macro F1 are those of a percentile bootstrap
    (Efron & Tibshirani 1993, ch. 13); of units with several rows, the jackknife's.
    """
    truth = _numbered(labels, classes)
    predicted = probabilities.argmax(axis=1)
    return {
        "accuracy": intervals.share(predicted == truth, units),
        **_macro_scores(truth, predicted, units, seed),
        **_of_probabilities(truth, probabilities, units),
    }


def probability_scores(
    labels: np.ndarray,
    classes: list[str],
    probabilities: np.ndarray,
    units: np.ndarray,
) -> dict[str, Score]:
    """Log loss, Brier score and ``ece``, of what ``scores`` takes.

    Log loss is the mean of -log p, p clipped at the float32 epsilon; the Brier score
    (1950, Monthly Weather Review 78) the mean squared distance of the probabilities
    from 1 for the label and 0 for the others, between 0 and 2. ``ece`` is the expected
    calibration error of Guo et al. 2017: in 15 bins of equal width by confidence, the
    mean distance between confidence and accuracy, weighted by rows. It has no interval:
    over few rows it is too large by chance alone, and a bootstrap would add to that.
    """
    return _of_probabilities(_numbered(labels, classes), probabilities, units)


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
        units: see the module.
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


def balanced_accuracy(
    right: np.ndarray,
    true: np.ndarray,
    predicted: np.ndarray,  # noqa: ARG001 - the signature of macro scores
) -> np.ndarray:
    """Mean recall over the classes that have rows; of counts by class, (..., K)."""
    recall = np.divide(right, true, out=np.zeros(true.shape), where=true > 0)
    return recall.sum(axis=-1) / np.maximum((true > 0).sum(axis=-1), 1)


def macro_f1(right: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Mean F1 over the classes that are true or predicted somewhere; (..., K)."""
    both = true + predicted
    f1 = np.divide(2 * right, both, out=np.zeros(both.shape), where=both > 0)
    return f1.sum(axis=-1) / np.maximum((both > 0).sum(axis=-1), 1)


_MACRO: dict[str, _Macro] = {
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
}


def _numbered(labels: np.ndarray, classes: list[str]) -> np.ndarray:
    """The number of each label; those that are no classes come last."""
    names = [*classes, *sorted(set(labels) - set(classes))]
    position = {name: i for i, name in enumerate(names)}
    return np.array([position[name] for name in labels])


def _of_probabilities(
    truth: np.ndarray, probabilities: np.ndarray, units: np.ndarray
) -> dict[str, Score]:
    own = _own(truth, probabilities)
    floor = float(np.finfo(np.float32).eps)
    squares = np.square(probabilities, dtype=np.float64).sum(axis=1)
    return {
        "log_loss": intervals.mean(-np.log(np.clip(own, floor, 1.0)), units),
        "brier": intervals.mean(squares - 2 * own + 1, units),
        "ece": Score(value=_calibration_error(truth, probabilities)),
    }


def _macro_scores(
    truth: np.ndarray, predicted: np.ndarray, units: np.ndarray, seed: int
) -> dict[str, Score]:
    names, both = np.unique(np.concatenate([truth, predicted]), return_inverse=True)
    truth, predicted = both[: len(truth)], both[len(truth) :]
    position = np.unique(units, return_inverse=True)[1]
    if position.max() + 1 == len(truth):
        return _resampled(truth, predicted, len(names), seed)
    return _units_left_out(truth, predicted, len(names), position)


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
        return {name: score(*classes) for name, score in _MACRO.items()}

    chance, shares = np.random.default_rng(seed), counts / len(truth)
    draws = [
        of(chance.multinomial(len(truth), shares, size=_STEP))
        for _ in range(0, RESAMPLES, _STEP)
    ]
    found = {}
    for name, value in of(counts[None]).items():
        drawn = np.concatenate([draw[name] for draw in draws])
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        found[name] = Score(value=float(value[0]), low=float(low), high=float(high))
    return found


def _units_left_out(
    truth: np.ndarray, predicted: np.ndarray, k: int, position: np.ndarray
) -> dict[str, Score]:
    """The jackknife over units, whose numbers ``position`` (n,) holds."""
    hits = truth == predicted
    of_rows = [(position[hits], truth[hits]), (position, truth), (position, predicted)]
    totals = [np.bincount(classes, minlength=k) for _, classes in of_rows]
    number = int(position.max()) + 1
    of_units = [
        csr_array((np.ones(len(at), np.int64), (at, classes)), shape=(number, k))
        for at, classes in of_rows
    ]
    found = {}
    for name, score in _MACRO.items():
        value = float(score(*totals))
        without = np.concatenate(
            [
                score(
                    *(
                        total - of[first : first + _STEP].toarray()
                        for total, of in zip(totals, of_units, strict=True)
                    )
                )
                for first in range(0, number, _STEP)
            ]
        )
        found[name] = intervals.statistic(value, value - without)
    return found


def _columns(classes: np.ndarray, k: int) -> csr_array:
    """(cells, k): 1 in the column of each cell's class."""
    rows = np.arange(len(classes))
    return csr_array(
        (np.ones(len(classes), np.int64), (rows, classes)), shape=(len(classes), k)
    )


def _calibration_error(truth: np.ndarray, probabilities: np.ndarray) -> float:
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == truth
    place = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    gaps = np.bincount(place, weights=confidence - right, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(truth))


def _own(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The probability of each row's label; 0 for one that is not among the classes."""
    known = truth < probabilities.shape[1]
    own = np.zeros(len(truth))
    own[known] = probabilities[np.flatnonzero(known), truth[known]]
    return own

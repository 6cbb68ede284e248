"""Scores of one classifier on one set of rows, with 95 % intervals."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 2000
_BINS = 15


@dataclass(frozen=True)
class Score:
    """A metric's value and its 95 % interval; None where there is no interval."""

    metric: str
    value: float
    low: float | None
    high: float | None


def scores(
    labels: np.ndarray, classes: list[str], probabilities: np.ndarray, seed: int
) -> list[Score]:
    """Accuracy, balanced accuracy, macro F1, and ``probability_scores``.

    ``labels`` are names of shape (n,); ``probabilities`` is of shape (n, n_classes)
    with columns in the order of ``classes``. A label that is not among the classes
    counts as an error: the classifier cannot name it.

    The interval of accuracy is Wilson's (1927, JASA 22); balanced accuracy and macro F1
    have percentile bootstrap intervals (Efron & Tibshirani 1993, ch. 13).
    """
    names, truth = _numbered(labels, classes)
    predicted = probabilities.argmax(axis=1)
    confusion = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion, (truth, predicted), 1)
    return [
        _accuracy(confusion),
        *_resampled(confusion, seed),
        *_of_probabilities(truth, probabilities),
    ]


def probability_scores(
    labels: np.ndarray, classes: list[str], probabilities: np.ndarray
) -> list[Score]:
    """Log loss, Brier score and ``ece``, of what ``scores`` takes.

    Log loss is the mean of -log p, p clipped at the float32 epsilon; the Brier score
    (1950, Monthly Weather Review 78) the mean squared distance of the probabilities
    from 1 for the label and 0 for the others, between 0 and 2. Both have normal
    intervals. ``ece`` is the expected calibration error of Guo et al. 2017: in 15 bins
    of equal width by confidence, the mean distance between confidence and accuracy,
    weighted by rows. It has no interval: over few rows it is too large by chance alone,
    and a bootstrap would add to that.
    """
    return _of_probabilities(_numbered(labels, classes)[1], probabilities)


def decision_scores(
    right: np.ndarray, held: np.ndarray, sizes: np.ndarray, accepted: np.ndarray
) -> list[Score]:
    """What sets of labels and a threshold of acceptance came to, on n rows.

    ``set_coverage`` is the share of sets that hold the right label, ``set_size`` their
    mean size, ``accepted`` the share of accepted predictions, ``error_of_accepted`` the
    share of wrong ones among those; it is left out where nothing was accepted. Shares
    have Wilson's interval, the mean a normal one.

    Args:
        right: whether the prediction is right, bool (n,).
        held: whether the set holds the right label, bool (n,).
        sizes: labels in each set, (n,).
        accepted: bool (n,).
    """
    found = [
        _share("set_coverage", int(held.sum()), len(held)),
        _mean("set_size", sizes),
        _share("accepted", int(accepted.sum()), len(accepted)),
    ]
    if accepted.any():
        wrong = int((accepted & ~right).sum())
        found.append(_share("error_of_accepted", wrong, int(accepted.sum())))
    return found


def fold_scores(rows: int, accuracy: float, log_loss: float) -> list[Score]:
    """What is known over the ``rows`` of all folds, with Wilson's interval of accuracy.

    It takes the rows for independent, though the heads of two folds learned from many
    of the same ones. A mean alone tells no interval of the log loss.
    """
    return [
        _share("accuracy", round(accuracy * rows), rows),
        Score("log_loss", log_loss, None, None),
    ]


def balanced_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Mean recall over the classes that have rows.

    ``confusion`` counts rows by (truth, predicted), of shape (..., k, k).
    """
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    rows = confusion.sum(axis=-1)
    recall = np.divide(right, rows, out=np.zeros(rows.shape), where=rows > 0)
    return recall.sum(axis=-1) / np.maximum((rows > 0).sum(axis=-1), 1)


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """Mean F1 over the classes that are true or predicted somewhere."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    both = confusion.sum(axis=-1) + confusion.sum(axis=-2)
    f1 = np.divide(2 * right, both, out=np.zeros(both.shape), where=both > 0)
    return f1.sum(axis=-1) / np.maximum((both > 0).sum(axis=-1), 1)


def _numbered(labels: np.ndarray, classes: list[str]) -> tuple[list[str], np.ndarray]:
    """All names, those that are no classes last, and the number of each label."""
    names = [*classes, *sorted(set(labels) - set(classes))]
    position = {name: i for i, name in enumerate(names)}
    return names, np.array([position[name] for name in labels])


def _of_probabilities(truth: np.ndarray, probabilities: np.ndarray) -> list[Score]:
    return [
        _log_loss(truth, probabilities),
        _brier(truth, probabilities),
        _calibration_error(truth, probabilities),
    ]


def _accuracy(confusion: np.ndarray) -> Score:
    return _share("accuracy", int(np.trace(confusion)), int(confusion.sum()))


def _resampled(confusion: np.ndarray, seed: int) -> list[Score]:
    # Drawing n rows with replacement and counting them by (truth, predicted) is one
    # multinomial draw over the cells: the same distribution without touching a row.
    # Empty cells are never drawn, and only the rest is resampled.
    rows, k = int(confusion.sum()), len(confusion)
    cells = np.flatnonzero(confusion)
    shares = confusion.ravel()[cells] / rows
    chance = np.random.default_rng(seed)
    draws = {"balanced_accuracy": [], "macro_f1": []}
    for _ in range(0, RESAMPLES, 100):  # bounded memory for many classes
        block = np.zeros((100, k * k), np.int64)
        block[:, cells] = chance.multinomial(rows, shares, size=100)
        block = block.reshape(100, k, k)
        draws["balanced_accuracy"].append(balanced_accuracy(block))
        draws["macro_f1"].append(macro_f1(block))
    values = {
        "balanced_accuracy": balanced_accuracy(confusion),
        "macro_f1": macro_f1(confusion),
    }
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    result = []
    for name, drawn in draws.items():
        low, high = np.quantile(np.concatenate(drawn), tails)
        result.append(Score(name, float(values[name]), float(low), float(high)))
    return result


def _log_loss(truth: np.ndarray, probabilities: np.ndarray) -> Score:
    floor = float(np.finfo(np.float32).eps)
    given = _given(truth, probabilities)
    return _mean("log_loss", -np.log(np.clip(given, floor, 1.0)))


def _brier(truth: np.ndarray, probabilities: np.ndarray) -> Score:
    squares = np.square(probabilities, dtype=np.float64).sum(axis=1)
    return _mean("brier", squares - 2 * _given(truth, probabilities) + 1)


def _calibration_error(truth: np.ndarray, probabilities: np.ndarray) -> Score:
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == truth
    place = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    gaps = np.bincount(place, weights=confidence - right, minlength=_BINS)
    return Score("ece", float(np.abs(gaps).sum() / len(truth)), None, None)


def _given(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The probability of each row's label; 0 for one that is not among the classes."""
    known = truth < probabilities.shape[1]
    given = np.zeros(len(truth))
    given[known] = probabilities[np.flatnonzero(known), truth[known]]
    return given


def _share(metric: str, successes: int, rows: int) -> Score:
    interval = stats.binomtest(successes, rows).proportion_ci(LEVEL, method="wilson")
    return Score(metric, successes / rows, float(interval.low), float(interval.high))


def _mean(metric: str, values: np.ndarray) -> Score:
    """The mean of values that are not below 0, with a normal interval."""
    value = float(values.mean())
    spread = float(stats.sem(values)) if len(values) > 1 else 0.0
    margin = float(stats.norm.ppf((1 + LEVEL) / 2)) * spread
    return Score(metric, value, max(value - margin, 0.0), value + margin)

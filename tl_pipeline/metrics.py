"""Scores of one classifier on one set of rows, with 95 % intervals."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 2000


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
    """Accuracy, balanced accuracy, macro F1, and log loss.

    ``labels`` are names of shape (n,); ``probabilities`` is of shape (n, n_classes)
    with columns in the order of ``classes``. A label that is not among the classes
    counts as an error: the classifier cannot name it.

    The interval of accuracy is Wilson's (1927, JASA 22); balanced accuracy and macro F1
    have percentile bootstrap intervals (Efron & Tibshirani 1993, ch. 13). Log loss is
    the mean of -log p, p clipped at the float32 epsilon, with a normal interval.
    """
    names = [*classes, *sorted(set(labels) - set(classes))]
    position = {name: i for i, name in enumerate(names)}
    truth = np.array([position[name] for name in labels])
    predicted = probabilities.argmax(axis=1)
    confusion = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion, (truth, predicted), 1)
    return [
        _accuracy(confusion),
        *_resampled(confusion, seed),
        _log_loss(truth, probabilities),
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


def _accuracy(confusion: np.ndarray) -> Score:
    right, rows = int(np.trace(confusion)), int(confusion.sum())
    interval = stats.binomtest(right, rows).proportion_ci(LEVEL, method="wilson")
    return Score("accuracy", right / rows, float(interval.low), float(interval.high))


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
    known = truth < probabilities.shape[1]
    given = np.zeros(len(truth))
    given[known] = probabilities[np.flatnonzero(known), truth[known]]
    losses = -np.log(np.clip(given, floor, 1.0))
    value = float(losses.mean())
    spread = float(stats.sem(losses)) if len(losses) > 1 else 0.0
    margin = float(stats.norm.ppf((1 + LEVEL) / 2)) * spread
    return Score("log_loss", value, max(value - margin, 0.0), value + margin)

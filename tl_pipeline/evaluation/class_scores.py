"""Scores of each class of one classifier on one set of rows, with 95 % intervals.

Recall and precision are shares of rows, and so is what F1 is made of: with J the share
of hits among rows that are of the class or are predicted as it, F1 = 2 J / (1 + J). So
all three have Wilson's interval (``intervals.shares``). The area under the ROC curve
and average precision have it too, of as many rows as give the variance that
``one_vs_rest`` knows.
"""

import numpy as np
import pyarrow as pa

from tl_pipeline.evaluation import intervals, one_vs_rest
from tl_pipeline.evaluation.intervals import Shares, Spread

METRICS = ("precision", "recall", "f1", *one_vs_rest.METRICS)


def class_scores(
    labels: np.ndarray,
    classes: list[str],
    probabilities: np.ndarray,
    units: np.ndarray,
) -> pa.Table:
    """Precision, recall, F1, ROC AUC and average precision of each class.

    A metric that is not defined has no row: recall, ROC AUC and average precision of a
    class that no row has, precision of one that is never predicted.

    Args:
        labels: names, (n,). One that is not among the classes has a recall and an F1
            of 0; its rows are among the rest of every class.
        classes: those of the columns.
        probabilities: (n, n_classes).
        units: (n,), equal for rows that belong together.

    Returns:
        The columns ``label``, ``metric`` (of ``METRICS``), ``value``, ``low``, ``high``
        and ``images``, which is the number of rows that have the label.
    """
    names, number = np.unique(labels, return_inverse=True)
    place = {name: at for at, name in enumerate(classes)}
    every = [*classes, *(name for name in names.tolist() if name not in place)]
    place = {name: at for at, name in enumerate(every)}
    truth = np.array([place[name] for name in names.tolist()], int)[number]
    predicted, k = probabilities.argmax(axis=1), len(every)
    right, unit = truth == predicted, np.unique(units, return_inverse=True)[1]
    missed = ~right
    both = intervals.shares(
        np.concatenate([right, np.zeros(missed.sum(), bool)]),
        np.concatenate([truth, predicted[missed]]),
        k,
        np.concatenate([unit, unit[missed]]),
    )
    shares = (
        intervals.shares(right, predicted, k, unit),
        intervals.shares(right, truth, k, unit),
        Shares(*(2 * part / (1 + part) for part in both)),
        *_ranked(truth, probabilities, unit, k),
    )
    return _table(every, shares, np.bincount(truth, minlength=k))


def _ranked(
    truth: np.ndarray, probabilities: np.ndarray, unit: np.ndarray, k: int
) -> list[Shares]:
    """Of each of ``one_vs_rest.METRICS``."""
    units = int(unit.max(initial=0)) + 1
    grouped = unit if units < len(unit) else None
    at: list[int] = []
    positives: list[int] = []
    values: list[tuple[float, float]] = []
    spreads: list[tuple[Spread, ...]] = []
    for one in one_vs_rest.ranked(truth, probabilities):
        at.append(one.at)
        positives.append(len(np.unique(unit[one.own])))
        values.append(one.values)
        spreads.append(tuple(Spread.of(each, grouped) for each in one.influence))
    found = []
    for metric in range(len(one_vs_rest.METRICS)):
        scores = intervals.by_influence(
            np.array([value[metric] for value in values]),
            [spread[metric] for spread in spreads],
            units,
            np.array(positives),
        )
        columns = np.full((3, k), np.nan)
        columns[:, at] = scores
        found.append(Shares(*columns))
    return found


def _table(
    names: list[str], shares: tuple[Shares, ...], images: np.ndarray
) -> pa.Table:
    """The rows by class, then by metric."""
    value, low, high = (
        np.stack(columns, axis=1) for columns in zip(*shares, strict=True)
    )
    defined = ~np.isnan(value)
    label, metric = np.nonzero(defined)
    return pa.table(
        {
            "label": pa.array(names, pa.string()).take(pa.array(label)),
            "metric": pa.array(METRICS, pa.string()).take(pa.array(metric)),
            "value": value[defined],
            "low": low[defined],
            "high": high[defined],
            "images": images[label],
        }
    )

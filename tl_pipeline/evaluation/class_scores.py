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
from tl_pipeline.evaluation.intervals import Shares
from tl_pipeline.evaluation.predicted_rows import PredictedRows

METRICS = ("precision", "recall", "f1", *one_vs_rest.METRICS)


def class_scores(rows: PredictedRows) -> pa.Table:
    """Precision, recall, F1, ROC AUC and average precision of each class of ``rows``.

    A metric that is not defined has no row: recall, ROC AUC and average precision of a
    class that no row has, precision of one that is never predicted. A label that is
    none of the classes has a recall and an F1 of 0; its rows are among the rest of
    every class.

    Returns:
        The columns ``label``, ``metric`` (of ``METRICS``), ``value``, ``low``, ``high``
        and ``images``, which is the number of rows that have the label.
    """
    truth, predicted, unit = rows.truth, rows.predicted, rows.unit
    right, k, missed = rows.right, len(rows.names), ~rows.right
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
        *(_of_all(one, rows.ranks.at, k) for one in rows.ranks.of_class),
    )
    return _table(rows.names, shares, np.bincount(truth, minlength=k))


def _of_all(some: Shares, at: np.ndarray, k: int) -> Shares:
    """``some``, the scores of the classes ``at``, among those of all ``k``."""
    columns = np.full((3, k), np.nan)
    columns[:, at] = some
    return Shares(*columns)


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

"""Calibrate a candidate by held-out rows, and score it on them and on test."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from tl_pipeline.data.splits import TEST, TRAIN
from tl_pipeline.evaluation import operating_point
from tl_pipeline.evaluation.averaging import Predictions
from tl_pipeline.evaluation.class_scores import class_scores
from tl_pipeline.evaluation.costs import Costs
from tl_pipeline.evaluation.cross_fitting import Validated
from tl_pipeline.evaluation.metrics import (
    decision_scores,
    probability_scores,
    scores,
)
from tl_pipeline.evaluation.operating_point import OperatingPoint
from tl_pipeline.evaluation.predicted_rows import PredictedRows
from tl_pipeline.score import Score

# Of test, as the head gave them: what calibration was good for.
BEFORE = "_uncalibrated"


@dataclass(frozen=True)
class Scored:
    """A candidate: its operating point, and by split what it said and how good that is.

    Probabilities are calibrated. ``class_scores`` are those of the function of this
    name, ``images`` the rows that were scored. Of train, which the head learned from,
    only scores are kept.
    """

    point: OperatingPoint
    predictions: dict[str, Predictions]
    images: dict[str, int]
    scores: dict[str, dict[str, Score]]
    class_scores: dict[str, pa.Table]


def score(
    split: str,
    held_out: Validated,
    test: Predictions,
    test_units: np.ndarray,
    method: str,
    error: float,
    seed: int,
    learned: tuple[Predictions, np.ndarray] | None = None,
    *,
    costs: Costs | None = None,
) -> Scored:
    """Learn the operating point of a candidate from ``held_out``, and score it on all.

    Args:
        split: what the images of ``held_out`` are called.
        held_out: what heads said of images that they did not learn from.
        test: what is said of test, before calibration.
        test_units: equal for rows of test of one group, (n,).
        method: one of ``calibration.METHODS``.
        error: the rate to which the operating point keeps.
        seed: that of the bootstrap.
        learned: what it says of rows of train, before calibration, and their units.
        costs: which errors are worse than others.
    """
    rows, cross_fitted = held_out.predictions, held_out.calibrated
    point = operating_point.fit(
        method,
        rows.probabilities,
        cross_fitted,
        rows.targets(),
        held_out.units,
        error,
    )
    raw = test.probabilities
    predictions = {
        split: replace(rows, probabilities=cross_fitted),
        TEST: replace(test, probabilities=point.calibration.apply(raw)),
    }
    costs = costs or {}
    shown = {
        split: _rows(predictions[split], held_out.units, costs),
        TEST: _rows(predictions[TEST], test_units, costs),
    }
    if learned:
        said, units = learned
        calibrated = point.calibration.apply(said.probabilities)
        shown[TRAIN] = _rows(replace(said, probabilities=calibrated), units, costs)
    found = {side: scores(rows, seed) for side, rows in shown.items()}
    found[TEST] |= _of_decisions(point, raw, shown[TEST])
    return Scored(
        point,
        predictions,
        {side: len(rows.labels) for side, rows in shown.items()},
        found,
        {side: class_scores(rows) for side, rows in shown.items()},
    )


def _of_decisions(
    point: OperatingPoint, raw: np.ndarray, rows: PredictedRows
) -> dict[str, Score]:
    """Scores of the decisions on ``rows``, whose probabilities are calibrated.

    With the suffix ``BEFORE`` stands how good ``raw`` ones, (n, K), were before it.
    """
    found: dict[str, Score] = {}
    if point.calibration.method != "none":
        before = probability_scores(replace(rows, probabilities=raw))
        found = {f"{metric}{BEFORE}": score for metric, score in before.items()}
    targets = np.where(rows.known, rows.truth, -1)
    sets = point.sets(rows.probabilities)
    return found | decision_scores(
        right=rows.right,
        covered=operating_point.covered(sets, targets),
        sizes=sets.sum(axis=1),
        accepted=point.accepted(rows.probabilities),
        units=rows.unit,
    )


def _rows(said: Predictions, units: np.ndarray, costs: Costs) -> PredictedRows:
    return PredictedRows(said.names(), said.classes, said.probabilities, units, costs)

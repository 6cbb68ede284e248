"""Calibrate a candidate by held-out rows, and score it on them and on test."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from tl_pipeline.data.splits import TEST
from tl_pipeline.evaluation import operating_point
from tl_pipeline.evaluation.averaging import Predictions
from tl_pipeline.evaluation.class_scores import class_scores
from tl_pipeline.evaluation.cross_fitting import Validated
from tl_pipeline.evaluation.metrics import (
    decision_scores,
    probability_scores,
    scores,
)
from tl_pipeline.evaluation.operating_point import OperatingPoint
from tl_pipeline.score import Score

# Of test, as the head gave them: what calibration was good for.
BEFORE = "_uncalibrated"


@dataclass(frozen=True)
class Scored:
    """A candidate: its operating point, and by split what it said and how good that is.

    Probabilities are calibrated. ``class_scores`` are those of the function of this
    name.
    """

    point: OperatingPoint
    predictions: dict[str, Predictions]
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
) -> Scored:
    """Learn the operating point of a candidate from ``held_out``, and score it on both.

    Args:
        split: what the images of ``held_out`` are called.
        held_out: what heads said of images that they did not learn from.
        test: what is said of test, before calibration.
        test_units: equal for rows of test of one group, (n,).
        method: one of ``calibration.METHODS``.
        error: the rate to which the operating point keeps.
        seed: that of the bootstrap.
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
    units = {split: held_out.units, TEST: test_units}
    return Scored(
        point,
        predictions,
        scores={
            split: scores(
                rows.names(), rows.classes, cross_fitted, held_out.units, seed
            ),
            TEST: scores_at(point, raw, test.names(), test.classes, test_units, seed),
        },
        class_scores={
            side: class_scores(
                said.names(), said.classes, said.probabilities, units[side]
            )
            for side, said in predictions.items()
        },
    )


def scores_at(
    point: OperatingPoint,
    raw_proba: np.ndarray,
    labels: np.ndarray,
    classes: list[str],
    units: np.ndarray,
    seed: int,
) -> dict[str, Score]:
    """What comes of probabilities (n, K) before calibration.

    Beside the scores of the calibrated ones stand those of the decisions and, with the
    suffix ``BEFORE``, how good the probabilities were before it. ``labels`` are names
    (n,), ``classes`` those of the columns.
    """
    calibrated = point.calibration.apply(raw_proba)
    targets = targets_of(labels, classes)
    sets = point.sets(calibrated)
    found = scores(labels, classes, calibrated, units, seed)
    if point.calibration.method != "none":
        before = probability_scores(labels, classes, raw_proba, units)
        found |= {f"{metric}{BEFORE}": score for metric, score in before.items()}
    return found | decision_scores(
        right=calibrated.argmax(axis=1) == targets,
        covered=operating_point.covered(sets, targets),
        sizes=sets.sum(axis=1),
        accepted=point.accepted(calibrated),
        units=units,
    )


def targets_of(labels: np.ndarray, classes: list[str]) -> np.ndarray:
    """The class number of each row (n,); -1 for a label that is none of ``classes``."""
    position = {name: k for k, name in enumerate(classes)}
    return np.array([position.get(name, -1) for name in labels])

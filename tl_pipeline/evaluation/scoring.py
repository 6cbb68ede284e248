"""Score fitted heads on held-out rows, choose among them, calibrate the chosen one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tl_pipeline.data.splits import TEST, VALIDATION
from tl_pipeline.evaluation import calibration, operating_point
from tl_pipeline.evaluation.averaging import Predictions
from tl_pipeline.evaluation.cross_fitting import Validated
from tl_pipeline.evaluation.metrics import (
    decision_scores,
    probability_scores,
    scores,
)
from tl_pipeline.evaluation.operating_point import OperatingPoint
from tl_pipeline.heads.fitted import FittedHead
from tl_pipeline.score import Score
from tl_pipeline.store.embeddings import Embeddings

# Of test, as the head gave them: what calibration was good for.
BEFORE = "_uncalibrated"


@dataclass(frozen=True)
class HeldOut:
    """The rows of one split.

    ``labels`` are names of shape (n,), in the order of the embeddings; ``units`` (n,)
    are equal for rows of one group.
    """

    split: str
    embeddings: Embeddings
    labels: np.ndarray
    units: np.ndarray


@dataclass(frozen=True)
class ScoredHead:
    """One head on one split.

    ``raw_proba`` are the probabilities of the head, of shape (n, n_classes);
    ``probabilities`` are calibrated, and so are the scores, by their metric.
    """

    head: FittedHead
    rows: HeldOut
    raw_proba: np.ndarray
    probabilities: np.ndarray
    scores: Mapping[str, Score]

    def value(self, metric: str) -> float:
        """The value of one of the scores."""
        return self.scores[metric].value


@dataclass(frozen=True)
class ScoredEnsemble:
    """Several heads together: calibrated, and scored, on validation and on test."""

    point: OperatingPoint
    predictions: dict[str, Predictions]
    scores: dict[str, dict[str, Score]]


def validate(head: FittedHead, rows: HeldOut, method: str, seed: int) -> ScoredHead:
    """``head`` on validation rows, each calibrated by others of them.

    ``method`` is one of ``calibration.METHODS``, ``seed`` that of the bootstrap.
    """
    raw = head.predict_proba(rows.embeddings)
    targets = _targets(head, rows)
    cross_fitted = calibration.cross_fitted(method, raw, targets, rows.units)
    found = scores(rows.labels, head.classes, cross_fitted, rows.units, seed)
    return ScoredHead(head, rows, raw, cross_fitted, found)


def choose(tried: Sequence[ScoredHead]) -> ScoredHead:
    """The best on validation: by accuracy, then by log loss, then the first."""
    return max(tried, key=lambda s: (s.value("accuracy"), -s.value("log_loss")))


def learn(chosen: ScoredHead, method: str, error: float) -> OperatingPoint:
    """The operating point of a head from its validation rows."""
    return operating_point.fit(
        method,
        chosen.raw_proba,
        chosen.probabilities,
        _targets(chosen.head, chosen.rows),
        chosen.rows.units,
        error,
    )


def score(
    head: FittedHead, rows: HeldOut, point: OperatingPoint, seed: int
) -> ScoredHead:
    """``head`` on rows that ``point`` was not learned from, and what comes of both.

    Beside the scores of the calibrated probabilities stand those of the decisions and,
    with the suffix ``BEFORE``, how good the head's own probabilities were.
    """
    raw = head.predict_proba(rows.embeddings)
    calibrated = point.calibration.apply(raw)
    found = scores_at(point, raw, rows.labels, head.classes, rows.units, seed)
    return ScoredHead(head, rows, raw, calibrated, found)


def score_ensemble(
    validation: Validated,
    test: Predictions,
    test_units: np.ndarray,
    method: str,
    error: float,
    seed: int,
) -> ScoredEnsemble:
    """Calibrate the mean of several heads, and score it: see ``learn`` and ``score``.

    ``test`` is what they say together of test, before calibration; ``test_units`` (n,)
    are equal for its rows of one group.
    """
    rows, cross_fitted = validation.predictions, validation.calibrated
    point = operating_point.fit(
        method,
        rows.probabilities,
        cross_fitted,
        rows.targets(),
        validation.units,
        error,
    )
    raw = test.probabilities
    return ScoredEnsemble(
        point,
        predictions={
            VALIDATION: replace(rows, probabilities=cross_fitted),
            TEST: replace(test, probabilities=point.calibration.apply(raw)),
        },
        scores={
            VALIDATION: scores(
                rows.names(), rows.classes, cross_fitted, validation.units, seed
            ),
            TEST: scores_at(point, raw, test.names(), test.classes, test_units, seed),
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
    """What comes of probabilities (n, K) before calibration: see ``score``.

    ``labels`` are names (n,), ``classes`` those of the columns.
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


def _targets(head: FittedHead, rows: HeldOut) -> np.ndarray:
    return targets_of(rows.labels, head.classes)

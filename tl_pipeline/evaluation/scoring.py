"""Score fitted heads on held-out rows, choose among them, calibrate the chosen one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tl_pipeline.data.splits import TEST, VALIDATION
from tl_pipeline.evaluation import calibration, operating_point
from tl_pipeline.evaluation.averaging import Said
from tl_pipeline.evaluation.cross_fitting import Validated
from tl_pipeline.evaluation.metrics import (
    Score,
    decision_scores,
    probability_scores,
    scores,
)
from tl_pipeline.evaluation.operating_point import OperatingPoint
from tl_pipeline.heads.fitted import FittedHead
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
class Scored:
    """One head on one split.

    ``given`` are the probabilities of the head, of shape (n, n_classes);
    ``probabilities`` are calibrated, and so are the scores.
    """

    head: FittedHead
    rows: HeldOut
    given: np.ndarray
    probabilities: np.ndarray
    scores: list[Score]

    def value(self, metric: str) -> float:
        """The value of one of the scores."""
        return next(s.value for s in self.scores if s.metric == metric)


@dataclass(frozen=True)
class ScoredMean:
    """Several heads together: calibrated, and scored, on validation and on test."""

    point: OperatingPoint
    said: dict[str, Said]
    scores: dict[str, list[Score]]


def validate(head: FittedHead, rows: HeldOut, method: str, seed: int) -> Scored:
    """``head`` on validation rows, each calibrated by others of them.

    ``method`` is one of ``calibration.METHODS``, ``seed`` that of the bootstrap.
    """
    given = head.predict_proba(rows.embeddings)
    targets = _targets(head, rows)
    crossed = calibration.cross_fitted(method, given, targets, rows.units)
    found = scores(rows.labels, head.classes, crossed, seed)
    return Scored(head, rows, given, crossed, found)


def choose(tried: Sequence[Scored]) -> Scored:
    """The best on validation: by accuracy, then by log loss, then the first."""
    return max(tried, key=lambda s: (s.value("accuracy"), -s.value("log_loss")))


def learn(chosen: Scored, method: str, error: float) -> OperatingPoint:
    """The operating point of a head from its validation rows."""
    return operating_point.fit(
        method,
        chosen.given,
        chosen.probabilities,
        _targets(chosen.head, chosen.rows),
        chosen.rows.units,
        error,
    )


def score(head: FittedHead, rows: HeldOut, point: OperatingPoint, seed: int) -> Scored:
    """``head`` on rows that ``point`` was not learned from, and what comes of both.

    Beside the scores of the calibrated probabilities stand those of the decisions and,
    with the suffix ``BEFORE``, how good the head's own probabilities were.
    """
    given = head.predict_proba(rows.embeddings)
    calibrated = point.calibration.apply(given)
    found = scores_at(point, given, rows.labels, head.classes, seed)
    return Scored(head, rows, given, calibrated, found)


def score_mean(
    validation: Validated, test: Said, method: str, error: float, seed: int
) -> ScoredMean:
    """Calibrate the mean of several heads, and score it: see ``learn`` and ``score``.

    ``test`` is what they say together of test, before calibration.
    """
    rows, crossed = validation.said, validation.calibrated
    point = operating_point.fit(
        method, rows.probabilities, crossed, rows.targets(), validation.units, error
    )
    given = test.probabilities
    return ScoredMean(
        point,
        said={
            VALIDATION: replace(rows, probabilities=crossed),
            TEST: replace(test, probabilities=point.calibration.apply(given)),
        },
        scores={
            VALIDATION: scores(rows.labels, rows.classes, crossed, seed),
            TEST: scores_at(point, given, test.labels, test.classes, seed),
        },
    )


def scores_at(
    point: OperatingPoint,
    given: np.ndarray,
    labels: np.ndarray,
    classes: list[str],
    seed: int,
) -> list[Score]:
    """What comes of ``given``, probabilities (n, K) before calibration: see ``score``.

    ``labels`` are names (n,), ``classes`` those of the columns.
    """
    calibrated = point.calibration.apply(given)
    targets = targets_of(labels, classes)
    sets = point.sets(calibrated)
    found = scores(labels, classes, calibrated, seed)
    if point.calibration.method != "none":
        before = probability_scores(labels, classes, given)
        found += [replace(s, metric=f"{s.metric}{BEFORE}") for s in before]
    return found + decision_scores(
        right=calibrated.argmax(axis=1) == targets,
        held=operating_point.held(sets, targets),
        sizes=sets.sum(axis=1),
        accepted=point.accepted(calibrated),
    )


def targets_of(labels: np.ndarray, classes: list[str]) -> np.ndarray:
    """The class number of each row (n,); -1 for a label that is none of ``classes``."""
    position = {name: k for k, name in enumerate(classes)}
    return np.array([position.get(name, -1) for name in labels])


def _targets(head: FittedHead, rows: HeldOut) -> np.ndarray:
    return targets_of(rows.labels, head.classes)

"""What is made of a head's probabilities at one error rate, and how it is kept.

An operating point is a calibration and two thresholds, learned from validation rows:

- Prediction sets hold the right label at a chosen error rate (split conformal). A label
  is in the set of an image if its probability is at least a threshold (least ambiguous
  sets: Sadinle, Lei & Wasserman 2019, JASA 114), a quantile over rows that neither head
  nor threshold were learned from; so the right label of a new image is left out with at
  most that rate, on average over images like those.
- Selective prediction: how sure a prediction must be for the accepted ones to keep to
  the rate.

It lies as ``calibration.json`` beside what the head of an evaluation or a model gave.
"""

import json
from pathlib import Path
from typing import Annotated, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tl_pipeline.errors import DamagedArtifact, StoreError
from tl_pipeline.evaluation import calibration
from tl_pipeline.evaluation.calibration import Calibration
from tl_pipeline.evaluation.intervals import LEVEL

FILE = "calibration.json"
STARTS = 4
_TAIL = (1 - LEVEL) / STARTS
# 0.95 * 20 as floating point numbers may come out above 19.
_ROUNDING = 1e-9
# Of version 0.1.
_OLDER_METHODS = ("sigmoid", "isotonic")

_Probability = Annotated[float, Field(ge=0, le=1)]


class Selective(NamedTuple):
    """The confidence from which on predictions are accepted; None rejects all.

    ``surest`` is how many of the surest rows have the smallest share of errors, of at
    least as many as ``least_confidence`` needs, and ``surest_error`` that share; None
    where there are too few rows.
    """

    threshold: float | None
    surest: int | None = None
    surest_error: float | None = None


class OperatingPoint(BaseModel):
    """A calibration and the thresholds that keep to ``error``.

    A label is in the set of an image from ``least_probability`` on, a prediction is
    accepted from ``least_confidence`` on; None rejects all. Both are about calibrated
    probabilities. ``rows`` of ``units`` were learned from. ``surest`` of them, those of
    the highest confidence, had the share ``surest_error`` of errors, the least that was
    found; None in files of version 0.1, and where there were too few.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Annotated[int, Field(ge=1, le=1)] = 1
    error: Annotated[float, Field(gt=0, lt=1)]
    calibration: Calibration
    least_probability: _Probability
    least_confidence: _Probability | None
    rows: Annotated[int, Field(ge=0)]
    units: Annotated[int, Field(ge=0)]
    surest: Annotated[int, Field(ge=0)] | None = None
    surest_error: _Probability | None = None

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The operating point in ``folder``, or None where an older version left none.

        Raises:
            DamagedArtifact: the file is not whole.
            StoreError: it is calibrated by a method that there is no more.
        """
        try:
            text = (folder / FILE).read_text()
        except FileNotFoundError:
            return None
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            _check_method(folder / FILE, text)
            fault = error.errors()[0]
            where = ".".join(str(part) for part in fault["loc"])
            raise DamagedArtifact(
                f"{folder / FILE}: {where}: {fault['msg']}; run again"
            ) from None

    def write(self, folder: Path) -> None:
        """Write it into ``folder``."""
        (folder / FILE).write_text(self.model_dump_json(indent=1))

    def sets(self, probabilities: np.ndarray) -> np.ndarray:
        """Which labels each row's set holds, bool (n, K), of calibrated ones (n, K)."""
        return members(probabilities, self.least_probability)

    def accepted(self, probabilities: np.ndarray) -> np.ndarray:
        """Whether each row is accepted, bool (n,), of calibrated ones (n, K)."""
        if self.least_confidence is None:
            return np.zeros(len(probabilities), bool)
        return probabilities.max(axis=1) >= self.least_confidence

    @property
    def shortage(self) -> str | None:
        """Why sets hold all labels, or everything is rejected, if that is so."""
        faults, rate = [], f"{100 * self.error:.4g} %"
        needed = units_for_sets(self.error)
        if self.units < needed:
            faults.append(
                f"prediction sets hold all labels: an error rate of {rate} needs "
                f"{needed:,} held-out images (or groups), there are {self.units:,}"
            )
        needed = units_to_accept(self.error)
        if self.least_confidence is None and self.units < needed:
            faults.append(
                f"every prediction is rejected: to show an error rate of {rate} takes "
                f"{needed:,} held-out images (or groups) without an error, there are "
                f"{self.units:,}"
            )
        elif self.least_confidence is None:
            faults.append(self._unsure(rate))
        return "; ".join(faults) or None

    def _unsure(self, rate: str) -> str:
        """Why nothing is accepted though there are rows enough."""
        said = (
            "every prediction is rejected: at no confidence is it shown that fewer "
            f"than {rate} of them are wrong"
        )
        if self.surest is None or self.surest_error is None:
            return said
        return (
            f"{said}; at best {100 * self.surest_error:.1f} % of the {self.surest:,} "
            "surest of the held-out images are"
        )


def fit(
    method: str,
    raw_proba: np.ndarray,
    cross_fitted: np.ndarray,
    targets: np.ndarray,
    units: np.ndarray,
    error: float,
) -> OperatingPoint:
    """Learn an operating point from rows that the head did not learn from.

    The thresholds are taken over cross-fitted probabilities, as those of new images
    are also calibrated by a map that never saw them.

    Args:
        method: of ``calibration.METHODS``.
        raw_proba: probabilities of the head, (n, K).
        cross_fitted: the same, as ``calibration.cross_fitted`` gives them.
        targets: class numbers (n,), -1 for a label that the head cannot name.
        units: what each row belongs to, (n,): images of one group stay together.
        error: see ``least_probability`` and ``least_confidence``.
    """
    own = np.take_along_axis(cross_fitted, targets[:, None], axis=1)[:, 0]
    wrong = cross_fitted.argmax(axis=1) != targets
    selective = least_confidence(cross_fitted.max(axis=1), wrong, units, error)
    return OperatingPoint(
        error=error,
        calibration=calibration.fit(method, raw_proba, targets),
        least_probability=least_probability(
            np.where(targets < 0, 0, own), units, error
        ),
        least_confidence=selective.threshold,
        rows=len(targets),
        units=len(np.unique(units)),
        surest=selective.surest,
        surest_error=selective.surest_error,
    )


def covered(sets: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Whether each set (n, K) holds the right class (n,); none holds class -1."""
    found = np.take_along_axis(sets, targets[:, None], axis=1)[:, 0]
    return found & (targets >= 0)


def members(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """Which labels are in the set of each row: bool of shape (n, K).

    The most probable label is always among them. That leaves no set empty and can only
    make the right label missing less often.
    """
    found = probabilities >= threshold
    found[np.arange(len(found)), probabilities.argmax(axis=1)] = True
    return found


def least_probability(own: np.ndarray, units: np.ndarray, error: float) -> float:
    """The threshold of labels: sets hold the right one in 1 - ``error`` of cases.

    Of n rows of different units it is the ceil((n + 1)(1 - error))-th largest
    probability of the right label. Rows of one unit (frames of one film) count together
    as one, and the promise is for an image of a new unit (Lee, Barber & Willett 2023,
    arXiv:2306.06342, hierarchical conformal prediction).

    Args:
        own: the probability of the right label of each row, (n,); 0 for a label that
            the head cannot name.
        units: what each row belongs to, (n,).
        error: how often the right label may be missing, above 0 and below 1.

    Returns:
        A probability; 0, at which all labels are in every set, where there are too few
        units to promise anything: fewer than ``units_for_sets``.
    """
    _, unit, sizes = np.unique(units, return_inverse=True, return_counts=True)
    weights = 1 / ((len(sizes) + 1) * sizes[unit])
    order = np.argsort(-own, kind="stable")
    reached = np.cumsum(weights[order]) >= 1 - error - _ROUNDING
    return float(own[order[reached.argmax()]]) if reached.any() else 0.0


def units_for_sets(error: float) -> int:
    """The fewest units with which a set need not hold all labels."""
    return int(np.ceil((1 - error) / error - _ROUNDING))


def least_confidence(
    confidence: np.ndarray, wrong: np.ndarray, units: np.ndarray, error: float
) -> Selective:
    """The lowest confidence such that errors among the accepted are at most ``error``.

    That holds with a confidence of 95 % over the rows that the threshold is learned
    from (selection with guaranteed risk: Geifman & El-Yaniv 2017). Thresholds are
    tested from the strict to the loose until one fails, so that no correction for their
    number is needed (fixed sequence testing: Angelopoulos, Bates, Candès, Jordan & Lei
    2021, "Learn then test", section 4); from ``STARTS`` starts, each at a part of the
    5 %, as the strictest have too few rows to pass after one chance error.

    A threshold fails unless so few errors would be that unlikely were their rate any
    higher: an exact binomial test where every row is a unit of its own; rows of one
    unit (frames of one film) are one observation, their share of errors, under
    Hoeffding's bound (1963, theorem 1).

    Args:
        confidence: of the predicted label, (n,).
        wrong: whether the prediction is wrong, bool (n,).
        units: what each row belongs to, (n,).
        error: the rate, above 0 and below 1.
    """
    order = np.argsort(-confidence, kind="stable")
    confidence, wrong = confidence[order], wrong[order]
    seen, chance = _tests(wrong, units[order], error)
    # rows of one confidence are accepted together
    ends = np.flatnonzero(np.append(confidence[1:] != confidence[:-1], True))
    fewest = units_to_accept(error)
    if not len(seen) or seen[-1] < fewest:
        return Selective(None)
    enough = ends[seen[ends] >= fewest]
    shares = np.cumsum(wrong)[enough] / (enough + 1)
    surest = int(enough[shares.argmin()]) + 1
    last = -1
    for start in np.geomspace(fewest, seen[-1], STARTS, endpoint=False):
        sequence = ends[seen[ends] >= start]
        failed = np.append(chance[sequence] > _TAIL, True).argmax()
        last = max([last, *sequence[:failed]])
    threshold = float(confidence[last]) if last >= 0 else None
    return Selective(threshold, surest, float(shares.min()))


def units_to_accept(error: float) -> int:
    """The fewest units that can show a rate of ``error``: all of them right."""
    return int(np.ceil(np.log(_TAIL) / np.log(1 - error)))


def _tests(
    wrong: np.ndarray, units: np.ndarray, error: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of the first 1 ... n rows: their units, and how likely so few errors would be."""
    from scipy import stats  # noqa: PLC0415 - slow, and a run with nothing new has none

    names, unit = np.unique(units, return_inverse=True)
    if len(names) == len(wrong):
        seen = np.arange(1, len(wrong) + 1)
        return seen, stats.binom.cdf(np.cumsum(wrong), seen, error)
    rows, errors = np.zeros(len(names)), np.zeros(len(names))
    seen, total = np.zeros(len(wrong), int), np.zeros(len(wrong))
    units_seen, shares = 0, 0.0
    for i, (here, is_wrong) in enumerate(zip(unit, wrong, strict=True)):
        shares -= errors[here] / max(rows[here], 1)
        units_seen += rows[here] == 0
        rows[here] += 1
        errors[here] += is_wrong
        shares += errors[here] / rows[here]
        seen[i], total[i] = units_seen, shares
    mean = np.clip(total / seen, 0, error)  # rounding may leave a mean below 0
    distance = stats.entropy([mean, 1 - mean], [[error], [1 - error]])
    return seen, np.exp(-seen * distance)


def _check_method(file: Path, text: str) -> None:
    """See that ``text`` does not name a calibration of version 0.1."""
    try:
        method = json.loads(text)["calibration"]["method"]
    except (ValueError, KeyError, TypeError):
        return
    if method in _OLDER_METHODS:
        raise StoreError(
            f"{file}: it is calibrated by {method}, which this version does not have; "
            "run again with --calibration temperature"
        )

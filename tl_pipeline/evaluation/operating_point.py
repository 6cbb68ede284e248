"""What is made of a head's probabilities at one error rate, and how it is kept.

An operating point is a calibration and two thresholds, learned from validation rows. It
lies as ``calibration.json`` beside what the head of an evaluation or a model gave.
"""

from pathlib import Path
from typing import Annotated, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tl_pipeline.errors import DamagedArtifact
from tl_pipeline.evaluation import calibration, conformal, selective
from tl_pipeline.evaluation.calibration import Calibration

FILE = "calibration.json"

_Probability = Annotated[float, Field(ge=0, le=1)]


class OperatingPoint(BaseModel):
    """A calibration and the thresholds that keep to ``error``.

    A label is in the set of an image from ``least_probability`` on, a prediction is
    accepted from ``least_confidence`` on; None rejects all. Both are about calibrated
    probabilities. ``rows`` of ``units`` were learned from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Annotated[int, Field(ge=1, le=1)] = 1
    error: Annotated[float, Field(gt=0, lt=1)]
    calibration: Calibration
    least_probability: _Probability
    least_confidence: _Probability | None
    rows: Annotated[int, Field(ge=0)]
    units: Annotated[int, Field(ge=0)]

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The operating point in ``folder``, or None where an older version left none.

        Raises:
            DamagedArtifact: the file is not whole.
        """
        try:
            text = (folder / FILE).read_text()
        except FileNotFoundError:
            return None
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
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
        return conformal.members(probabilities, self.least_probability)

    def accepted(self, probabilities: np.ndarray) -> np.ndarray:
        """Whether each row is accepted, bool (n,), of calibrated ones (n, K)."""
        if self.least_confidence is None:
            return np.zeros(len(probabilities), bool)
        return probabilities.max(axis=1) >= self.least_confidence

    @property
    def shortage(self) -> str | None:
        """Why sets hold all labels, or everything is rejected, if that is so."""
        needed, faults = conformal.units_needed(self.error), []
        if self.units < needed:
            faults.append(
                f"label sets hold all labels: an error rate of {100 * self.error:.4g} "
                f"% needs {needed:,} validation images (or groups), there are "
                f"{self.units:,}"
            )
        if self.least_confidence is None:
            faults.append(
                f"every prediction is rejected: {self.units:,} validation images (or "
                "groups) do not show any confidence to keep to it; that takes "
                f"{selective.units_needed(self.error):,} sure ones without an error, "
                "or more"
            )
        return "; ".join(faults) or None


def fit(
    method: str,
    given: np.ndarray,
    crossed: np.ndarray,
    targets: np.ndarray,
    units: np.ndarray,
    error: float,
) -> OperatingPoint:
    """Learn an operating point from rows that the head did not learn from.

    The thresholds are taken over cross-fitted probabilities, as those of new images
    are also calibrated by a map that never saw them.

    Args:
        method: of ``calibration.METHODS``.
        given: probabilities of the head, (n, K).
        crossed: the same, as ``calibration.cross_fitted`` gives them.
        targets: class numbers (n,), -1 for a label that the head cannot name.
        units: what each row belongs to, (n,): images of one group stay together.
        error: see ``conformal.least_probability`` and ``selective.least_confidence``.
    """
    own = np.take_along_axis(crossed, targets[:, None], axis=1)[:, 0]
    wrong = crossed.argmax(axis=1) != targets
    return OperatingPoint(
        error=error,
        calibration=calibration.fit(method, given, targets),
        least_probability=conformal.least_probability(
            np.where(targets < 0, 0, own), units, error
        ),
        least_confidence=selective.least_confidence(
            crossed.max(axis=1), wrong, units, error
        ),
        rows=len(targets),
        units=len(np.unique(units)),
    )


def covered(sets: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Whether each set (n, K) holds the right class (n,); none holds class -1."""
    found = np.take_along_axis(sets, targets[:, None], axis=1)[:, 0]
    return found & (targets >= 0)

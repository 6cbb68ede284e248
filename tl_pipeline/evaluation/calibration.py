"""From the probabilities of a head to such as mean how often it is right.

A head that says 0.9 may be right in 70 of 100 cases. A calibration is one number for
all classes, learned from rows that the head did not learn from: no decision changes,
and classes of few or no validation rows need none of their own (Zhang, Kailkhura & Han
2020, "Mix-n-Match", ICML, section 3: accuracy-preserving calibration).

Maps are pydantic models: their JSON is all there is of them, and is checked when it is
read.
"""

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tl_pipeline.heads.linear.temperature import (
    fit_inverse_temperature,
)
from tl_pipeline.heads.linear.temperature import probabilities as softened

PARTS = 5
# Probabilities are float32: what is nearer to 0 or 1 than this cannot be told from it.
_EPSILON = float(np.finfo(np.float32).eps)
# Platt's smoothing of two classes, for any number: two rows spread over all.
_PSEUDO_ROWS = 2


class _Map(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Uncalibrated(_Map):
    """The head's probabilities as they are."""

    method: Literal["none"] = "none"

    @classmethod
    def fit(cls, probabilities: np.ndarray, targets: np.ndarray) -> Self:  # noqa: ARG003
        """See ``fit`` of this module."""
        return cls()

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """See ``Calibration``."""
        return probabilities


class Temperature(_Map):
    """Softmax of ``factor`` times log p: Guo et al. 2017, section 4.2."""

    method: Literal["temperature"] = "temperature"
    factor: Annotated[float, Field(gt=0)]

    @classmethod
    def fit(cls, probabilities: np.ndarray, targets: np.ndarray) -> Self:
        """See ``fit`` of this module."""
        logs, rows = np.log(_inside(probabilities)), np.ones(len(targets))
        factor = fit_inverse_temperature(logs, targets, rows, _PSEUDO_ROWS)
        return cls(factor=factor)

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """See ``Calibration``."""
        logs = np.log(_inside(probabilities))
        return softened(logs, self.factor).astype(np.float32)


# ``apply`` maps probabilities (n, K) to calibrated ones: float32 (n, K), rows of sum 1.
Calibration = Annotated[Uncalibrated | Temperature, Field(discriminator="method")]
METHODS = {"none": Uncalibrated, "temperature": Temperature}


def fit(method: str, probabilities: np.ndarray, targets: np.ndarray) -> Calibration:
    """Learn a map of ``METHODS`` from rows that the head did not learn from.

    Args:
        method: a key of ``METHODS``.
        probabilities: of the head, (n, K); without rows nothing is learned, and they
            stay as they are.
        targets: class numbers (n,), -1 for a label that the head cannot name. There it
            is wrong whatever it says: the row counts as spread over all classes, so
            that confidence falls.
    """
    if not len(probabilities):
        return Uncalibrated()
    return METHODS[method].fit(probabilities.astype(np.float64), targets)


def cross_fitted(
    method: str, probabilities: np.ndarray, targets: np.ndarray, units: np.ndarray
) -> np.ndarray:
    """Probabilities float32 (n, K), each row calibrated by other rows than itself.

    So a log loss of them does not flatter the calibration. The rows are cut into
    ``PARTS``, whole units of (n,) together and the classes' shares kept roughly. With
    one unit there are no other rows, and the probabilities stay as they are.
    """
    part = parts(targets, units)
    found = probabilities.astype(np.float32)
    for number in range(PARTS):
        here = part == number
        calibration = fit(method, probabilities[~here], targets[~here])
        found[here] = calibration.apply(probabilities[here])
    return found


def parts(targets: np.ndarray, units: np.ndarray) -> np.ndarray:
    """The part (n,) of each row, below ``PARTS``: units are divided class by class.

    ``targets`` and ``units`` are as in ``cross_fitted``. From as many units on as there
    are parts none of these is empty.
    """
    _, first, unit = np.unique(units, return_index=True, return_inverse=True)
    order = np.argsort(targets[first], kind="stable")
    part = np.empty(len(first), int)
    part[order] = np.arange(len(first)) % PARTS
    return part[unit]


def _inside(probabilities: np.ndarray) -> np.ndarray:
    return np.clip(probabilities.astype(np.float64), _EPSILON, 1 - _EPSILON)

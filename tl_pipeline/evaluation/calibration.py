"""From the probabilities of a head to such as mean how often it is right.

A head that says 0.9 may be right in 70 of 100 cases. A calibration is a small map from
its probabilities to better ones, learned from rows that the head did not learn from.
Every map here is one rising function for all classes, so that no decision changes and
classes of few or no validation rows need none of their own (Zhang, Kailkhura & Han
2020, "Mix-n-Match", ICML, section 3: accuracy-preserving calibration). Isotonic maps of
one class against the rest, as scikit-learn makes them, had a higher log loss on 27 of
28 test sets (four datasets, seven heads).

Maps are pydantic models: their JSON is all there is of them, and is checked when it is
read.
"""

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.optimize import minimize
from scipy.special import expit

from tl_pipeline.heads.linear.temperature import fit_inverse_temperature
from tl_pipeline.heads.linear.temperature import probabilities as softened

PARTS = 5
# Probabilities are float32: what is nearer to 0 or 1 than this cannot be told from it.
_EPSILON = float(np.finfo(np.float32).eps)
# Platt's smoothing of two classes, for any number: two rows spread over all.
_SPREAD = 2
_LEAST_SLOPE = 1e-3
# How much of the head's own probability stays, so that steps do not make ties.
_OWN = 1e-3

_Points = Annotated[list[float], Field(min_length=1)]


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
        return cls(factor=fit_inverse_temperature(logs, targets, rows, _SPREAD))

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """See ``Calibration``."""
        logs = np.log(_inside(probabilities))
        return softened(logs, self.factor).astype(np.float32)


class Sigmoid(_Map):
    """A sigmoid of the log odds of p, brought to sum 1.

    Platt 1999, in "Advances in Large Margin Classifiers", with his smoothed targets;
    every pair of a row and a class is one observation.
    """

    method: Literal["sigmoid"] = "sigmoid"
    slope: Annotated[float, Field(gt=0)]
    intercept: float

    @classmethod
    def fit(cls, probabilities: np.ndarray, targets: np.ndarray) -> Self:
        """See ``fit`` of this module."""
        odds = _log_odds(probabilities).ravel()
        wanted = _smoothed(_own(targets, probabilities.shape[1]).ravel())

        def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
            z = line[0] * odds + line[1]
            wrong = expit(z) - wanted
            gradient = np.array([(wrong * odds).mean(), wrong.mean()])
            return float((np.logaddexp(0, z) - wanted * z).mean()), gradient

        bounds = [(_LEAST_SLOPE, None), (None, None)]
        found = minimize(loss, [1, 0], jac=True, bounds=bounds, method="L-BFGS-B")
        return cls(slope=float(found.x[0]), intercept=float(found.x[1]))

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """See ``Calibration``."""
        odds = _log_odds(probabilities)
        return _normalised(expit(self.slope * odds + self.intercept))


class Isotonic(_Map):
    """A rising function of p through the points (x, y), brought to sum 1.

    Zadrozny & Elkan 2002, "Transforming classifier scores into accurate multiclass
    probability estimates"; every pair of a row and a class is one observation, its
    target smoothed as by Platt, so that no probability becomes 0 or 1. Where it is
    level, a thousandth of the head's own probability keeps the classes in order.
    """

    method: Literal["isotonic"] = "isotonic"
    x: _Points
    y: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1)]

    @model_validator(mode="after")
    def _rising(self) -> Self:
        rising = (np.diff(self.x) > 0).all() and (np.diff(self.y) >= 0).all()
        if len(self.x) != len(self.y) or not rising:
            raise ValueError("x must rise, y must not fall, and both be of one length")
        return self

    @classmethod
    def fit(cls, probabilities: np.ndarray, targets: np.ndarray) -> Self:
        """See ``fit`` of this module."""
        from sklearn.isotonic import IsotonicRegression  # noqa: PLC0415 - a second

        wanted = _smoothed(_own(targets, probabilities.shape[1]).ravel())
        found = IsotonicRegression().fit(probabilities.ravel(), wanted)
        y = np.maximum.accumulate(found.y_thresholds_)  # less a fall by rounding
        return cls(x=found.X_thresholds_.tolist(), y=y.tolist())

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """See ``Calibration``."""
        stepped = np.interp(probabilities, self.x, self.y)
        return _normalised((1 - _OWN) * stepped + _OWN * probabilities)


# ``apply`` maps probabilities (n, K) to calibrated ones: float32 (n, K), rows of sum 1.
Calibration = Annotated[
    Uncalibrated | Temperature | Sigmoid | Isotonic, Field(discriminator="method")
]
METHODS = {
    "none": Uncalibrated,
    "temperature": Temperature,
    "sigmoid": Sigmoid,
    "isotonic": Isotonic,
}


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
    """The part (n,) of each row, below ``PARTS``: units are dealt class by class.

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


def _log_odds(probabilities: np.ndarray) -> np.ndarray:
    inside = _inside(probabilities)
    return np.log(inside) - np.log1p(-inside)


def _normalised(values: np.ndarray) -> np.ndarray:
    return (values / values.sum(axis=1, keepdims=True)).astype(np.float32)


def _own(targets: np.ndarray, classes: int) -> np.ndarray:
    """1 for the class of a row, (n, K); a row of none of them is spread over all."""
    own = (targets[:, None] == np.arange(classes)).astype(np.float64)
    own[targets < 0] = 1 / classes
    return own


def _smoothed(own: np.ndarray) -> np.ndarray:
    """Targets as if there were one observation more of either kind (Platt 1999)."""
    yes, no = own.sum(), (1 - own).sum()
    low, high = 1 / (no + 2), (yes + 1) / (yes + 2)
    return low + (high - low) * own

"""Ridge classifiers of every penalty from one eigendecomposition."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from tl_pipeline.heads.estimators import TrainingSet, balanced
from tl_pipeline.heads.linear.design_matrix import BLOCK, moments
from tl_pipeline.heads.linear.logistic import LinearHead
from tl_pipeline.heads.linear.temperature import fit_inverse_temperature
from tl_pipeline.heads.principal import Centred


@dataclass(frozen=True)
class Decomposed:
    """Weighted, centred, standardised training rows as variances along directions.

    ``directions`` (width, r) are orthonormal, ``powers`` (r,) the sums of squares along
    them, ``projected`` (r, K) the products with the +-1 targets, whose weighted means
    are ``offset`` (K,).
    """

    mean: np.ndarray
    scale: np.ndarray
    directions: np.ndarray
    powers: np.ndarray
    projected: np.ndarray
    offset: np.ndarray

    def coefficients(self, alpha: float) -> np.ndarray:
        """Of standardised features: (K, width)."""
        shrunk = self.projected / (self.powers + alpha)[:, None]
        return (self.directions @ shrunk).T

    def scores(self, x: np.ndarray, alpha: float) -> np.ndarray:
        """Decisions of ``x`` (n, width): (n, K)."""
        return (x - self.mean) / self.scale @ self.coefficients(alpha).T + self.offset

    def left_out(
        self, x: np.ndarray, signs: np.ndarray, weights: np.ndarray, alpha: float
    ) -> np.ndarray:
        """Decisions (n, K) on each training row of the ridge fitted without it.

        In closed form (Allen 1974): the residual over one minus the row's leverage. The
        mean and the scale are those of all rows, the intercept is refitted.
        """
        found = np.empty(signs.shape)
        for first in range(0, len(x), BLOCK):
            rows = slice(first, first + BLOCK)
            along = (x[rows] - self.mean) / self.scale @ self.directions
            leverage = (along**2 / (self.powers + alpha)).sum(axis=1)
            leverage = weights[rows] * (leverage + 1 / weights.sum())
            fitted = along @ (self.projected / (self.powers + alpha)[:, None])
            residual = signs[rows] - fitted - self.offset
            room = np.maximum(1 - leverage, 1e-9)[:, None]
            found[rows] = signs[rows] - residual / room
        return found


def decompose(
    x: np.ndarray, signs: np.ndarray, weights: np.ndarray, scale: np.ndarray
) -> Decomposed:
    """Of rows (n, width) over ``scale``, targets ``signs`` (n, K), ``weights`` (n,)."""
    mean, _ = moments(x, weights)
    offset = weights @ signs / weights.sum()
    rows = Centred(x, weights, mean[None], np.zeros(len(x), int), scale)
    powers, directions = rows.principal()
    products = np.zeros((x.shape[1], signs.shape[1]))
    for chosen in rows.blocks():
        block = rows.block(chosen) * weights[chosen, None]
        products += block.T @ (signs[chosen] - offset)
    return Decomposed(mean, scale, directions, powers, directions.T @ products, offset)


class RidgeHead(LinearHead):
    """Least squares on +-1 targets with penalty ``alpha``, as ``RidgeClassifier``.

    Decisions are no probabilities. ``predict_proba`` is the softmax of the decisions
    times ``inverse_temperature_`` (of two classes, of 0 and the decision), the one
    number that gives the decisions of training rows, each left out in turn, the least
    log loss; temperature scaling (Guo et al. 2017) that needs no rows of its own. The
    order of the classes of a row is that of the decisions. Computes in float64.

    Args:
        alpha: strength of the penalty on standardised features.
        class_weight: none, or balanced as in scikit-learn.
        standardise: whether to; else the features are centred only.
        random_state: of no effect: nothing is drawn.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        class_weight: str = "none",
        standardise: bool = True,
        random_state: int | None = None,
    ) -> None:
        self.alpha = alpha
        self.class_weight = class_weight
        self.standardise = standardise
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Learn from ``X`` (n, width), labels ``y`` (n,) and weights (n,)."""
        self.learn(Prepared.of(self, self.training_set(X, y, sample_weight)))
        return self

    def learn(self, ready: "Prepared") -> None:
        """Learn from what is decomposed already; ``classes_`` are set."""
        found, targets = ready.found, ready.targets
        self.coef_ = found.coefficients(self.alpha)
        self.intercept_ = found.offset
        self.mean_, self.scale_ = found.mean, found.scale
        left_out = found.left_out(ready.x, ready.signs, ready.weights, self.alpha)
        if len(self.classes_) == 2:
            left_out = left_out[:, 0]
        self.inverse_temperature_ = fit_inverse_temperature(
            left_out, targets, ready.weights
        )


@dataclass(frozen=True)
class Prepared:
    """What ridges that differ in ``alpha`` alone share: rows (n, width), decomposed."""

    x: np.ndarray
    targets: np.ndarray
    signs: np.ndarray
    weights: np.ndarray
    found: Decomposed

    @classmethod
    def of(cls, head: RidgeHead, learned: TrainingSet) -> Self:
        """For ``head``, whose classes are set, and the like."""
        x, targets, weights, _ = learned
        signs = _signs(targets, len(head.classes_))
        scale = _scale(x, weights, standardise=head.standardise)
        weights = balanced(targets, weights, head.class_weight)
        return cls(x, targets, signs, weights, decompose(x, signs, weights, scale))


def fit_all(
    ridges: Sequence[RidgeHead], x: np.ndarray, y: np.ndarray, weights: Any = None
) -> None:
    """Fit ``ridges`` that differ in ``alpha`` alone: one eigendecomposition for all."""
    sets = [ridge.training_set(x, y, weights) for ridge in ridges]
    ready = Prepared.of(ridges[0], sets[0])
    for ridge in ridges:
        ridge.learn(ready)


def _scale(x: np.ndarray, weights: np.ndarray, *, standardise: bool) -> np.ndarray:
    return moments(x, weights)[1] if standardise else np.ones(x.shape[1])


def _signs(targets: np.ndarray, classes: int) -> np.ndarray:
    """+1 for the class of a row, else -1: (n, K), or (n, 1) of two classes."""
    if classes == 2:
        return targets[:, None] * 2.0 - 1
    return np.where(targets[:, None] == np.arange(classes), 1.0, -1.0)

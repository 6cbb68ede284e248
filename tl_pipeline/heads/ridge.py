"""Ridge classifiers of every penalty from one eigendecomposition a fold."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from tl_pipeline.heads.linear import StandardisedLinear, balance, counted
from tl_pipeline.heads.principal import Centred
from tl_pipeline.heads.sharpness import sharpness
from tl_pipeline.heads.softmax_rows import BLOCK, moments


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


def ridge_path(
    x: np.ndarray,
    y: np.ndarray,
    alphas: Sequence[float],
    folds: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    standardise: bool = True,
) -> np.ndarray:
    """Cross-validated accuracy of every penalty and fold: (alphas, folds).

    One eigendecomposition a fold serves all ``alphas``, in their given order. ``folds``
    (n,): the fold of each row, -1 for rows that are always trained on.
    """
    counts = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    classes, targets = np.unique(y, return_inverse=True)
    signs = _signs(targets, len(classes))
    names = sorted(set(folds[folds >= 0].tolist()))
    accuracy = np.empty((len(alphas), len(names)))
    for at, fold in enumerate(names):
        held = folds == fold
        kept = ~held & (counts > 0)
        scale = _scale(x[kept], counts[kept], standardise=standardise)
        found = decompose(x[kept], signs[kept], counts[kept], scale)
        for row, alpha in enumerate(alphas):
            scores = found.scores(x[held], alpha)
            hit = _winners(scores) == targets[held]
            accuracy[row, at] = np.average(hit, weights=counts[held])
    return accuracy


class RidgeHead(StandardisedLinear):
    """Least squares on +-1 targets with penalty ``alpha``, as ``RidgeClassifier``.

    Decisions are no probabilities. ``predict_proba`` is the softmax of the decisions
    times ``sharpness_`` (of two classes, of 0 and the decision), the one number that
    gives the decisions of training rows, each left out in turn, the least log loss;
    temperature scaling (Guo et al. 2017) that needs no rows of its own. The order
    of the classes of a row is that of the decisions. Computes in float64.

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
        X, y, weights = self._training_rows(X, y, sample_weight)  # noqa: N806
        X, y, weights = counted(X, y, weights)  # noqa: N806
        targets = np.searchsorted(self.classes_, y)
        signs = _signs(targets, len(self.classes_))
        scale = _scale(X, weights, standardise=self.standardise)
        balanced = balance(y, weights, self.class_weight)
        found = decompose(X, signs, balanced, scale)
        self.coef_ = found.coefficients(self.alpha)
        self.intercept_ = found.offset
        self.mean_, self.scale_ = found.mean, found.scale
        left_out = found.left_out(X, signs, balanced, self.alpha)
        if len(self.classes_) == 2:
            left_out = left_out[:, 0]
        self.sharpness_ = sharpness(left_out, targets, balanced)
        return self


def _scale(x: np.ndarray, weights: np.ndarray, *, standardise: bool) -> np.ndarray:
    return moments(x, weights)[1] if standardise else np.ones(x.shape[1])


def _signs(targets: np.ndarray, classes: int) -> np.ndarray:
    """+1 for the class of a row, else -1: (n, K), or (n, 1) of two classes."""
    if classes == 2:
        return targets[:, None] * 2.0 - 1
    return np.where(targets[:, None] == np.arange(classes), 1.0, -1.0)


def _winners(scores: np.ndarray) -> np.ndarray:
    if scores.shape[1] == 1:
        return (scores[:, 0] > 0).astype(int)
    return scores.argmax(axis=1)

"""The head ``lda``: one covariance for all classes, shrunk towards a sphere."""

from typing import Any, Self

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from tl_pipeline.heads.linear.design_matrix import moments
from tl_pipeline.heads.linear.logistic import LinearHead
from tl_pipeline.heads.principal import Centred


class DiscriminantHead(LinearHead):
    """Linear discriminant analysis: normal classes that share one covariance.

    The covariance within classes S becomes ``(1 - a) S + a tr(S) / width I``, with a
    from Ledoit & Wolf (2004, "A well-conditioned estimator for large-dimensional
    covariance matrices"), or the number given. Priors are the shares of the classes.
    Where no class has two different rows S is unknown and taken as the identity: then
    the nearest class mean wins. One Cholesky decomposition, in float64; with fewer rows
    than features one eigendecomposition of the size of the rows.

    Args:
        shrinkage: a, above 0 and at most 1, or ``auto``.
        standardise: whether to, before all that.
        random_state: of no effect: nothing is drawn.

    Attributes:
        shrinkage_: a, as it was used.
    """

    def __init__(
        self,
        shrinkage: float | str = "auto",
        *,
        standardise: bool = True,
        random_state: int | None = None,
    ) -> None:
        self.shrinkage = shrinkage
        self.standardise = standardise
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Learn from ``X`` (n, width), labels ``y`` (n,) and weights (n,)."""
        x, targets, weights, _ = self.training_set(X, y, sample_weight)
        self.mean_, scale = moments(x, weights)
        self.scale_ = scale if self.standardise else np.ones_like(scale)
        totals = np.bincount(targets, weights)
        means = np.zeros((len(totals), x.shape[1]))
        for k, total in enumerate(totals):
            own = targets == k
            means[k] = weights[own] @ x[own].astype(np.float64) / total
        rows = Centred(x, weights, means, targets, self.scale_)
        means = (means - self.mean_) / self.scale_
        self.coef_ = self._solve(rows, means)
        shares = np.log(totals / totals.sum())
        self.intercept_ = shares - (means * self.coef_).sum(axis=1) / 2
        if len(totals) == 2:
            self.coef_ = self.coef_[1:] - self.coef_[:1]
            self.intercept_ = self.intercept_[1:] - self.intercept_[:1]
        return self

    def _solve(self, rows: Centred, means: np.ndarray) -> np.ndarray:
        """The inverse of the shrunk covariance times each of ``means`` (K, width)."""
        width = means.shape[1]
        return (self._dense if width <= len(rows.x) else self._wide)(rows, means)

    def _dense(self, rows: Centred, means: np.ndarray) -> np.ndarray:
        covariance = rows.scatter() / rows.weights.sum()
        sphere = covariance.trace() / len(covariance)
        self.shrinkage_ = self._share(rows, (covariance**2).sum(), sphere)
        if not sphere:
            return means
        covariance *= 1 - self.shrinkage_
        np.fill_diagonal(covariance, covariance.diagonal() + self.shrinkage_ * sphere)
        return cho_solve(cho_factor(covariance, overwrite_a=True), means.T).T

    def _wide(self, rows: Centred, means: np.ndarray) -> np.ndarray:
        powers, axes = rows.principal()
        powers = powers / rows.weights.sum()
        sphere = powers.sum() / means.shape[1]
        self.shrinkage_ = self._share(rows, (powers**2).sum(), sphere)
        if not sphere:
            return means
        outside = self.shrinkage_ * sphere
        along = means @ axes
        inside = along / ((1 - self.shrinkage_) * powers + outside)
        return inside @ axes.T + (means - along @ axes.T) / outside

    def _share(self, rows: Centred, square: float, sphere: float) -> float:
        """How much to shrink S, whose squares have the sum ``square``."""
        if self.shrinkage != "auto":
            return float(self.shrinkage)
        total, width = rows.weights.sum(), rows.x.shape[1]
        fourth = 0.0
        for chosen in rows.blocks():
            lengths = (rows.block(chosen) ** 2).sum(axis=1)
            fourth += rows.weights[chosen] @ lengths**2
        distance = square - width * sphere**2  # of S to the sphere
        noise = max((fourth / total - square) / total, 0.0)  # of S to the truth
        # the least keeps the sum positive definite where nothing was to be shrunk
        return float(np.clip(noise / distance, 1e-6, 1)) if distance > 0 else 1.0

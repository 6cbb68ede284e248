"""The head ``logistic``, and what all linear heads share."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import clone

from tl_pipeline.heads.estimators import DecisionHead, balanced
from tl_pipeline.heads.linear.design_matrix import moments
from tl_pipeline.heads.linear.regularization_path import PathHead, fit_path
from tl_pipeline.heads.predictors import Linear


class LinearHead(DecisionHead):
    """What linear heads share once fitted: standardise, one product, softmax.

    Attributes:
        coef_: (K, width), or (1, width) of two classes, of standardised features.
        intercept_: (K,) or (1,).
        mean_: (width,), taken off the features first.
        scale_: (width,), by which they are divided then.
        inverse_temperature_: what decisions are multiplied by before the softmax.
    """

    coef_: np.ndarray
    intercept_: np.ndarray
    mean_: np.ndarray
    scale_: np.ndarray
    inverse_temperature_: float = 1.0

    def predictor(self) -> Linear:
        """What was learned, in numbers."""
        return Linear(
            np.ascontiguousarray(self.coef_),
            self.intercept_,
            self.mean_,
            self.scale_,
            self.inverse_temperature_,
        )


class LogisticHead(LinearHead):
    """Multinomial logistic regression: scikit-learn's optimum, in few iterations.

    Minimises ``C sum_i w_i log_loss_i + 1/2 ||W||^2`` with a free intercept, on
    features standardised by the (weighted) training rows; see
    ``regularization_path.fit_path``, which fits many C and folds at once and says more.

    Args:
        C: inverse strength of the penalty.
        class_weight: none, or balanced as in scikit-learn.
        standardise: whether to; else the features are taken as they are.
        tol: relative gap at which to stop, see ``fit_path``.
        max_iter: iterations at most; then a ``ConvergenceWarning``.
        random_state: of no effect: nothing is drawn.

    Attributes:
        n_iter_: (1,), iterations.
        gap_: estimated relative distance of the objective from its minimum.
        converged_: whether it is within ``tol``.
    """

    def __init__(
        self,
        C: float = 1.0,  # noqa: N803 - sklearn's name
        *,
        class_weight: str = "none",
        standardise: bool = True,
        tol: float = 1e-9,
        max_iter: int = 1000,
        random_state: int | None = None,
    ) -> None:
        self.C = C
        self.class_weight = class_weight
        self.standardise = standardise
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Learn from ``X`` (n, width), labels ``y`` (n,) and weights (n,)."""
        x, targets, weights, _ = self.training_set(X, y, sample_weight)
        standardise, before = self.standardise, None
        if self.class_weight != "none":
            # the classes are balanced in the loss, not in the mean and the scale
            if standardise:
                before = moments(x, weights)
                x = ((x - before[0]) / before[1]).astype(x.dtype)
            weights, standardise = balanced(targets, weights, self.class_weight), False
        (head,) = fit_path(
            x,
            targets,
            [self.C],
            weights=weights,
            standardise=standardise,
            tol=self.tol,
            max_iter=self.max_iter,
        ).heads
        self.become(head)
        self.mean_, self.scale_ = before or (head.mean, head.scale)
        return self

    def become(self, head: PathHead) -> None:
        """Take what ``fit_path`` found; ``classes_`` are set."""
        self.coef_, self.intercept_ = head.coef, head.intercept
        if len(self.classes_) == 2:
            self.coef_ = self.coef_[1:] - self.coef_[:1]
            self.intercept_ = self.intercept_[1:] - self.intercept_[:1]
        self.mean_, self.scale_ = head.mean, head.scale
        self.n_features_in_ = len(self.mean_)
        self.n_iter_ = np.array([head.iterations])
        self.gap_, self.converged_ = head.gap, head.converged


def fit_all(
    models: Sequence[LogisticHead],
    x: np.ndarray,
    y: np.ndarray,
    folds: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> dict[tuple[int, int | None], LogisticHead]:
    """Fit ``models`` that differ in C alone on the rows, or without each of ``folds``.

    ``class_weight`` must be none; the rest as in ``fit_path``.

    Returns:
        (number of the model, fold left out or None) -> a fitted copy of the model.
    """
    first = models[0]
    cs = [float(model.C) for model in models]
    path = fit_path(
        x,
        y,
        cs,
        folds,
        weights,
        standardise=first.standardise,
        tol=first.tol,
        max_iter=first.max_iter,
    )
    found = {}
    for head in path.heads:
        fitted: Any = clone(models[cs.index(head.c)])
        fitted.classes_ = path.classes
        fitted.become(head)
        found[cs.index(head.c), head.fold] = fitted
    return found

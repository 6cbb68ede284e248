"""The heads ``linear`` and, by its base class, ``ridge``: saved as four tables."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    validate_data,
)

from tl_pipeline.heads.linear.design_matrix import moments
from tl_pipeline.heads.linear.regularization_path import PathHead, fit_path
from tl_pipeline.heads.linear.temperature import probabilities


class StandardisedLinear(ClassifierMixin, BaseEstimator):
    """What linear classifiers share once fitted: standardise, one product, softmax.

    Attributes:
        coef_: (K, width), or (1, width) of two classes, of standardised features.
        intercept_: (K,) or (1,).
        mean_: (width,), taken off the features first.
        scale_: (width,), by which they are divided then.
        sharpness_: what decisions are multiplied by before the softmax.
    """

    sharpness_: float = 1.0

    def decision_function(self, X: Any) -> np.ndarray:  # noqa: N803 - sklearn's names
        """Scores (n, K), or (n,) of two classes: positive for the second."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)  # noqa: N806
        standardised = (X - self.mean_.astype(X.dtype)) / self.scale_.astype(X.dtype)
        scores = standardised @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Class probabilities (n, K)."""
        return probabilities(self.decision_function(X), self.sharpness_)

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The class of the greatest score of each row of ``X``."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return self.classes_[(scores > 0).astype(int)]
        return self.classes_[scores.argmax(axis=1)]

    def tensors(self) -> dict[str, np.ndarray]:
        """All that was learned, by name: what ``from_tensors`` needs."""
        return {
            "coef": np.ascontiguousarray(self.coef_),
            "intercept": self.intercept_,
            "mean": self.mean_,
            "scale": self.scale_,
            "sharpness": np.array([self.sharpness_]),
        }

    def from_tensors(self, tensors: dict[str, np.ndarray], classes: list[str]) -> Self:
        """Become the fitted head whose ``tensors`` these are.

        Raises:
            ValueError: their shapes are not those of one head with these classes.
        """
        rows = 1 if len(classes) == 2 else len(classes)
        width = len(tensors["mean"])
        shapes = {"coef": (rows, width), "intercept": (rows,), "scale": (width,)}
        for name, shape in shapes.items():
            if tensors[name].shape != shape:
                raise ValueError(f"{name} has {tensors[name].shape}, not {shape}")
        self.classes_ = np.array(classes)
        self.coef_, self.intercept_ = tensors["coef"], tensors["intercept"]
        self.mean_, self.scale_ = tensors["mean"], tensors["scale"]
        self.sharpness_ = tensors["sharpness"].item()
        self.n_features_in_ = width
        return self

    def training_rows(
        self,
        X: Any,  # noqa: N803
        y: Any,
        sample_weight: Any,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Checked: rows, labels, weights in float64; sets ``classes_``."""
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])  # noqa: N806
        check_classification_targets(y)
        weights = _check_sample_weight(
            sample_weight, X, dtype=np.float64, ensure_non_negative=True
        )
        self.classes_ = np.unique(y)
        if len(np.unique(y[weights > 0])) < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least two classes with a weight above "
                "0; got 1 class"
            )
        return X, y, weights


class LinearClassifier(StandardisedLinear):
    """Multinomial logistic regression: scikit-learn's optimum, in few iterations.

    Minimises ``C sum_i w_i log_loss_i + 1/2 ||W||^2`` with a free intercept, on
    features standardised by the (weighted) training rows; see
    ``softmax_path.fit_path``, which fits many C and folds at once and says more.

    Args:
        C: inverse strength of the penalty.
        class_weight: none, or balanced as in scikit-learn.
        standardise: whether to; else the features are taken as they are.
        tol: relative gap at which to stop, see ``softmax_path.PathHead``.
        max_iter: iterations at most; then a ``ConvergenceWarning``.
        device: a torch device.
        random_state: of no effect: nothing is drawn.

    Attributes:
        n_iter_: (1,), iterations.
        gap_: estimated relative distance of the objective from its minimum.
        converged_: whether it is within ``tol``.
    """

    def __init__(
        self,
        C: float = 1.0,  # noqa: N803
        *,
        class_weight: str = "none",
        standardise: bool = True,
        tol: float = 1e-9,
        max_iter: int = 1000,
        device: str = "cpu",
        random_state: int | None = None,
    ) -> None:
        self.C = C
        self.class_weight = class_weight
        self.standardise = standardise
        self.tol = tol
        self.max_iter = max_iter
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Learn from ``X`` (n, width), labels ``y`` (n,) and weights (n,)."""
        X, y, weights = self.training_rows(X, y, sample_weight)  # noqa: N806
        standardise, before = self.standardise, None
        if self.class_weight != "none":
            # the classes are balanced in the loss, not in the mean and the scale
            if standardise:
                before = moments(X, weights)
                X = ((X - before[0]) / before[1]).astype(X.dtype)  # noqa: N806
            weights, standardise = balance(y, weights, self.class_weight), False
        (head,) = fit_path(
            X,
            y,
            [self.C],
            weights=weights,
            standardise=standardise,
            tol=self.tol,
            max_iter=self.max_iter,
            device=self.device,
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
    models: Sequence[LinearClassifier],
    x: np.ndarray,
    y: np.ndarray,
    folds: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> dict[tuple[int, int | None], LinearClassifier]:
    """Fit ``models`` that differ in C alone on the rows, or without each of ``folds``.

    ``class_weight`` must be none; the rest as in ``softmax_path.fit_path``.

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
        device=first.device,
    )
    found = {}
    for head in path.heads:
        fitted: Any = clone(models[cs.index(head.c)])
        fitted.classes_ = path.classes
        fitted.become(head)
        found[cs.index(head.c), head.fold] = fitted
    return found


def balance(y: np.ndarray, weights: np.ndarray, class_weight: str) -> np.ndarray:
    """``weights`` (n,), for ``balanced`` such that all classes have the same sum.

    With the sum over all rows as it was, as scikit-learn does.
    """
    if class_weight == "none":
        return weights
    classes, targets = np.unique(y, return_inverse=True)
    factors = compute_class_weight(
        class_weight, classes=classes, y=y, sample_weight=weights
    )
    return weights * factors[targets]


def counted(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Those with a weight above 0; the same arrays if all have one."""
    there = weights > 0
    return (x, y, weights) if there.all() else (x[there], y[there], weights[there])

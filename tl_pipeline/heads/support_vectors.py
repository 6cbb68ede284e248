"""The head ``linear_svm``: all classes, and the fits that calibrate it, at once."""

import warnings
from typing import Any, Self

import numpy as np
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning

from tl_pipeline.heads.estimators import balanced
from tl_pipeline.heads.folds import stratified_group_folds
from tl_pipeline.heads.linear.design_matrix import BLOCK, moments
from tl_pipeline.heads.linear.logistic import LinearHead
from tl_pipeline.heads.linear.temperature import fit_inverse_temperature
from tl_pipeline.heads.principal import Centred

ACTIVE = 0.2  # share of rows within the margin that the preconditioner expects
MEMORY = 20


class LinearSVMHead(LinearHead):
    """One class against the rest, squared hinge loss, as ``LinearSVC``.

    Minimises ``C sum_i w_i max(0, 1 - s_i f(x_i))^2 + 1/2 ||w||^2`` for each class;
    unlike liblinear's, the intercept is free of penalty. All classes are solved at once
    by L-BFGS in the basis of principal directions, where the curvature at the usual
    share of support vectors is the identity, so that one matrix product serves all.

    Probabilities are the softmax of the decisions times
    ``inverse_temperature_``, found on decisions of rows that were left out: the same
    descent solves ``folds`` more
    machines a class, each without a part of the rows, or groups (see
    ``CalibratedSVM``, and what it says of classes of one row). Mean and scale are
    those of all rows.

    Args:
        C: inverse strength of the penalty.
        class_weight: none, or balanced as in scikit-learn.
        standardise: whether to.
        folds: parts that are left out in turn; 0: the factor is 1.
        tol: relative gap of the objective at which to stop.
        max_iter: iterations at most; then a ``ConvergenceWarning``.
        random_state: seed of the parts.

    Attributes:
        n_iter_: (1,), iterations.
        gap_: estimated relative distance of the objective from its minimum.
        converged_: whether it is within ``tol``.
    """

    def __init__(
        self,
        C: float = 0.01,  # noqa: N803
        *,
        class_weight: str = "none",
        standardise: bool = True,
        folds: int = 3,
        tol: float = 1e-8,
        max_iter: int = 1000,
        random_state: int | None = None,
    ) -> None:
        self.C = C
        self.class_weight = class_weight
        self.standardise = standardise
        self.folds = folds
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(
        self,
        X: Any,  # noqa: N803
        y: Any,
        sample_weight: Any = None,
        groups: Any = None,
    ) -> Self:
        """Learn from ``X`` (n, width), labels ``y``, weights and groups, all (n,)."""
        x, targets, weights, groups = self.training_set(X, y, sample_weight, groups)
        self.mean_, scale = moments(x, weights)
        self.scale_ = scale if self.standardise else np.ones_like(scale)
        weights = balanced(targets, weights, self.class_weight)
        rows = Centred(x, weights, self.mean_[None], np.zeros(len(x), int), self.scale_)
        fold = np.full(len(x), -1)
        if self.folds:
            fold = stratified_group_folds(
                targets, self.folds, self.random_state, groups
            )
        names = np.arange(len(self.classes_))[1 if len(self.classes_) == 2 else 0 :]
        signs = np.where(targets[:, None] == names, 1, -1).astype(x.dtype)
        machines = [part for part in range(self.folds) if (fold == part).any()]
        problem = _Problem(rows, signs, fold, machines, self.C)
        coefficients = self._solve(problem)
        self.coef_, self.intercept_ = problem.of_features(coefficients[0])
        left_out = fold >= 0
        scores = problem.left_out(coefficients)[left_out]
        self.inverse_temperature_ = fit_inverse_temperature(
            scores[:, 0] if len(names) == 1 else scores,
            targets[left_out],
            weights[left_out],
        )
        return self

    def _solve(self, problem: "_Problem") -> np.ndarray:
        """Coefficients (1 + folds, r + 1, K) in the basis of ``problem``."""

        def stop_when_done(intermediate_result: Any) -> None:  # noqa: ARG001 - scipy's name
            if problem.gap <= self.tol:
                raise StopIteration

        u, iterations = problem.start(), 0
        for precise in (False, True):
            if precise:  # rounding of float32 can end a descent too early
                problem.x = problem.x.astype(np.float64)
            found: Any = minimize(
                problem.evaluate,
                u,
                jac=True,
                method="L-BFGS-B",
                callback=stop_when_done,
                options={
                    "maxiter": self.max_iter - iterations,
                    "maxfun": 2 * self.max_iter,
                    "maxcor": MEMORY,
                    "gtol": 0.0,
                    "ftol": 0.0,
                },
            )
            u, iterations = found.x, iterations + found.nit
            problem.evaluate(u)
            if problem.gap <= self.tol or iterations >= self.max_iter:
                break
        self.n_iter_, self.gap_ = np.array([iterations]), problem.gap
        self.converged_ = self.gap_ <= self.tol
        if not self.converged_:
            warnings.warn(
                f"the linear SVM of C={self.C:g} did not converge within {iterations} "
                f"iterations; it is left with a relative gap of {self.gap_:.1e}, more "
                f"than {self.tol:g}: raise max_iter or tol",
                ConvergenceWarning,
                stacklevel=3,
            )
        return problem.shaped(u)


class _Problem:
    """Rows (n, r + 1) in scaled principal directions, with ones; what is minimised."""

    def __init__(
        self,
        rows: Centred,
        signs: np.ndarray,
        fold: np.ndarray,
        machines: list[int],
        c: float,
    ) -> None:
        powers, directions = rows.principal()
        shrink = 1 / np.sqrt(1 + 2 * c * ACTIVE * powers)
        self.axes = directions * shrink
        self.penalty = np.append(shrink**2, 0)[:, None]
        self.free = 1 / np.sqrt(2 * c * ACTIVE * rows.weights.sum())
        self.x = np.empty((len(rows.x), len(powers) + 1), rows.x.dtype)
        for chosen in rows.blocks():
            self.x[chosen, :-1] = rows.block(chosen) @ self.axes
        self.x[:, -1] = self.free
        self.signs, self.fold, self.machines = signs, fold, machines
        self.weights = rows.weights.astype(rows.x.dtype)
        self.c = c
        self.unit = c * rows.weights.sum()  # numbers near 1 for L-BFGS's first step
        self.gap = np.inf

    def start(self) -> np.ndarray:
        """Zeros for all coefficients, flat."""
        size = (1 + len(self.machines)) * self.x.shape[1] * self.signs.shape[1]
        return np.zeros(size)

    def shaped(self, u: np.ndarray) -> np.ndarray:
        """Of the shape (1 + machines, r + 1, K)."""
        return u.reshape(1 + len(self.machines), self.x.shape[1], -1)

    def evaluate(self, flat: np.ndarray) -> tuple[float, np.ndarray]:
        """Sum of all objectives per row and machine, and its gradient, flat.

        Sets ``gap``: half the squared gradient over the sum, about the relative
        distance from the minimum, for the curvature here is near the identity.
        """
        u = self.shaped(flat)
        columns = np.concatenate(list(u), axis=1).astype(self.x.dtype)
        gradient = np.zeros(columns.shape)
        loss, count = 0.0, self.signs.shape[1]
        for first in range(0, len(self.x), BLOCK):
            rows = slice(first, first + BLOCK)
            signs = np.tile(self.signs[rows], len(u))
            short = np.maximum(1 - signs * (self.x[rows] @ columns), 0)
            for at, part in enumerate(self.machines, 1):
                short[self.fold[rows] == part, at * count : (at + 1) * count] = 0
            pull = short * self.weights[rows, None]
            loss += np.vdot(pull, short).item()
            gradient -= 2 * self.c * (self.x[rows].T @ (pull * signs))
        shrunk = self.penalty * u
        total = self.c * loss + np.vdot(shrunk, u).item() / 2
        slope = np.stack(np.split(gradient, len(u), axis=1)) + shrunk
        self.gap = np.vdot(slope, slope).item() / 2 / max(total, 1e-300)
        return total / self.unit, slope.ravel() / self.unit

    def of_features(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``u`` (r + 1, K) as coefficients (K, width) and intercepts (K,)."""
        return (self.axes @ u[:-1]).T.copy(), u[-1] * self.free

    def left_out(self, u: np.ndarray) -> np.ndarray:
        """Decisions (n, K) of each row by the machine that has not seen it."""
        scores = np.zeros(self.signs.shape)
        for at, part in enumerate(self.machines, 1):
            held = self.fold == part
            scores[held] = self.x[held] @ u[at].astype(self.x.dtype)
        return scores

"""Multinomial logistic regression for every C and every fold at once."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from tl_pipeline.heads.linear.design_matrix import (
    DesignMatrix,
    Standardised,
    moments,
    prepare,
)
from tl_pipeline.heads.linear.lbfgs import LBFGS, Solution
from tl_pipeline.heads.linear.objective import Objective
from tl_pipeline.heads.linear.preconditioner import basis
from tl_pipeline.heads.linear.row_space import row_space
from tl_pipeline.heads.threads import single_threaded

STRIDE = 10.0  # between the penalties that are passed before the first asked for
NEAR = 100.0  # C times the weight of the rows, up to which none has to be
# Columns a row, from which each head is found in the space of its rows. Below, the
# products that folds share are worth more: at 2.3 it took twice as long, at 9 half.
WIDE = 6.0
WARM_UP_TOL = 1e-2  # the relative gap at which to go on from there


@dataclass(frozen=True)
class PathHead:
    """One head: logits are ``(x - mean) / scale @ coef.T + intercept``.

    ``coef`` (K, width) and ``intercept`` (K,) sum to zero over the classes; a class
    without a training row has the intercept minus infinity. ``fold`` is the one left
    out, None if all rows were trained on. ``iterations``, ``gap`` and ``gradient`` are
    what ``lbfgs.Solution`` says; ``converged`` is that the gap is within ``tol``.
    """

    c: float
    fold: int | None
    coef: np.ndarray
    intercept: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    iterations: int
    gap: float
    gradient: float
    converged: bool

    def decision_function(self, x: np.ndarray) -> np.ndarray:
        """Logits of ``x`` (n, width): (n, K)."""
        return (x - self.mean) / self.scale @ self.coef.T + self.intercept


@dataclass(frozen=True)
class Path:
    """Heads of each of ``cs``, ascending, and of each fold.

    ``classes`` are the sorted labels.
    """

    classes: np.ndarray
    cs: list[float]
    heads: list[PathHead]


def fit_path(
    x: np.ndarray,
    y: np.ndarray,
    cs: Sequence[float],
    folds: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    *,
    standardise: bool = True,
    tol: float = 1e-9,
    fold_tol: float = 1e-7,
    max_iter: int = 1000,
) -> Path:
    """Minimise scikit-learn's objective for each of ``cs`` and each fold left out.

    ``C sum_i w_i log_loss_i + 1/2 ||W||^2``, the intercept free; of two classes only
    the difference is penalised, as in scikit-learn. Each C starts from those before;
    all folds share each matrix product, but where rows are wide (``row_space.py``).
    Computes in the precision of ``x``. Memory
    beyond ``x``: a standardised copy, a half of it in bfloat16 where ``Objective``
    uses that, blocks of rows, and some 30 times the heads of one C.

    Args:
        x: embeddings of shape (n, width), float32 or float64.
        y: labels of shape (n,).
        cs: inverse strengths of the penalty.
        folds: the fold of each row, (n,); the head of a fold is trained on the rows of
            the others and scored on its own. -1: always trained on. None: no folds.
        weights: how much each row counts, (n,); also in the standardisation, so that a
            weight of 2 is a row that is there twice.
        standardise: to mean 0 and deviation 1 of the training rows of each head.
        tol: the relative gap at which a head is done. 1e-9 keeps probabilities of new
            rows within about 1e-3 of the optimum's.
        fold_tol: the same for the heads of folds, which are fitted to be scored; the
            greater of the two counts. 1e-7 keeps accuracies within 0.001 and log losses
            within 0.5 % of those at 1e-9, at every C (``benchmarks/heads.py``).
        max_iter: steps at most for one C.

    Warns:
        ConvergenceWarning: heads with a greater gap after ``max_iter`` steps.
    """
    classes, targets = np.unique(y, return_inverse=True)
    counts = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    ascending = sorted({float(c) for c in cs})
    if folds is not None:
        tol = max(tol, fold_tol)
    descend = partial(_descend, cs=ascending, tol=tol, max_iter=max_iter)
    if x.shape[1] > WIDE * len(x):
        heads = []
        for fold in (
            [None] if folds is None else sorted(set(folds[folds >= 0].tolist()))
        ):
            kept = counts if fold is None else counts * (folds != fold)
            of_fold = _in_row_space(x, targets, kept, descend, standardise=standardise)
            heads += [replace(head, fold=fold) for head in of_fold]
    else:
        ready = prepare(x, targets, counts, folds, standardise=standardise)
        heads = descend(ready)
    _warn(heads, tol, max_iter)
    return Path(classes, ascending, sorted(heads, key=lambda head: head.c))


def _in_row_space(
    x: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    descend: Callable[[Standardised], list[PathHead]],
    *,
    standardise: bool,
) -> list[PathHead]:
    """The heads of all rows that have a weight, found on as few columns as those."""
    trained = np.flatnonzero(weights > 0)
    mean, scale = np.zeros(x.shape[1]), np.ones(x.shape[1])
    if standardise:
        mean, scale = moments(x[trained], weights[trained])
    space = row_space(x, trained, mean, scale)
    found = descend(prepare(space.rows(), targets, weights, None, standardise=False))
    return [
        replace(head, coef=space.coefficients(head.coef), mean=mean, scale=scale)
        for head in found
    ]


def _descend(
    ready: Standardised, cs: list[float], tol: float, max_iter: int
) -> list[PathHead]:
    """The heads of each of ``cs``, ascending."""
    work = partial(_solutions, ready.rows, cs, tol, max_iter)
    return [
        head
        for c, solution in zip(cs, single_threaded(work), strict=True)
        for head in _heads(ready, solution, c, tol)
    ]


def _solutions(
    rows: DesignMatrix, cs: list[float], tol: float, max_iter: int
) -> list[Solution]:
    """For each of ``cs``, ascending, from where those before it ended."""
    base, objective = basis(rows), Objective(rows)
    start = rows.x.new_zeros(len(rows.folds), rows.x.shape[1], rows.classes)
    # the difference of two classes is penalised once, not half in either
    share = 0.5 if rows.classes == 2 else 1.0
    before = _warm_up(cs[0], rows)
    found: list[tuple[float, torch.Tensor]] = []
    solutions: list[Solution] = []
    for c in [*before, *cs]:
        enough = WARM_UP_TOL if len(found) < len(before) else tol
        solver = LBFGS(objective, base, share * c, max(tol, enough))
        solutions.append(solver.run(_guess(start, found[-2:], c), max_iter))
        found.append((c, solutions[-1].coefficients))
    return solutions[len(before) :]


def _warm_up(c: float, rows: DesignMatrix) -> list[float]:
    """Stronger penalties before ``c``, from where the first steps do not lead astray.

    On 5,160 rows, C = 0.37 took 76 steps from zero, 13 on the way and 50 from there.
    """
    found = []
    while (c := c / STRIDE) * rows.totals.max().item() > NEAR:
        found.append(c)
    return found[::-1]


def _guess(
    start: torch.Tensor, found: list[tuple[float, torch.Tensor]], c: float
) -> torch.Tensor:
    """Where to begin: a straight line in log C through the last two that were found."""
    if len(found) < 2:
        return found[-1][1] if found else start
    (before, first), (last, second) = found
    stretch = min(np.log(c / last) / np.log(last / before), 2.0)
    return second + stretch * (second - first)


def _heads(
    ready: Standardised, solution: Solution, c: float, tol: float
) -> list[PathHead]:
    rows = ready.rows
    heads = []
    for at, fold in enumerate(rows.folds):
        solved = solution.coefficients[at].cpu().numpy().T
        # far weights are real, but a class that is not there has none
        never = rows.absent[at].cpu().numpy()
        mean = rows.mean[at].cpu().numpy().astype(np.float64)
        heads.append(
            PathHead(
                c,
                None if fold < 0 else fold,
                solved[:, :-1].copy(),
                np.where(never, -np.inf, solved[:, -1]),
                ready.mean + ready.scale * mean,
                ready.scale * rows.scale[at].cpu().numpy(),
                solution.iterations[at],
                solution.gaps[at],
                solution.gradients[at],
                solution.gaps[at] <= tol,
            )
        )
    return heads


def _warn(heads: list[PathHead], tol: float, max_iter: int) -> None:
    left = [head for head in heads if not head.converged]
    if left:
        worst = max(left, key=lambda head: head.gap)
        spent = worst.iterations >= max_iter
        cure = "raise max_iter" if spent else "rounding lets it come no nearer: lower C"
        warnings.warn(
            f"{len(left)} of {len(heads)} heads did not converge within "
            f"{worst.iterations} iterations; the worst, C={worst.c:g}, is left with a "
            f"relative gap of {worst.gap:.1e}, more than {tol:g}; {cure} or raise tol",
            ConvergenceWarning,
            stacklevel=3,
        )

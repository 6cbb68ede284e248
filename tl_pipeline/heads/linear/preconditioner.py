"""Preconditioner of a path: one curvature matrix a class, shared by the folds.

The Hessian of class k alone is ``C X' diag(w p_k (1 - p_k)) X + I``. Boehning (1992,
"Multinomial logistic regression algorithm", Ann. Inst. Stat. Math. 44) bounds it by
``C/2 X'X + I`` for all classes at once, far from it where most rows are certain. Here
the rows of greatest curvature enter one by one and the others through the mean Gram
matrix, in the directions of most variance; the directions left over get one number.

Measured on 512 features and 43 classes, in exact passes for 8 C from 1e-4 to 10, each
from the one before, to a gap of 1e-8 of the mean loss: on 5,160 rows 661 by Boehning's
bound, 565 by the Gram matrix at each class's own scale; on 3,440 rows 534 by the
latter, 90 by the Hessian of each class. Folds share the matrices, for any two of them
have most of their rows in common. A fold whose rows have quite another
mean or scale than the others' (by many deviations) takes more steps.
"""

from dataclasses import dataclass
from functools import partial

import torch

from tl_pipeline.heads.linear.design_matrix import BLOCK, DesignMatrix
from tl_pipeline.heads.threads import product, run_together, thread_count

DIRECTIONS = 256  # of the matrices of one class, or an eighth of the width
ROUNDING = 0.02  # of the penalty, from which float32 is left
NUMBERS = 1 << 25  # at most, of the matrices of all classes


@dataclass(frozen=True)
class Basis:
    """The directions that get a matrix: ``axes`` (width, r) or None for all of them.

    ``inner`` (n, r + 1) are the rows in them with the ones, ``gram`` (r + 1, r + 1)
    their mean Gram matrix, ``tail`` the mean variance of what is left over.
    """

    axes: torch.Tensor | None
    inner: torch.Tensor
    gram: torch.Tensor
    tail: float


def basis(rows: DesignMatrix) -> Basis:
    """The directions of most variance, by a randomised range finder with one iteration.

    Halko, Martinsson & Tropp (2011, algorithm 4.4); its precision is of no importance,
    a preconditioner only. All directions, where they are few.
    """
    x, width = rows.x, rows.x.shape[1] - 1
    few = max(8, int((NUMBERS / rows.classes) ** 0.5))
    rank = min(width, max(DIRECTIONS, width // 8), len(x), few)
    if rank == width:
        return Basis(None, x, _gram(x), 0.0)
    some = x[:: max(1, len(x) // (8 * rank)), :-1]
    chance = torch.Generator().manual_seed(0)
    start = torch.randn(width, rank, generator=chance, dtype=torch.float32)
    axes = product(some.T, product(some, start.to(x)))
    axes = product(some.T, product(some, torch.linalg.qr(axes).Q))
    axes = torch.linalg.qr(axes).Q
    inner = x.new_ones(len(x), rank + 1)
    power = 0.0
    for at in range(0, len(x), BLOCK):
        chosen = slice(at, at + BLOCK)
        inner[chosen, :-1] = product(x[chosen, :-1], axes)
        power += x[chosen, :-1].square().sum(dtype=torch.float64).item()
    gram = _gram(inner)
    left = power / len(x) - gram.diagonal()[:-1].sum().item()
    return Basis(axes, inner, gram, max(left, 0.0) / (width - rank))


@dataclass(frozen=True)
class Preconditioner:
    """An inverse of the approximate Hessian: ``inverse`` (K, r + 1, r + 1).

    All is in float64 where float32 would not keep it positive definite.
    """

    axes: torch.Tensor | None
    inverse: torch.Tensor
    outside: torch.Tensor
    absent: torch.Tensor

    def solve(self, gradient: torch.Tensor) -> torch.Tensor:
        """Precondition (H, D, K); symmetric, and the classes of a head sum to zero.

        Adding one vector to all classes changes no probability, so nothing may move
        there: the gradient sums to zero over classes, and so must every step.
        """
        inner = gradient = gradient.to(self.outside)
        if self.axes is not None:
            inside = self.axes.T @ gradient[:, :-1]
            inner = torch.cat([inside, gradient[:, -1:]], dim=1)
        # of the two orders the one that reads each matrix row by row
        solved = torch.bmm(inner.permute(2, 0, 1), self.inverse).permute(1, 2, 0)
        if self.axes is not None:
            within = solved[:, :-1] - inner[:, :-1] / self.outside
            rest = self.axes @ within + gradient[:, :-1] / self.outside
            solved = torch.cat([rest, solved[:, -1:]], dim=1)
        return centred(solved, self.absent)


def centred(step: torch.Tensor, absent: torch.Tensor) -> torch.Tensor:
    """(H, D, K) with mean zero over the classes that are not ``absent`` (H, K)."""
    present = (~absent)[:, None, :].to(step)
    step = step * present
    mean = step.sum(dim=2, keepdim=True) / present.sum(dim=2, keepdim=True)
    return step - mean * present


def precondition(
    base: Basis,
    row_curvature: torch.Tensor,
    c: float,
    rows: DesignMatrix,
    *,
    exact: bool,
) -> Preconditioner:
    """The preconditioner at strength ``c`` for the ``row_curvature`` (n, K) of a pass.

    In float64 if ``exact``, or if float32 would probably not do.
    """
    size = base.inner.shape[1]
    count = min(len(row_curvature), size)
    top, at = row_curvature.topk(count, dim=0)
    rest = row_curvature.sum(dim=0) - top.sum(dim=0)
    # how far float32 is off, to a penalty of 1
    rounding = 4 * torch.finfo(base.inner.dtype).eps
    typical = c * row_curvature.sum(dim=0).max() * base.gram.diagonal()[:-1].mean()
    exact = exact or rounding * typical.item() > ROUNDING
    kind = torch.float64 if exact else base.inner.dtype
    inverse = base.inner.new_empty(rows.classes, size, size, dtype=kind)
    penalty = torch.ones(size).to(inverse)
    penalty[-1] = 0
    gram = base.gram.to(kind)

    def invert(classes: range) -> None:
        for k in classes:
            chosen = base.inner[at[:, k]].to(kind) * top[:, k, None].to(kind).sqrt()
            shared = c * rest[k].item() if rest[k] > 0 else 0.0
            matrix = c * (chosen.T @ chosen) + shared * gram
            jitter = 4 * torch.finfo(kind).eps * (matrix.diagonal().max() + 1e-3)
            jitter += rounding * shared * gram.diagonal().max()
            matrix.diagonal().add_(penalty + jitter)
            inverse[k] = torch.cholesky_inverse(torch.linalg.cholesky(matrix))

    count = thread_count()
    run_together([partial(invert, range(k, rows.classes, count)) for k in range(count)])
    outside = 1 + c * base.tail * row_curvature.sum(dim=0)
    axes = None if base.axes is None else base.axes.to(kind)
    return Preconditioner(axes, inverse, outside.to(kind), rows.absent)


def _gram(x: torch.Tensor) -> torch.Tensor:
    return product(x.T, x) / len(x)

"""Preconditioned L-BFGS for all heads of one C at once, each with a step of its own.

Nocedal & Wright (2006), algorithm 7.5, with the inverse of ``preconditioner.py``
in the place of the scaled identity, and backtracking on the loss (their algorithm 3.1).
A step costs one pass over the rows for all heads together, and one product with the
inverse curvature; heads that are done leave the passes.
"""

from dataclasses import dataclass

import numpy as np
import torch

from tl_pipeline.heads.linear.objective import Objective
from tl_pipeline.heads.linear.preconditioner import Basis, Preconditioner, precondition

MEMORY = 10  # pairs of steps and gradient changes that are kept
REFRESH = (24, 60)  # iterations after which the curvature is taken anew
HALVINGS = 30
FLOOR = 1e-3  # of the gap, to which steps by changes are trusted
ROUGH = 1e-6  # of the loss, to which it is known in float32
ODD = 1e6  # times the curvature that was expected of a step: no curvature but rounding
PATIENCE = 15  # iterations without a better gap before float64 takes over


@dataclass(frozen=True)
class Pair:
    """A step (H, D, K), its gradient change, and that preconditioned.

    ``inverse`` (H,) is 1 over the product of the first two, 0 for a head to skip.
    """

    step: torch.Tensor
    change: torch.Tensor
    solved: torch.Tensor
    inverse: torch.Tensor


@dataclass(frozen=True)
class Solution:
    """Where the solver ended: ``coefficients`` (H, D, K), and per head how well.

    ``gaps`` estimate (f - minimum) / f by half the squared length of the gradient in
    the inverse curvature; ``gradients`` are the greatest absolute derivatives of f over
    C and the weight of the training rows, which is scikit-learn's measure.
    """

    coefficients: torch.Tensor
    iterations: list[int]
    gaps: list[float]
    gradients: list[float]


class LBFGS:
    """Minimise ``C loss + 1/2 ||W||^2`` of every head of ``rows`` for one C."""

    def __init__(self, objective: Objective, base: Basis, c: float, tol: float) -> None:
        self.objective, self.base, self.c, self.tol = objective, base, c, tol
        self.rows = rows = objective.rows
        self.live = list(range(len(rows.folds)))
        self.gaps = [float("inf")] * len(rows.folds)
        self.drifted = False  # by steps of which only the change was computed
        self.anchors = self.gaps  # absolute, when it last had not
        self.pairs: list[Pair] = []
        self.inverse: Preconditioner  # set by _begin
        self.stuck: list[int] = []
        self.precise = rows.x.dtype == torch.float64
        self.exact = self.precise  # the curvature

    def run(self, w: torch.Tensor, max_iter: int) -> Solution:
        """Descend from ``w`` (H, D, K), ``max_iter`` steps at most.

        In float32, then the heads that come no nearer because of its rounding go on in
        float64.
        """
        iterations = np.zeros(len(self.live), int)
        f, g, solved, best = self._begin(w)
        since = 0
        while self.live and iterations.max() < max_iter:
            iterations[self.live] += 1
            since += 1
            fresh = int(iterations.max()) in REFRESH
            drifted = self.drifted
            step = self._direction(g, solved)
            step, f, g_new, row_curvature = self._search(w, step, f, g, fresh=fresh)
            w = w + step
            if row_curvature is not None:
                self._renew(row_curvature)
                solved = self._solve(g)
            solved_new = self._solve(g_new)
            self._remember(step, g_new - g, solved_new - solved)
            g, solved = g_new, solved_new
            total = self._judge(f, g, solved)
            spent = iterations.max() == max_iter
            if self.drifted and (
                spent or (drifted and self.stuck) or self._at_the_floor(f)
            ):
                f, g = self._corrected(w, f, g)
                solved = self._solve(g)
                total = self._judge(f, g, solved)
            if not self.exact and total == np.inf:
                f, g, solved, total = self._begin(w, exact=True)
            if total < 0.7 * best:
                best, since = total, 0
            if self.precise:
                self.live = [head for head in self.live if head not in self.stuck]
            elif self.live and (self.stuck or since > PATIENCE):
                self.precise, w = True, w.double()
                f, g, solved, _ = self._begin(w)
        steepest = g.abs().amax(dim=(1, 2)).double() / self.c / self.rows.totals
        return Solution(
            w.to(self.rows.x), iterations.tolist(), self.gaps, steepest.tolist()
        )

    def _begin(
        self, w: torch.Tensor, *, exact: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
        """Objective, gradient, it preconditioned, and the sum of the gaps at ``w``.

        With a curvature in float64 if one in float32 gives a gap that is none.
        """
        self.exact |= exact
        self.pairs, self.drifted = [], False
        f, g, row_curvature = self._objective(w, list(range(len(w))), fresh=True)
        self._renew(row_curvature)
        solved = self._solve(g)
        total = self._judge(f, g, solved)
        if total == np.inf and not self.exact:
            return self._begin(w, exact=True)
        return f, g, solved, total

    def _solve(self, g: torch.Tensor) -> torch.Tensor:
        return self.inverse.solve(g).to(g)

    def _objective(
        self, w: torch.Tensor, heads: list[int], *, fresh: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Objective (H,) in float64, gradient (H, D, K), curvature if ``fresh``."""
        found = self.objective.at(w, heads, with_curvature=fresh)
        gradient = self.c * found.gradient
        gradient[:, :-1] += w[:, :-1]
        norm = w[:, :-1].square().sum(dim=(1, 2), dtype=torch.float64)
        return self.c * found.loss + norm / 2, gradient, found.row_curvature

    def _moved(
        self, w: torch.Tensor, step: torch.Tensor, g: torch.Tensor, *, fresh: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The same after ``step`` from ``w``, as far as bfloat16 goes."""
        self.drifted = True
        found = self.objective.after(step, self.live, with_curvature=fresh)
        gradient = g + self.c * found.gradient
        gradient[:, :-1] += step[:, :-1]
        norm = (w + step)[:, :-1].square().sum(dim=(1, 2), dtype=torch.float64)
        return self.c * found.loss + norm / 2, gradient, found.row_curvature

    def _at_the_floor(self, f: torch.Tensor) -> bool:
        """Whether all heads seem done, or one comes no nearer by changes alone."""
        now = (f * torch.tensor(self.gaps)).tolist()
        return all(self.gaps[head] <= self.tol for head in self.live) or any(
            now[head] <= FLOOR * self.anchors[head] for head in self.live
        )

    def _corrected(
        self, w: torch.Tensor, f: torch.Tensor, g: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Objective and gradient of the heads at work, without what has drifted."""
        self.stuck, self.drifted = [], False
        f_new, g_new, _ = self._objective(w, self.live, fresh=False)
        f, g = f.clone(), g.clone()
        f[self.live], g[self.live] = f_new[self.live], g_new[self.live]
        return f, g

    def _judge(self, f: torch.Tensor, g: torch.Tensor, solved: torch.Tensor) -> float:
        """Note the gaps of the heads at work, and let go those that are done.

        A negative one is rounding that the curvature does not survive: infinite.
        Returns the sum of all gaps. A head that was let go is not judged again: another
        curvature would estimate its gap a little differently.
        """
        found = _dot(g, solved) / 2 / f.clamp_min(1e-300)
        gaps = torch.where(found >= 0, found, torch.inf).tolist()
        for head in self.live:
            self.gaps[head] = gaps[head]
        if not self.drifted:
            self.anchors = (f * torch.tensor(self.gaps)).tolist()
            self.live = [head for head in self.live if not gaps[head] <= self.tol]
        return sum(self.gaps)

    def _search(
        self,
        w: torch.Tensor,
        step: torch.Tensor,
        f: torch.Tensor,
        g: torch.Tensor,
        *,
        fresh: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Halve each head's step until its loss falls: step, loss, gradient, curvature.

        A head whose loss will not fall stays where it is, and is ``stuck``.
        """
        size = torch.zeros_like(f)
        size[self.live] = 1
        slope, drifted = _dot(g, step), self.drifted
        slack = 1e-14 if self.precise else ROUGH  # the loss itself is known no better
        f_new, g_new, row_curvature = f.clone(), g.clone(), None
        todo = self.live
        for attempt in range(HALVINGS):
            part = _wide(size, step) * step
            if attempt == 0 and self.objective.by_change:
                f_try, g_try, s = self._moved(w, part, g, fresh=fresh)
            else:
                f_try, g_try, s = self._objective(
                    w + part, todo, fresh=fresh and attempt == 0
                )
            row_curvature = s if attempt == 0 else row_curvature
            bound = f + 1e-4 * size * slope + slack * f.abs()
            falls = f_try <= bound
            # nearer than the loss can tell: Hager & Zhang (2005), equation 4.1
            falls |= (_dot(g_try, step) <= -0.9998 * slope) & (
                f_try <= f + ROUGH * f.abs()
            )
            good = [head for head in todo if falls[head]]
            f_new[good], g_new[good] = f_try[good], g_try[good]
            todo = [head for head in todo if head not in good]
            if not todo:
                break
            if attempt == 0 and drifted:
                f = f.clone()
                f[todo] = self._objective(w, todo, fresh=False)[0][todo]
            size[todo] /= 2
        size[todo] = 0
        self.stuck = todo
        return _wide(size, step) * step, f_new, g_new, row_curvature

    def _direction(self, g: torch.Tensor, solved: torch.Tensor) -> torch.Tensor:
        """The two-loop recursion, per head; ``solved`` is ``g`` preconditioned."""
        left, right = g.clone(), solved.clone()
        alphas = []
        for pair in reversed(self.pairs):
            alpha = _dot(pair.step, left) * pair.inverse
            left -= _wide(alpha, left) * pair.change
            right -= _wide(alpha, right) * pair.solved
            alphas.append(alpha)
        for at, (pair, alpha) in enumerate(
            zip(self.pairs, reversed(alphas), strict=True)
        ):
            if at == 0:
                right *= _wide(self._scale(), right)
            beta = _dot(pair.change, right) * pair.inverse
            right += _wide(alpha - beta, right) * pair.step
        # downhill, or what rounding made of the pairs is not used
        down = _dot(g, right) > 0
        return -torch.where(down[:, None, None], right, solved)

    def _scale(self) -> torch.Tensor:
        last = self.pairs[-1]
        scale = 1 / (last.inverse * _dot(last.change, last.solved))
        return torch.where(last.inverse > 0, scale, 1)

    def _remember(
        self, step: torch.Tensor, change: torch.Tensor, solved: torch.Tensor
    ) -> None:
        """Keep a pair, but of heads where it is rounding.

        The inverse curvature makes of the change about the step: the ratio of their
        products with the change would be 1 if it were exact.
        """
        product = _dot(step, change)
        ratio = product / _dot(change, solved)
        good = (product > 1e-12 * _dot(step, step)) & (ratio > 1 / ODD) & (ratio < ODD)
        inverse = torch.where(good, 1 / torch.where(good, product, 1), 0)
        self.pairs = [*self.pairs, Pair(step, change, solved, inverse)][-MEMORY:]

    def _renew(self, row_curvature: torch.Tensor | None) -> None:
        """Make the preconditioner anew for ``row_curvature``, and for what is kept."""
        if row_curvature is None:
            return
        self.inverse = precondition(
            self.base, row_curvature, self.c, self.rows, exact=self.exact
        )
        self.pairs = [
            Pair(p.step, p.change, self._solve(p.change), p.inverse) for p in self.pairs
        ]


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of each head: (H,) in float64."""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1)).double()


def _wide(numbers: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return numbers[:, None, None].to(like)

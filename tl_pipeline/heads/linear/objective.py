"""What all heads of a path minimise: loss and gradient by passes over the rows.

A head that takes a step needs only what the step changes. Where the processor computes
bfloat16 faster, the rows' log probabilities are kept, the step's change of them and of
the gradient are products in bfloat16, and their rounding, 2^-9 of the change, vanishes
with the steps. What the solver starts and ends with is computed as precisely as the
coefficients are (``Objective.at``): mixed precision as in iterative refinement (Higham
2002, "Accuracy and Stability of Numerical Algorithms", chapter 12).
"""

from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter

import torch
from torch.nn.functional import pad

from tl_pipeline.embedding.devices import has_bfloat16
from tl_pipeline.heads.linear.design_matrix import Block, DesignMatrix
from tl_pipeline.heads.threads import run_together

WORTH = 1 << 20  # numbers in the rows; below, small products cost more than they save
ALIGNED = 32  # columns of bfloat16: products of other widths take twice as long


@dataclass(frozen=True)
class Evaluated:
    """What one pass found: ``loss`` (H,) in float64, ``gradient`` (H, D, K).

    Both without C and penalty. ``row_curvature`` (n, K), where it was asked for, is
    p (1 - p) times the row's weight, averaged over heads.
    """

    loss: torch.Tensor
    gradient: torch.Tensor
    row_curvature: torch.Tensor | None


@dataclass(frozen=True)
class Kept:
    """Log probabilities (rows, heads, K) of the rows of one fold, from ``first`` on."""

    first: int
    heads: list[int]
    log: torch.Tensor

    def of(self, block: slice, heads: list[int]) -> torch.Tensor:
        """Those of ``block`` under ``heads``: (rows, heads, K), perhaps a view."""
        found = self.log[block.start - self.first : block.stop - self.first]
        return found if heads == self.heads else found[:, self._at(heads)]

    def keep(self, block: slice, heads: list[int], log: torch.Tensor) -> None:
        """Take ``log`` for those of ``block`` under ``heads``."""
        self.log[block.start - self.first : block.stop - self.first][
            :, slice(None) if heads == self.heads else self._at(heads)
        ] = log

    def _at(self, heads: list[int]) -> list[int]:
        return [self.heads.index(head) for head in heads]


class Objective:
    """Losses and gradients of the heads of ``rows``.

    Coefficients are (H, D, K) in units of each head's standardised rows. Heads that
    are not asked for get zeros.

    Attributes:
        rows: what was given.
        by_change: whether ``after`` may be called.
    """

    def __init__(self, rows: DesignMatrix) -> None:
        self.rows = rows
        large = rows.x.numel() >= WORTH
        self.by_change = large and has_bfloat16(rows.x.device)
        self._kept: dict[int, Kept] = {}  # of each fold
        if self.by_change:
            width = -(-rows.x.shape[1] // ALIGNED) * ALIGNED
            self._half = torch.zeros(len(rows.x), width, dtype=torch.bfloat16)
            self._half[:, : rows.x.shape[1]] = rows.x

    def at(
        self, w: torch.Tensor, heads: list[int], *, with_curvature: bool
    ) -> Evaluated:
        """Loss and gradient at ``w``, in its precision."""
        if self.by_change and not (
            self._kept and next(iter(self._kept.values())).log.dtype == w.dtype
        ):
            self._kept = {}  # first, for its memory
            self._kept = self._keep(w)
        return self._pass(w, heads, whole=True, with_curvature=with_curvature)

    def after(
        self, step: torch.Tensor, heads: list[int], *, with_curvature: bool
    ) -> Evaluated:
        """Loss after a ``step`` from where the last pass was; the gradient's change."""
        return self._pass(step, heads, whole=False, with_curvature=with_curvature)

    def _keep(self, w: torch.Tensor) -> dict[int, Kept]:
        rows = self.rows
        ends = [first for first, _ in rows.starts[1:]] + [len(rows.x)]
        found = {}
        for (first, fold), end in zip(rows.starts, ends, strict=True):
            heads = [head for head, name in enumerate(rows.folds) if name != fold]
            log = w.new_empty(end - first, len(heads), rows.classes)
            found[fold] = Kept(first, heads, log)
        return found

    def _pass(
        self, w: torch.Tensor, heads: list[int], *, whole: bool, with_curvature: bool
    ) -> Evaluated:
        rows = self.rows
        of_rows = rows.to_rows(w)
        row_curvature = None
        if with_curvature:
            row_curvature = rows.x.new_zeros(len(rows.x), rows.classes)
        share = partial(self._share, of_rows, heads, row_curvature, whole)
        parts = run_together([partial(share, blocks) for blocks in rows.shares()])
        loss, gradient = parts[0]
        for more in parts[1:]:
            loss += more[0]
            gradient += more[1]
        return Evaluated(loss, rows.from_rows(gradient), row_curvature)

    def _share(
        self,
        of_rows: torch.Tensor,
        heads: list[int],
        row_curvature: torch.Tensor | None,
        whole: bool,
        blocks: list[Block],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and gradient of ``blocks``; fills in their ``row_curvature``."""
        rows = self.rows
        loss = torch.zeros(len(of_rows), dtype=torch.float64)
        gradient = torch.zeros_like(of_rows)
        for fold, run in groupby(blocks, key=itemgetter(1)):
            trained = [head for head in heads if rows.folds[head] != fold]
            if not trained:
                continue
            columns = rows.columns(of_rows, trained)
            if not whole:
                missing = self._half.shape[1] - len(columns)
                columns = pad(columns, (0, 0, 0, missing)).bfloat16()
            summed = of_rows.new_zeros(columns.shape[::-1])
            for block, _ in run:
                weights = rows.weights[block, None, None].to(of_rows)
                own = rows.targets[block, None, None].expand(-1, len(trained), 1)
                x = rows.x[block].to(of_rows) if whole else self._half[block]
                before = None if whole else self._kept[fold].of(block, trained)
                found = rows.log_probabilities(x, columns, trained, before)
                was = None if before is None else before.exp()
                if self.by_change:
                    self._kept[fold].keep(block, trained, found)
                of_own = found.gather(2, own)
                of_own = torch.where(weights > 0, of_own, 0)  # absent: -inf times 0
                loss[trained] -= (weights * of_own).sum(dim=(0, 2), dtype=torch.float64)
                found.exp_()
                if row_curvature is not None:
                    uncertain = ((1 - found) * found).sum(dim=1) * weights[:, 0]
                    row_curvature[block] = (uncertain / len(heads)).to(row_curvature)
                if was is None:
                    found.scatter_add_(2, own, -torch.ones_like(of_own))
                    summed.addmm_((found * weights).view(len(x), -1).T, x)
                else:
                    found -= was
                    changed = (found * weights).to(x).view(len(x), -1)
                    summed += changed.T @ x
            of_heads = summed[:, : gradient.shape[1]].view(
                len(trained), rows.classes, -1
            )
            gradient[trained] += of_heads.transpose(1, 2)
        return loss, gradient

"""The rows of a path: blocks of them, what each head sees, one pass over all.

Rows lie sorted by fold, standardised by the statistics of all rows, with a last column
of ones for the intercept. A head trains on the rows of every fold but its own. Its own
standardisation is a change of its coefficients, not of the rows (``to_rows``), so that
one matrix product serves all heads and no head learns from rows that it must not see.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from tl_pipeline.heads.threads import thread_count

BLOCK = 2048  # rows of one product at most; bounds the memory of a pass
WORTH_SHARING = 1 << 24  # multiplications of a pass
NUMBERS = 1 << 21  # of the rows of one block: more fall out of a core's cache

Block = tuple[slice, int]  # rows, and the fold that they are of


@dataclass(frozen=True)
class DesignMatrix:
    """Standardised rows, and what of them each of H heads is trained on.

    ``x`` (n, D) ends in a column of ones, D = width + 1; ``targets`` (n,) are class
    numbers; ``weights`` (n,) count each row. ``starts`` are (first row, fold) of runs
    of one fold; ``folds`` (H,) names the fold each head leaves out, -2 for none;
    ``totals`` (H,) in float64 are the weights of what it is trained on.
    ``mean`` and ``scale`` (H, D - 1) standardise a head's own training rows in units of
    ``x``. ``absent`` (H, K) is True where no training row has the class.
    """

    x: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    starts: list[tuple[int, int]]
    folds: list[int]
    totals: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor
    absent: torch.Tensor

    @property
    def classes(self) -> int:
        """K, the number of classes."""
        return self.absent.shape[1]

    def to_rows(self, coefficients: torch.Tensor) -> torch.Tensor:
        """(H, D, K) on each head's standardised rows, as coefficients of ``x``."""
        weights = coefficients[:, :-1] / self.scale[:, :, None]
        shift = (self.mean[:, :, None] * weights).sum(dim=1, keepdim=True)
        return torch.cat([weights, coefficients[:, -1:] - shift], dim=1)

    def from_rows(self, gradient: torch.Tensor) -> torch.Tensor:
        """The transpose of ``to_rows``: (H, D, K) in ``x``'s units to the heads'."""
        ones = gradient[:, -1:]
        inner = (gradient[:, :-1] - self.mean[:, :, None] * ones) / self.scale[
            :, :, None
        ]
        return torch.cat([inner, ones], dim=1)

    def blocks(self) -> list[Block]:
        """Slices of some rows, each with the one fold of its rows."""
        ends = [first for first, _ in self.starts[1:]] + [len(self.x)]
        fair = -(-len(self.x) // (2 * thread_count()))
        most = min(BLOCK, fair, max(256, NUMBERS // self.x.shape[1]))
        cut = []
        for (first, fold), end in zip(self.starts, ends, strict=True):
            pieces = -(-(end - first) // most)
            edges = [first + (end - first) * at // pieces for at in range(pieces + 1)]
            cut += [(slice(*edge), fold) for edge in pairwise(edges)]
        return cut

    def shares(self) -> list[list[Block]]:
        """``blocks`` divided, in order, among as many threads as compute at once."""
        blocks, count = self.blocks(), thread_count()
        if self.x.numel() * self.absent.numel() < WORTH_SHARING:
            return [blocks]
        edges = [len(blocks) * at // count for at in range(count + 1)]
        return [blocks[first:end] for first, end in pairwise(edges) if first < end]

    def columns(self, of_rows: torch.Tensor, heads: list[int]) -> torch.Tensor:
        """(H, D, K) of ``to_rows`` side by side, those of ``heads``: (D, heads * K)."""
        return of_rows[heads].permute(1, 0, 2).reshape(of_rows.shape[1], -1)

    def log_probabilities(
        self,
        x: torch.Tensor,
        columns: torch.Tensor,
        heads: list[int],
        before: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Log softmax of ``x`` (n, D) under ``columns`` of ``heads``: (n, heads, K).

        With those from ``before`` the ``columns`` are of the change of coefficients.
        """
        logits = (x @ columns).view(-1, len(heads), self.classes)
        if before is None:
            logits.masked_fill_(self.absent[heads], -torch.inf)
        else:
            logits = before + logits
        return logits.log_softmax(dim=2)


@dataclass(frozen=True)
class Standardised:
    """``rows``, and the ``mean`` and ``scale`` (width,) that made them of the given."""

    rows: DesignMatrix
    mean: np.ndarray
    scale: np.ndarray


def prepare(
    x: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    folds: np.ndarray | None,
    *,
    standardise: bool,
) -> Standardised:
    """Sort and standardise; one head per fold, or one of all rows without ``folds``."""
    of_rows = np.full(len(x), -1) if folds is None else np.asarray(folds)
    heads = [-2] if folds is None else sorted(set(of_rows[of_rows >= 0].tolist()))
    order = np.argsort(of_rows, kind="stable")
    fold, targets, weights = of_rows[order], targets[order], weights[order]
    changes = np.flatnonzero(np.diff(fold, prepend=fold[0] - 1))
    width, classes = x.shape[1], int(targets.max()) + 1
    mean, scale = np.zeros(width), np.ones(width)
    if standardise:
        mean, scale = moments(x, np.ones(len(x)))
    table = np.ones((len(x), width + 1), x.dtype)
    for first in range(0, len(x), BLOCK):
        chosen = slice(first, first + BLOCK)
        table[chosen, :-1] = (x[order[chosen]] - mean.astype(x.dtype)) / scale.astype(
            x.dtype
        )
    kept = [weights * (fold != head) for head in heads]
    own = [(np.zeros(width), np.ones(width)) for _ in heads]
    if standardise:
        own = _moments_without(heads, table[:, :-1], weights, fold)
    absent = np.array([np.bincount(targets, c, classes) == 0 for c in kept])

    def tensor(numbers: np.ndarray, dtype: Any = None) -> torch.Tensor:
        return torch.from_numpy(numbers.astype(dtype or numbers.dtype))

    rows = DesignMatrix(
        torch.from_numpy(table),
        tensor(targets),
        tensor(weights, x.dtype),
        [(int(at), int(fold[at])) for at in changes],
        heads,
        tensor(np.array([c.sum() for c in kept])),
        tensor(np.array([moment[0] for moment in own]), x.dtype),
        tensor(np.array([moment[1] for moment in own]), x.dtype),
        tensor(absent),
    )
    return Standardised(rows, mean, scale)


def _moments_without(
    heads: list[int], z: np.ndarray, weights: np.ndarray, fold: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """``moments`` of ``z``, nearly standardised, without each fold, in one pass.

    ``fold`` (n,) is sorted.
    """
    sums = {name: np.zeros((3, z.shape[1])) for name in np.unique(fold).tolist()}
    for name, total in sums.items():
        first, end = np.searchsorted(fold, [name, name + 1])
        for at in range(first, end, BLOCK):
            rows = slice(at, min(at + BLOCK, end))
            block = z[rows].astype(np.float64)
            total[0] += weights[rows].sum()
            total[1] += weights[rows] @ block
            total[2] += weights[rows] @ np.square(block, out=block)
    found = []
    for head in heads:
        total = np.sum([sums[name] for name in sums if name != head], axis=0)
        mean, square = total[1] / total[0], total[2] / total[0]
        found.append((mean, _deviation(square - mean**2, square, mean, z)))
    return found


def moments(x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and standard deviation of each column, in float64.

    A column that is constant, up to rounding, has the deviation 1, as in scikit-learn's
    ``StandardScaler``.
    """
    mean, variance = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for first in range(0, len(x), BLOCK):
        rows = slice(first, first + BLOCK)
        mean += weights[rows] @ x[rows].astype(np.float64)
    mean /= weights.sum()
    for first in range(0, len(x), BLOCK):
        rows = slice(first, first + BLOCK)
        variance += weights[rows] @ (x[rows] - mean) ** 2
    variance /= weights.sum()
    return mean, _deviation(variance, variance, mean, x)


def _deviation(
    variance: np.ndarray, square: np.ndarray, mean: np.ndarray, x: np.ndarray
) -> np.ndarray:
    """Root of ``variance``, but 1 where it is no more than the rounding of its sums."""
    rounding = len(x) * np.finfo(np.float64).eps * square
    rounding += (np.finfo(x.dtype).eps * mean) ** 2
    return np.sqrt(np.where(variance > rounding, variance, 1))

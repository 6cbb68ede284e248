"""Rows that are much wider than they are many, in as many columns as rows.

By the representer theorem (Kimeldorf & Wahba 1971, J. Math. Anal. Appl. 33) the weights
of least penalised loss lie in the span of the standardised training rows Z. With
Z Z' = L L' the rows of L have the same products, and weights v on them the length and
the logits of Z' L'^-1 v. So a head on L is the head on Z.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import linalg

COLUMNS = 4096  # of one product; bounds the memory
JITTER = 1e-10  # of the mean diagonal: centred rows are dependent


@dataclass(frozen=True)
class RowSpace:
    """The training rows of one head in a space of their own number.

    ``x`` (n, width) are all rows, of which those numbered ``trained`` (m,) are learned
    from, standardised by ``mean`` and ``scale`` (width,). ``factor`` (m, m), lower
    triangular and float64, has their products.
    """

    x: np.ndarray
    trained: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    factor: np.ndarray

    def rows(self) -> np.ndarray:
        """(n, m), in the precision of ``x``; zeros for what is not learned from."""
        found = np.zeros((len(self.x), len(self.trained)), self.x.dtype)
        found[self.trained] = self.factor
        return found

    def coefficients(self, found: np.ndarray) -> np.ndarray:
        """Those (K, m) ``found`` for ``rows``, of standardised features: (K, width)."""
        of_rows = linalg.solve_triangular(self.factor, found.T, trans=1, lower=True)
        parts = [of_rows.T @ block for block in _blocks(self)]
        return np.concatenate(parts, axis=1).astype(self.x.dtype)


def row_space(
    x: np.ndarray, trained: np.ndarray, mean: np.ndarray, scale: np.ndarray
) -> RowSpace:
    """The space of the rows ``trained`` of ``x``; see ``RowSpace``."""
    space = RowSpace(x, trained, mean, scale, np.zeros((len(trained),) * 2))
    gram = space.factor
    for block in _blocks(space):
        gram += block @ block.T
    gram[np.diag_indices(len(gram))] += JITTER * max(gram.trace(), 1) / len(gram)
    factor = linalg.cholesky(gram, lower=True, check_finite=False)
    return RowSpace(x, trained, mean, scale, factor)


def _blocks(space: RowSpace) -> Iterator[np.ndarray]:
    """The standardised training rows, some columns at a time, in float64."""
    for first in range(0, space.x.shape[1], COLUMNS):
        some = slice(first, first + COLUMNS)
        block = space.x[space.trained, some].astype(np.float64)
        yield (block - space.mean[some]) / space.scale[some]

"""Scatter and principal directions of weighted rows, in float64, block by block."""

import numpy as np
from scipy.linalg import eigh

from tl_pipeline.heads.linear.design_matrix import BLOCK


class Centred:
    """Rows (n, width) less the centre of their group, over ``scale``, and weights.

    ``centres`` (groups, width), ``groups`` (n,) the number of each row's, ``scale``
    (width,), ``weights`` (n,) how many rows each counts for.
    """

    def __init__(
        self,
        x: np.ndarray,
        weights: np.ndarray,
        centres: np.ndarray,
        groups: np.ndarray,
        scale: np.ndarray,
    ) -> None:
        self.x, self.weights = x, weights
        self.centres, self.groups, self.scale = centres, groups, scale

    def block(self, rows: slice) -> np.ndarray:
        """Those ``rows``, without their weights."""
        centres = (
            self.centres[self.groups[rows]] if len(self.centres) > 1 else (self.centres)
        )
        return (self.x[rows] - centres) / self.scale

    def blocks(self) -> list[slice]:
        """All rows, some thousands at a time."""
        return [slice(at, at + BLOCK) for at in range(0, len(self.x), BLOCK)]

    def scatter(self) -> np.ndarray:
        """Weighted sum of the squares and products of the features: (width, width)."""
        total = np.zeros((self.x.shape[1],) * 2)
        for rows in self.blocks():
            block = self.block(rows)
            total += (block * self.weights[rows, None]).T @ block
        return total

    def principal(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues of ``scatter``, ascending (r,), and eigenvectors (width, r).

        With fewer rows than features those of the products of rows, less those that
        are rounding.
        """
        if self.x.shape[1] <= len(self.x):
            powers, directions = eigh(self.scatter(), overwrite_a=True, driver="evd")
            return powers.clip(0), directions
        rows = self.block(slice(None)) * np.sqrt(self.weights)[:, None]
        powers, sides = eigh(rows @ rows.T, driver="evd")
        kept = powers > powers[-1] * len(rows) * np.finfo(np.float64).eps
        powers = powers[kept]
        return powers, rows.T @ (sides[:, kept] / np.sqrt(powers))

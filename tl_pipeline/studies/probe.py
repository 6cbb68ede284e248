"""A quick probe of embeddings: the cross-validated accuracy of one cheap head."""

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.preprocessing import StandardScaler

FOLDS = 5

Fold = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class ProbeSplit:
    """What every encoder is probed on: labels and units of shape (n,), and the folds.

    Rows of one unit (a group of nearly equal images) never stand on both sides.
    ``folds`` are pairs of row numbers, learned from and judged.
    """

    labels: np.ndarray
    units: np.ndarray
    folds: tuple[Fold, ...]

    @property
    def grouped(self) -> bool:
        """Whether some unit has several rows."""
        return len(set(self.units)) < len(self.units)


def probed(labels: Sequence[str], units: Sequence[str]) -> list[int]:
    """The rows that can be probed: those of classes with two units or more.

    A class of one unit is either learned or judged, never both, so each of its rows
    would be an error whatever the encoder.
    """
    seen: dict[str, set[str]] = defaultdict(set)
    for label, unit in zip(labels, units, strict=True):
        seen[label].add(unit)
    return [row for row, label in enumerate(labels) if len(seen[label]) > 1]


def divide(labels: Sequence[str], units: Sequence[str]) -> ProbeSplit:
    """Cut rows that can all be probed into folds that keep the classes' shares.

    Raises:
        ValueError: fewer than two classes, or a class of one unit.
    """
    if len(set(labels)) < 2 or len(probed(labels, units)) < len(labels):
        raise ValueError("a probe needs two classes, and two units in each")
    targets, groups = np.array(labels), np.array(units)
    members = Counter(label for label, _ in set(zip(labels, units, strict=True)))
    number = min(FOLDS, max(members.values()))
    rows = np.zeros((len(targets), 1))
    cuts = (
        StratifiedGroupKFold(number).split(rows, targets, groups)
        if len(set(units)) < len(units)
        else StratifiedKFold(number).split(rows, targets)
    )
    with warnings.catch_warnings():
        # a class with fewer units than folds is judged in as many folds as it has
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        folds = tuple((learned, judged) for learned, judged in cuts if len(judged))
    return ProbeSplit(targets, groups, folds)


def judge(vectors: np.ndarray, split: ProbeSplit) -> np.ndarray:
    """Whether each row of ``vectors`` (n, width) is classified rightly: bool (n,).

    The head is a ridge classifier (Hoerl & Kennard 1970) on standardised embeddings
    whose penalty is the width. It has a closed form and no grid, and the cost is that
    of the smaller side of the matrix. It stays in the precision of ``vectors``: with
    this penalty no condition number is above n + 1.
    """
    classes, codes = np.unique(split.labels, return_inverse=True)
    signs = (2 * np.eye(len(classes))[codes] - 1).astype(vectors.dtype)
    right = np.zeros(len(codes), bool)
    for learned, judged in split.folds:
        scaler = StandardScaler().fit(vectors[learned])
        rows: Any = scaler.transform(vectors[learned])
        centre = signs[learned].mean(axis=0)
        weights = _ridge(rows, signs[learned] - centre, float(vectors.shape[1]))
        scores = scaler.transform(vectors[judged]) @ weights + centre
        right[judged] = scores.argmax(axis=1) == codes[judged]
    return right


def _ridge(rows: np.ndarray, targets: np.ndarray, penalty: float) -> np.ndarray:
    """Weights (width, K) for centred ``rows`` (n, width) and ``targets`` (n, K)."""
    wide = len(rows) <= rows.shape[1]
    gram = rows @ rows.T if wide else rows.T @ rows
    gram[np.diag_indices(len(gram))] += penalty
    factor = linalg.cho_factor(gram, overwrite_a=True, check_finite=False)
    if wide:
        return rows.T @ linalg.cho_solve(factor, targets, check_finite=False)
    return linalg.cho_solve(factor, rows.T @ targets, check_finite=False)

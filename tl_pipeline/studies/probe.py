"""A quick probe of embeddings: the cross-validated accuracy of one cheap head."""

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tl_pipeline.evaluation.comparison import Difference, paired_difference
from tl_pipeline.evaluation.metrics import LEVEL, Score

FOLDS = 5
RESAMPLES = 2000

Fold = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Rows:
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


def divide(labels: Sequence[str], units: Sequence[str]) -> Rows:
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
    return Rows(targets, groups, folds)


def judge(vectors: np.ndarray, rows: Rows) -> np.ndarray:
    """Whether each row of ``vectors`` (n, width) is classified rightly: bool (n,).

    The head is a ridge classifier on standardised embeddings (Hoerl & Kennard 1970)
    whose penalty is the width. It has a closed form and no grid, and the cost is that
    of the smaller side of the matrix.
    """
    right = np.zeros(len(rows.labels), bool)
    for learned, judged in rows.folds:
        head = make_pipeline(StandardScaler(), RidgeClassifier(alpha=vectors.shape[1]))
        head.fit(vectors[learned].astype(np.float64), rows.labels[learned])
        told = head.predict(vectors[judged].astype(np.float64))
        right[judged] = told == rows.labels[judged]
    return right


def accuracy(right: np.ndarray, rows: Rows) -> Score:
    """The share of ``right`` with Wilson's interval for as many rows as they are worth.

    Rows of one unit tend to be right together. The number of rows is divided by the
    design effect (Kish 1965, sec. 8.2; with Wilson's interval in Dean & Pagano 2015,
    J. Surv. Stat. Methodol. 3), which is 1 where every unit has one row. Where all
    rows are right, or all wrong, each unit counts as one row.
    """
    value, number = float(right.mean()), len(right)
    sums = _by_unit(right - value, rows.units)
    chance = value * (1 - value) * number
    effect = (sums**2).sum() / chance if chance else number / len(sums)
    worth = number / max(effect, 1)
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    centre = (value + z**2 / (2 * worth)) / (1 + z**2 / worth)
    spread = value * (1 - value) / worth + z**2 / (4 * worth**2)
    half = z * spread**0.5 / (1 + z**2 / worth)
    return Score("accuracy", value, max(centre - half, 0.0), min(centre + half, 1.0))


def difference(
    first: np.ndarray, second: np.ndarray, rows: Rows, seed: int
) -> Difference:
    """Accuracy of ``first`` minus that of ``second``, judged on the same rows.

    A percentile bootstrap over rows, or over units where they have several rows (Field
    & Welsh 2007, J. R. Statist. Soc. B 69, the cluster bootstrap).
    """
    if not rows.grouped:
        return paired_difference(first, second, seed)
    change = _by_unit(first.astype(float) - second, rows.units)
    sizes = _by_unit(np.ones(len(first)), rows.units)
    drawn = np.concatenate(list(_ratios(change, sizes, seed)))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    value = float(first.mean() - second.mean())
    return Difference(value, float(low), float(high), len(first))


def _ratios(change: np.ndarray, sizes: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    chance, units = np.random.default_rng(seed), len(sizes)
    shares = np.full(units, 1 / units)
    for _ in range(0, RESAMPLES, 100):  # bounded memory for many units
        counts = chance.multinomial(units, shares, size=100)
        yield (counts @ change) / (counts @ sizes)


def _by_unit(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """The sum of ``values`` over the rows of each unit."""
    names, position = np.unique(units, return_inverse=True)
    return np.bincount(position, weights=values, minlength=len(names))

"""95 % intervals of numbers about rows, where rows of one unit are no separate news.

A unit is a group of nearly equal rows (frames of one film), or a row by itself. Where
every unit has one row, the intervals are the usual ones of independent rows. Where
units have several, the variance is that of the jackknife over units: what leaving each
one out changes (Cameron & Miller 2015, J. Human Resources 50, section VI), and the
quantile Student's. Its degrees of freedom are Satterthwaite's (1946), from the changes
themselves: few units, or few that matter, leave few. ``benchmarks/coverage.py`` shows
how often the intervals hold the truth.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
from scipy import special

from tl_pipeline.score import Score

LEVEL = 0.95
RESAMPLES = 10_000
NORMAL = float(special.ndtri((1 + LEVEL) / 2))


class Shares(NamedTuple):
    """A share of each of several sets of rows with its interval, each float64 (sets,).

    All three are NaN for a set without rows.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def at(self, number: int) -> Score:
        """That of one set, which has rows."""
        value, low, high = (float(column[number]) for column in self)
        return Score(value=value, low=low, high=high)


def share(right: np.ndarray, units: np.ndarray) -> Score:
    """The share of ``right``, bool (n,), with Wilson's interval (1927, JASA 22).

    It is that of as many rows as they are worth: their number over the design effect
    (Kish 1965, section 8.2; with Wilson's interval Dean & Pagano 2015, J. Surv. Stat.
    Methodol. 3). Where all rows are right, or all wrong, they are worth as many units.
    ``units`` (n,) are equal for rows that belong together.
    """
    return shares(right, np.zeros(len(right), int), 1, units).at(0)


def shares(
    right: np.ndarray, sets: np.ndarray, number: int, units: np.ndarray
) -> Shares:
    """The share of ``right`` in each of ``number`` sets of rows; see ``share``.

    ``sets`` (n,) tells the set of each row: thousands cost hardly more than one.
    """
    rows = np.bincount(sets, minlength=number).astype(float)
    some = np.maximum(rows, 1)
    value = np.bincount(sets, weights=right, minlength=number) / some
    # cells are the rows of one unit in one set
    unit = np.unique(units, return_inverse=True)[1]
    cells, cell = np.unique(
        sets * (unit.max(initial=0) + 1) + unit, return_inverse=True
    )
    of = np.empty(len(cells), int)
    of[cell] = sets
    sizes = np.bincount(cell, minlength=len(cells))
    hits = np.bincount(cell, weights=right, minlength=len(cells))

    def summed(values: np.ndarray) -> np.ndarray:
        return np.bincount(of, weights=values, minlength=number)

    found, alone = summed(np.ones(len(cells))), value * (1 - value) / some
    changes = (hits - value[of] * sizes) / np.maximum(rows[of] - sizes, 1)
    variance = np.where(found < rows, summed(changes**2), 0.0)
    alike = variance > alone  # else nothing shows that rows of a unit are
    worth = np.where(alone > 0, rows, rows**2 / np.maximum(summed(sizes**2), 1))
    quantile = np.full(number, NORMAL)
    if alike.any():
        worth[alike] *= alone[alike] / variance[alike]
        several = sizes > 1
        part, fourth = (summed(several * changes**power) for power in (2, 4))
        freedom = _degrees_of(summed(several), part, fourth) * _certain(variance, part)
        quantile[alike] = special.stdtrit(freedom[alike], (1 + LEVEL) / 2)
    low, high = _wilsons(value, np.maximum(worth, 1e-9), quantile)
    single = (found == 1) & (rows > 1)  # one unit alone tells nothing
    low[single], high[single] = 0.0, 1.0
    empty = np.where(rows > 0, 0.0, np.nan)
    return Shares(value + empty, low + empty, high + empty)


def mean(values: np.ndarray, units: np.ndarray) -> Score:
    """The mean of ``values`` (n,), none below 0; see ``share``.

    The interval is normal; of units with several rows it is one of the logarithm, as
    their means are skewed. One unit alone tells none.
    """
    rows, value = len(values), float(values.mean())
    sizes, position = _sizes(units)
    alone = float(values.var(ddof=1)) / rows if rows > 1 else 0.0
    if len(sizes) == rows:
        margin = NORMAL * alone**0.5
        return Score(value=value, low=max(value - margin, 0.0), high=value + margin)
    if len(sizes) == 1:
        return Score(value=value)
    changes = _changes(values, value, sizes, position)
    variance, quantile = _spread(changes, alone, sizes)
    factor = np.exp(quantile * variance**0.5 / value) if value else 1.0
    return Score(value=value, low=float(value / factor), high=float(value * factor))


def mean_change(values: np.ndarray, units: np.ndarray) -> Score:
    """The mean of ``values`` (n,) of any sign; by the jackknife over units."""
    value = float(values.mean())
    sizes, position = _sizes(units)
    if len(sizes) < 2:
        return Score(value=value)
    changes = _changes(values, value, sizes, position)
    variance, quantile = _spread(changes, 0.0, sizes)
    margin = quantile * variance**0.5
    return Score(value=value, low=value - margin, high=value + margin)


def statistic(value: float, changes: np.ndarray, least: float = 0.0) -> Score:
    """A ``value`` from ``least`` to 1 with what leaving out each unit changes."""
    if len(changes) < 2:
        return Score(value=value, low=least, high=1.0)
    variance = float((changes**2).sum())
    quantile = float(special.stdtrit(_degrees(changes), (1 + LEVEL) / 2))
    margin = quantile * variance**0.5
    return Score(
        value=value, low=max(value - margin, least), high=min(value + margin, 1.0)
    )


class Spread(NamedTuple):
    """The sums of squares and of fourth powers of what units add to a value."""

    squares: float
    fourth: float

    @classmethod
    def of(cls, influence: np.ndarray, unit: np.ndarray | None) -> Self:
        """Of the ``influence`` (n,) of rows of these units, numbers (n,).

        None where each row is one. Rows of a unit are not taken to differ more than
        others do.
        """
        squared = influence**2
        alone = cls(float(squared.sum()), float(squared @ squared))
        if unit is None:
            return alone
        squared = np.bincount(unit, influence) ** 2
        return max(alone, cls(float(squared.sum()), float(squared @ squared)))


def by_influence(
    value: np.ndarray, spreads: Sequence[Spread], units: int, positives: np.ndarray
) -> Shares:
    """Intervals of ``value`` (k,), each between 0 and 1, by what units add to it.

    It is Wilson's, of as many rows as would give a share that variance. The quantile is
    Student's: ``positives`` (k,) of the ``units`` have rows of the class, and few of
    them know the variance badly. Where there is one, or the variance is 0, the value is
    worth as many rows as these.
    """
    squares, fourth = np.array(spreads, float).reshape(-1, 2).T
    known = (value > 0) & (value < 1) & (squares > 0) & (positives > 1)
    freedom = _degrees_of(float(units), squares, fourth)
    freedom = np.maximum(np.minimum(freedom, positives - 1), 1)
    quantile = np.where(known, special.stdtrit(freedom, (1 + LEVEL) / 2), NORMAL)
    rows = value * (1 - value) / np.where(known, squares, 1)
    return Shares(value, *_wilsons(value, np.where(known, rows, positives), quantile))


def paired_difference(
    first: np.ndarray, second: np.ndarray, units: np.ndarray, seed: int
) -> Score:
    """The accuracy of ``first`` minus that of ``second`` on the same rows.

    Both are bool (n,): whether each classifier is right about row i. Rows on which both
    agree say nothing about the difference, so the interval is narrower than two
    separate ones suggest. Of independent rows it is a percentile bootstrap: one
    multinomial draw over the cells (only first right, only second right, the rest) per
    resample (Efron & Tibshirani 1993, ch. 13). Of ``units`` with several rows it is
    that of ``adjusted_difference``.

    Raises:
        ValueError: no rows, or a different number of them.
    """
    if not (first.shape == second.shape == units.shape and len(first)):
        raise ValueError("paired comparison needs the same rows, and at least one")
    rows = len(first)
    won, lost = int((first & ~second).sum()), int((~first & second).sum())
    value = (won - lost) / rows
    if len(np.unique(units)) == rows:
        shares = np.array([won, lost, rows - won - lost]) / rows
        drawn = np.random.default_rng(seed).multinomial(rows, shares, size=RESAMPLES)
        low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / rows, _tails())
        return Score(value=value, low=float(low), high=float(high))
    return adjusted_difference(first, second, units)


def adjusted_difference(
    first: np.ndarray, second: np.ndarray, units: np.ndarray
) -> Score:
    """``paired_difference`` with Bonett & Price's interval.

    (2012, J. Educ. Behav. Stat. 37), of as many rows as they are worth: see ``share``.
    It goes with an exact test: where one of few rows is never right alone, no resample
    can show that it might be.
    """
    rows = len(first)
    won, lost = int((first & ~second).sum()), int((~first & second).sum())
    value = (won - lost) / rows
    sizes, position = _sizes(units)
    if len(sizes) == 1 < rows:
        return Score(value=value, low=-1.0, high=1.0)
    effect, quantile = float((sizes**2).sum()) / rows, NORMAL
    alone = ((won + lost) / rows - value**2) / rows
    if alone > 0:
        change = first.astype(float) - second
        changes = _changes(change, value, sizes, position)
        variance, quantile = _spread(changes, alone, sizes)
        effect = variance / alone
    worth = rows / effect
    more, less = (won / effect + 1) / (worth + 2), (lost / effect + 1) / (worth + 2)
    margin = quantile * ((more + less - (more - less) ** 2) / (worth + 2)) ** 0.5
    low, high = more - less - margin, more - less + margin
    return Score(value=value, low=max(low, -1.0), high=min(high, 1.0))


def share_of_draws(right: np.ndarray, units: np.ndarray) -> Score:
    """The share of ``right``, bool (draws, n): heads of several draws on the same rows.

    The interval is for a new draw's head on new units: the variances over draws and
    over units are added, less what is in both (Cameron, Gelbach & Miller 2011, J. Bus.
    Econ. Stat. 29). One draw, or one unit, tells none.
    """
    draws, rows = right.shape
    value = float(right.mean())
    sizes, position = _sizes(units)
    if draws < 2 or len(sizes) < 2:
        return Score(value=value)
    cells = np.stack([np.bincount(position, row) for row in right - value])
    of_draws = (cells.sum(axis=1) ** 2).sum() / right.size**2 * draws / (draws - 1)
    changes = cells.sum(axis=0) / draws / (rows - sizes)
    of_units, both = (changes**2).sum(), (cells**2).sum() / right.size**2
    variance = max(of_draws + of_units - both, of_draws, of_units)
    if not variance:
        return _wilson(value, rows**2 / (sizes**2).sum(), NORMAL)
    parts = of_draws**2 / (draws - 1) + of_units**2 / _degrees(changes)
    quantile = float(
        special.stdtrit((of_draws + of_units) ** 2 / parts, (1 + LEVEL) / 2)
    )
    return _wilson(value, value * (1 - value) / variance, quantile)


def _sizes(units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of each unit, (units,), and the number of each row's unit, (n,)."""
    _, position, sizes = np.unique(units, return_inverse=True, return_counts=True)
    return sizes, position


def _changes(
    values: np.ndarray, mean: float, sizes: np.ndarray, position: np.ndarray
) -> np.ndarray:
    """What leaving out each unit takes off the ``mean`` of ``values``: (units,)."""
    sums = np.bincount(position, weights=values, minlength=len(sizes))
    return (sums - mean * sizes) / (sizes.sum() - sizes)


def _spread(
    changes: np.ndarray, alone: float, sizes: np.ndarray
) -> tuple[float, float]:
    """The variance by ``changes`` of units of these ``sizes``, and its quantile.

    Where that of independent rows, ``alone``, is not less, it is taken and the quantile
    is normal: then nothing shows that rows of a unit are alike.
    """
    variance = float((changes**2).sum())
    if variance <= alone:
        return alone, NORMAL
    several = changes[sizes > 1]
    freedom = _degrees(several) * _certain(variance, float((several**2).sum()))
    return variance, float(special.stdtrit(freedom, (1 + LEVEL) / 2))


def _certain(variance: float | np.ndarray, part: float | np.ndarray) -> np.ndarray:
    """By what degrees of freedom grow where only ``part`` of ``variance`` has some.

    It is that of units with several rows: what one row adds is known, as that of
    independent rows is. Else an error in one of hundreds of rows, two of which are a
    unit, would make the interval six times as wide.
    """
    some = np.where(part, part, 1.0)
    return np.where(part, np.square(variance / some), np.inf)


def _degrees(changes: np.ndarray) -> float:
    """Those of the variance that ``changes`` (units,) give."""
    squares = float((changes**2).sum())
    return float(_degrees_of(len(changes), squares, float((changes**4).sum())))


def _degrees_of(
    units: float | np.ndarray, squares: float | np.ndarray, fourth: float | np.ndarray
) -> np.ndarray:
    """Satterthwaite's: the sum of their variances squared, over that of the squares.

    ``squares`` and ``fourth`` are sums of powers of what leaving out each of ``units``
    changes. Both without bias for normal changes, whose fourth power is three times the
    square of their variance on average.
    """
    known = np.where(fourth, fourth, 1.0)
    found = np.where(fourth, 3 * np.square(squares) / known - 2, np.inf)
    return np.maximum(np.minimum(found, np.asarray(units) - 1), 1)


def _wilson(value: float, rows: float, quantile: float) -> Score:
    low, high = _wilsons(np.array(value), np.array(rows), np.array(quantile))
    return Score(value=value, low=float(low), high=float(high))


def _wilsons(
    value: np.ndarray, rows: np.ndarray, quantile: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval of shares that are worth so many ``rows``, each (k,)."""
    square = quantile**2
    centre = (value + square / (2 * rows)) / (1 + square / rows)
    spread = value * (1 - value) / rows + square / (4 * rows**2)
    half = quantile * spread**0.5 / (1 + square / rows)
    # it holds the value, which rounding may put beside it at 0 and at 1
    low, high = np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)
    return np.minimum(low, value), np.maximum(high, value)


def _tails() -> list[float]:
    return [(1 - LEVEL) / 2, (1 + LEVEL) / 2]

"""Intervals: of independent rows as they are known, of units by simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tl_pipeline.evaluation.intervals import (
    adjusted_difference,
    mean,
    paired_difference,
    share,
    share_of_draws,
)
from tl_pipeline.score import Score

pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60).map(
    lambda rows: (np.array([r[0] for r in rows]), np.array([r[1] for r in rows]))
)


def difference(first: np.ndarray, second: np.ndarray, seed: int) -> Score:
    """Of independent rows."""
    return paired_difference(first, second, np.arange(len(first)), seed)


def judged(both: int, first: int, second: int, neither: int):
    """Rows on which both, only the first, only the second, and neither are right."""
    counts = [both, first, second, neither]
    one = np.repeat([True, True, False, False], counts)
    two = np.repeat([True, False, True, False], counts)
    return one, two


@settings(deadline=None, max_examples=50)
@given(pairs)
def test_the_value_is_the_difference_of_the_accuracies(pair):
    first, second = pair
    found = difference(first, second, seed=0)
    assert found.value == pytest.approx(first.mean() - second.mean())
    assert -1 <= found.low <= found.high <= 1


@settings(deadline=None, max_examples=50)
@given(pairs)
def test_swapping_the_two_turns_the_sign(pair):
    first, second = pair
    there = difference(first, second, seed=0)
    back = difference(second, first, seed=0)
    assert back.value == -there.value
    # the intervals are two draws of one distribution, seen in a mirror
    assert back.low == pytest.approx(-there.high, abs=2.5 / len(first))
    assert back.high == pytest.approx(-there.low, abs=2.5 / len(first))


def test_the_better_one_wins_and_the_interval_says_so():
    found = difference(*judged(both=60, first=30, second=2, neither=8), seed=0)
    assert found.value == pytest.approx(0.28)
    assert 0 < found.low < 0.28 < found.high


def test_equal_judgements_differ_by_nothing_surely():
    same = np.array([True, False, True])
    found = difference(same, same.copy(), seed=0)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_rows_on_which_both_agree_only_thin_the_difference():
    """So the interval is far narrower than that of two separate samples."""
    found = difference(*judged(both=900, first=10, second=10, neither=80), seed=0)
    apart = 2 * 1.96 * np.sqrt(2 * 0.91 * 0.09 / 1000)
    assert found.high - found.low < apart / 2


def test_the_interval_covers_the_truth_in_about_95_of_100_samples():
    chance = np.random.default_rng(0)
    shares, rows, tries = [0.6, 0.15, 0.08, 0.17], 300, 400
    covered = 0
    for seed in range(tries):
        cells = chance.multinomial(rows, shares)
        found = difference(*judged(*cells), seed=seed)
        covered += found.low <= 0.07 <= found.high
    assert 0.92 <= covered / tries <= 0.98


def test_the_interval_is_that_of_the_bootstrap_over_rows():
    first, second = judged(both=200, first=60, second=30, neither=110)
    chance = np.random.default_rng(1)
    sample = chance.integers(0, len(first), (4000, len(first)))
    drawn = first[sample].mean(axis=1) - second[sample].mean(axis=1)
    found = difference(first, second, seed=0)
    expected = np.quantile(drawn, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.005)


def test_the_interval_depends_on_the_seed_alone():
    pair = judged(both=400, first=301, second=202, neither=98)
    assert difference(*pair, seed=1) == difference(*pair, seed=1)
    found = {(d.low, d.high) for d in (difference(*pair, seed=s) for s in range(9))}
    assert len(found) > 1


@pytest.mark.parametrize(
    ("first", "second"), [(0, 0), (3, 2), (0, 1)], ids=["empty", "unequal", "one empty"]
)
def test_no_rows_or_other_rows_cannot_be_compared(first: int, second: int):
    with pytest.raises(ValueError, match="same rows, and at least one"):
        paired_difference(
            np.ones(first, bool), np.ones(second, bool), np.arange(first), seed=0
        )


# --- shares and means ----------------------------------------------------------------


@pytest.mark.parametrize("right", [0, 1, 17, 40])
def test_of_independent_rows_the_interval_is_wilsons(right: int):
    found = share(np.arange(40) < right, np.arange(40))
    expected = stats.binomtest(right, 40).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.value == right / 40


def test_rows_that_only_repeat_their_unit_narrow_nothing():
    """20 units, copied five times, are at most as sure as the 20."""
    right = np.arange(20) % 3 > 0
    one = share(right, np.arange(20))
    copied = share(np.repeat(right, 5), np.repeat(np.arange(20), 5))
    assert copied.value == one.value
    assert copied.high - copied.low == pytest.approx(one.high - one.low, rel=0.15)
    assert copied.high - copied.low > one.high - one.low


def test_all_right_is_as_sure_as_there_are_units():
    one = share(np.ones(20, bool), np.arange(20))
    copied = share(np.ones(100, bool), np.repeat(np.arange(20), 5))
    assert copied.model_dump() == pytest.approx(one.model_dump())
    assert one.low < 0.9


def test_one_pair_among_hundreds_of_rows_changes_next_to_nothing():
    """One of 245 is wrong; of Wilson 1927, and of Bonett and Price 2012, by hand."""
    first, second = np.arange(245) >= 1, np.ones(245, bool)
    single = np.arange(245)
    paired = np.where(single == 244, 243, single)
    for units in (single, paired):
        found = share(first, units)
        assert (found.low, found.high) == pytest.approx((0.9773, 0.9993), abs=5e-4)
        found = adjusted_difference(first, second, units)
        assert (found.low, found.high) == pytest.approx((-0.0178, 0.0097), abs=5e-4)


def test_one_unit_shows_nothing():
    right, one = np.arange(30) < 20, np.zeros(30)
    found = share(right, one)
    assert (found.low, found.high) == (0, 1)
    assert mean(np.arange(30.0), one).low is None
    found = paired_difference(right, ~right, one, 0)
    assert (found.low, found.high) == (-1, 1)
    assert share_of_draws(np.stack([right, right]), one).low is None


def test_equal_judgements_of_units_differ_by_no_more_than_units_can_show():
    right, units = np.arange(50) % 2 == 0, np.repeat(np.arange(10), 5)
    found = paired_difference(right, right.copy(), units, 0)
    assert found.value == 0
    assert -0.3 < found.low < 0 < found.high < 0.3


def test_a_difference_is_of_units_where_rows_of_a_unit_are_alike():
    chance = np.random.default_rng(0)
    one, other = chance.random(30) < 0.8, chance.random(30) < 0.6
    units = np.repeat(np.arange(30), 10)
    found = paired_difference(np.repeat(one, 10), np.repeat(other, 10), units, 0)
    single = paired_difference(one, other, np.arange(30), 0)
    apart = difference(np.repeat(one, 10), np.repeat(other, 10), 0)
    assert found.value == pytest.approx(one.mean() - other.mean())
    assert found.high - found.low > 2 * (apart.high - apart.low)
    assert (found.low, found.high) == pytest.approx((single.low, single.high), abs=0.06)


# --- coverage ------------------------------------------------------------------------

CORRELATIONS = [0.0, 0.1, 0.3, 0.7]


def films(chance: np.random.Generator, number: int, each: int) -> np.ndarray:
    """The film of each row; their lengths differ widely."""
    return np.repeat(np.arange(number), chance.geometric(1 / each, number))


def right_of(
    chance: np.random.Generator, units: np.ndarray, rate: float, correlation: float
) -> np.ndarray:
    """Rows right at ``rate``, alike within a unit: a beta binomial."""
    if not correlation:
        return chance.random(len(units)) < rate
    both = 1 / correlation - 1
    rates = chance.beta(rate * both, (1 - rate) * both, units.max() + 1)
    return chance.random(len(units)) < rates[units]


@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_the_interval_of_a_share_covers_the_truth(correlation: float):
    chance, tries = np.random.default_rng(1), 1000
    covered = plain = 0
    for _ in range(tries):
        units = films(chance, 100, 10)
        right = right_of(chance, units, 0.8, correlation)
        found, naive = share(right, units), share(right, np.arange(len(units)))
        covered += found.low <= 0.8 <= found.high
        plain += naive.low <= 0.8 <= naive.high
    assert 0.93 <= covered / tries <= 0.975
    assert plain / tries < {0: 0.97, 0.1: 0.85, 0.3: 0.65, 0.7: 0.5}[correlation]


@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_the_interval_of_a_difference_covers_the_truth(correlation: float):
    chance, tries, covered = np.random.default_rng(2), 600, 0
    for _ in range(tries):
        units = films(chance, 100, 10)
        first = right_of(chance, units, 0.8, correlation)
        second = right_of(chance, units, 0.7, correlation)
        found = paired_difference(first, second, units, 0)
        covered += found.low <= 0.1 <= found.high
    assert 0.93 <= covered / tries <= 0.975


def test_the_interval_of_a_mean_covers_the_truth():
    """Losses are skewed: of sure films next to nothing, of others much."""
    chance, tries, covered = np.random.default_rng(3), 600, 0
    level = chance.normal(size=10**6) + 1.5 * chance.normal(size=10**6)
    truth = np.logaddexp(0, -(2 + level)).mean()
    for _ in range(tries):
        units = films(chance, 100, 10)
        level = chance.normal(size=100)[units] + 1.5 * chance.normal(size=len(units))
        found = mean(np.logaddexp(0, -(2 + level)), units)
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / tries <= 0.97


def test_the_interval_over_draws_covers_new_draws_and_new_units():
    chance, tries, covered, draws_alone = np.random.default_rng(4), 500, 0, 0
    truth = stats.norm.cdf(1 / np.sqrt(1 + 0.2**2))
    for _ in range(tries):
        units = films(chance, 60, 8)
        of_unit = np.sqrt(0.3) * chance.normal(size=60)[units]
        of_row = np.sqrt(0.5) * chance.normal(size=len(units))
        own = np.sqrt(0.2) * chance.normal(size=(8, len(units)))
        right = 1 + 0.2 * chance.normal(size=(8, 1)) + of_unit + of_row + own > 0
        found = share_of_draws(right, units)
        covered += found.low <= truth <= found.high
        means = right.mean(axis=1)
        half = stats.t.ppf(0.975, 7) * means.std(ddof=1) / 8**0.5
        draws_alone += abs(means.mean() - truth) <= half
    assert 0.93 <= covered / tries <= 0.97
    assert draws_alone / tries < 0.85

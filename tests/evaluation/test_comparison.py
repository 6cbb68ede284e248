"""The paired difference of two accuracies."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_pipeline.evaluation.comparison import paired_difference

pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60).map(
    lambda rows: (np.array([r[0] for r in rows]), np.array([r[1] for r in rows]))
)


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
    found = paired_difference(first, second, seed=0)
    assert found.value == pytest.approx(first.mean() - second.mean())
    assert found.rows == len(first)
    assert -1 <= found.low <= found.high <= 1


@settings(deadline=None, max_examples=50)
@given(pairs)
def test_swapping_the_two_turns_the_sign(pair):
    first, second = pair
    there = paired_difference(first, second, seed=0)
    back = paired_difference(second, first, seed=0)
    assert back.value == -there.value
    # the intervals are two draws of one distribution, seen in a mirror
    assert back.low == pytest.approx(-there.high, abs=2.5 / len(first))
    assert back.high == pytest.approx(-there.low, abs=2.5 / len(first))


def test_the_better_one_wins_and_the_interval_says_so():
    found = paired_difference(*judged(both=60, first=30, second=2, neither=8), seed=0)
    assert found.value == pytest.approx(0.28)
    assert 0 < found.low < 0.28 < found.high


def test_equal_judgements_differ_by_nothing_surely():
    same = np.array([True, False, True])
    found = paired_difference(same, same.copy(), seed=0)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_rows_on_which_both_agree_only_thin_the_difference():
    """So the interval is far narrower than that of two separate samples."""
    found = paired_difference(
        *judged(both=900, first=10, second=10, neither=80), seed=0
    )
    apart = 2 * 1.96 * np.sqrt(2 * 0.91 * 0.09 / 1000)
    assert found.high - found.low < apart / 2


def test_the_interval_covers_the_truth_in_about_95_of_100_samples():
    chance = np.random.default_rng(0)
    shares, rows, tries = [0.6, 0.15, 0.08, 0.17], 300, 400
    covered = 0
    for seed in range(tries):
        cells = chance.multinomial(rows, shares)
        found = paired_difference(*judged(*cells), seed=seed)
        covered += found.low <= 0.07 <= found.high
    assert 0.92 <= covered / tries <= 0.98


def test_the_interval_is_that_of_the_bootstrap_over_rows():
    first, second = judged(both=200, first=60, second=30, neither=110)
    chance = np.random.default_rng(1)
    sample = chance.integers(0, len(first), (4000, len(first)))
    drawn = first[sample].mean(axis=1) - second[sample].mean(axis=1)
    found = paired_difference(first, second, seed=0)
    expected = np.quantile(drawn, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.005)


def test_the_interval_depends_on_the_seed_alone():
    pair = judged(both=400, first=301, second=202, neither=98)
    assert paired_difference(*pair, seed=1) == paired_difference(*pair, seed=1)
    found = {
        (d.low, d.high) for d in (paired_difference(*pair, seed=s) for s in range(9))
    }
    assert len(found) > 1


@pytest.mark.parametrize(
    ("first", "second"), [(0, 0), (3, 2), (0, 1)], ids=["empty", "unequal", "one empty"]
)
def test_no_rows_or_other_rows_cannot_be_compared(first: int, second: int):
    with pytest.raises(ValueError, match="same rows, and at least one"):
        paired_difference(np.ones(first, bool), np.ones(second, bool), seed=0)

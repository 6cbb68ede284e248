"""Prediction sets: their quantile by hand, their promise by simulation."""

import numpy as np
import pytest

from tl_pipeline.evaluation.operating_point import (
    least_probability,
    members,
    units_for_sets,
)


@pytest.mark.parametrize(
    ("n", "error", "rank"),
    [
        (19, 0.05, 19),  # ceil(20 * 0.95)
        (20, 0.05, 20),  # ceil(19.95)
        (39, 0.05, 38),
        (100, 0.1, 91),  # ceil(90.9)
        (999, 0.01, 990),
        (9, 0.5, 5),
        (18, 0.05, None),  # ceil(18.05) is more than there are
        (98, 0.01, None),
        (0, 0.05, None),
    ],
)
def test_the_threshold_is_the_right_order_statistic(n: int, error: float, rank):
    given = np.random.default_rng(n).permutation(np.linspace(0.1, 0.9, n))
    found = least_probability(given, np.arange(n), error)
    assert found == (0 if rank is None else np.sort(given)[::-1][rank - 1])
    assert (n >= units_for_sets(error)) == (rank is not None)


def test_rows_of_a_unit_count_together_as_one():
    """Copies of rows change nothing; fewer units than needed promise nothing."""
    given = np.random.default_rng(0).random(60)
    single = least_probability(given, np.arange(60), 0.1)
    copies = np.repeat(np.arange(60), 7)
    assert least_probability(np.repeat(given, 7), copies, 0.1) == single
    uneven = np.repeat(np.arange(60), np.arange(60) % 5 + 1)
    assert least_probability(given[uneven], uneven, 0.1) == single
    assert least_probability(np.repeat(given[:8], 9), np.repeat(range(8), 9), 0.1) == 0


@pytest.mark.parametrize("error", [0.05, 0.2])
def test_sets_hold_the_right_label_as_often_as_promised(error: float):
    """Over many draws of 60 rows, the mean coverage of new rows lies in its bounds."""
    chance = np.random.default_rng(0)
    covered = []
    for _ in range(3000):
        given = chance.beta(3, 1, 61)
        threshold = least_probability(given[:60], np.arange(60), error)
        covered.append(given[60] >= threshold)
    margin = 3 * (error * (1 - error) / 3000) ** 0.5
    assert 1 - error - margin < np.mean(covered) < 1 - error + 1 / 61 + margin


def test_new_units_are_covered_where_rows_of_a_unit_are_alike():
    """A quantile over rows as if they were independent would promise too much."""
    chance = np.random.default_rng(1)
    units = np.repeat(np.arange(25), 20)
    covered, naive = [], []
    for _ in range(1500):
        level = chance.beta(3, 1, 26)
        given = level[units] * chance.uniform(0.97, 1, len(units))
        new = level[25] * chance.uniform(0.97, 1)
        covered.append(new >= least_probability(given, units, 0.1))
        naive.append(new >= least_probability(given, np.arange(500), 0.1))
    assert np.mean(covered) > 0.9 - 0.02
    assert np.mean(naive) < np.mean(covered)


def test_a_set_holds_the_labels_above_the_threshold_and_never_none():
    probabilities = np.float32([[0.5, 0.3, 0.2], [0.8, 0.1, 0.1], [0.34, 0.33, 0.33]])
    assert members(probabilities, 0.3).tolist() == [
        [True, True, False],
        [True, False, False],
        [True, True, True],
    ]
    assert members(probabilities, 0.9).sum(axis=1).tolist() == [1, 1, 1]
    assert members(probabilities, 0).all()


def test_labels_that_the_head_cannot_name_make_sets_hold_all_labels():
    given = np.where(np.arange(100) < 20, 0, 0.9)
    assert least_probability(given, np.arange(100), 0.05) == 0
    assert least_probability(given, np.arange(100), 0.25) == 0.9

"""The threshold of acceptance: its test by hand, its promise by simulation."""

import numpy as np
import pytest
from scipy import stats

from tl_pipeline.evaluation import operating_point
from tl_pipeline.evaluation.operating_point import STARTS, units_to_accept

LEVEL = 0.05 / STARTS


def least_confidence(
    confidence: np.ndarray, wrong: np.ndarray, units: np.ndarray, error: float
) -> float | None:
    return operating_point.least_confidence(confidence, wrong, units, error).threshold


def alone(rows: int) -> np.ndarray:
    return np.arange(rows)


def test_a_head_that_is_good_enough_is_accepted_throughout():
    confidence = np.linspace(0.2, 1, 1000)
    wrong = np.arange(1000) % 100 == 0
    assert least_confidence(confidence, wrong, alone(1000), 0.05) == 0.2


def test_the_unsure_are_rejected_where_they_are_wrong():
    """All errors lie below 0.5: few of them may be accepted."""
    confidence = np.linspace(0, 1, 1001)[1:]
    wrong = (confidence <= 0.5) & (np.arange(1000) % 2 == 0)
    found = least_confidence(confidence, wrong, alone(1000), 0.05)
    assert found is not None
    assert 0.4 < found < 0.5
    accepted = confidence >= found
    assert 0 < wrong[accepted].mean() < 0.05
    # one row more fails the binomial test at the level of one start
    looser = confidence >= found - 0.001
    assert stats.binom.cdf(wrong[accepted].sum(), accepted.sum(), 0.05) <= LEVEL
    assert stats.binom.cdf(wrong[looser].sum(), looser.sum(), 0.05) > LEVEL


@pytest.mark.parametrize("rows", [0, 1, 85])
def test_too_few_rows_show_nothing(rows: int):
    right = np.zeros(rows, bool)
    confidence = np.linspace(0.5, 1, rows)
    assert least_confidence(confidence, right, alone(rows), 0.05) is None


def test_86_rows_without_an_error_show_a_rate_of_5_percent():
    """0.95 ** 86 is below 5 % in four parts, 0.95 ** 85 is not."""
    assert 0.95**86 <= LEVEL < 0.95**85
    assert units_to_accept(0.05) == 86
    confidence = np.linspace(0.5, 1, 86)
    assert least_confidence(confidence, np.zeros(86, bool), alone(86), 0.05) == 0.5


def test_an_error_among_the_surest_does_not_reject_all():
    """The first start fails after it; a later one has rows enough to bear it."""
    confidence = np.linspace(0.2, 1, 1000)
    wrong = np.zeros(1000, bool)
    wrong[-2] = True
    assert least_confidence(confidence, wrong, alone(1000), 0.05) == 0.2


def test_a_head_that_is_wrong_when_sure_is_accepted_nowhere():
    confidence = np.linspace(0, 1, 500)
    assert least_confidence(confidence, np.ones(500, bool), alone(500), 0.1) is None


def test_rows_of_one_confidence_are_accepted_or_rejected_together():
    confidence = np.repeat([0.4, 0.9], 500)
    wrong = np.repeat([True, False], [400, 600])
    assert least_confidence(confidence, wrong, alone(1000), 0.05) == 0.9
    assert least_confidence(np.full(1000, 0.7), wrong, alone(1000), 0.05) is None
    assert least_confidence(np.full(1000, 0.7), wrong, alone(1000), 0.5) == 0.7


def test_rows_of_a_unit_count_together_as_one():
    """30 copies of each of 40 rows are no 1,200 rows."""
    right = np.zeros(1200, bool)
    confidence = np.linspace(0.5, 1, 1200)
    units = np.repeat(np.arange(40), 30)
    assert least_confidence(confidence, right, alone(1200), 0.05) == 0.5
    assert least_confidence(confidence, right, units, 0.05) is None
    # 86 films without an error show it, however many frames they have
    units = np.arange(1200) % 86
    assert least_confidence(confidence, right, units, 0.05) == 0.5
    # of 400 films, each hundredth frame wrong: shares of 0 and 1/3, one in a hundred
    units = np.repeat(np.arange(400), 3)
    wrong = np.arange(1200) % 100 == 0
    assert least_confidence(confidence, wrong, units, 0.05) == 0.5


@pytest.mark.parametrize("together", [1, 10])
def test_the_rate_among_the_accepted_is_kept_in_19_of_20_cases(together: int):
    """The head's real rate of error at confidence c is (1 - c) / 2."""
    chance, error, cases = np.random.default_rng(0), 0.1, 400
    broken = 0
    found_any = 0
    for _ in range(cases):
        level = chance.random(600)
        wrong = chance.random(600) < (1 - level) / 2
        confidence, units = np.repeat(level, together), np.repeat(alone(600), together)
        found = least_confidence(confidence, np.repeat(wrong, together), units, error)
        found_any += found is not None
        # of confidences uniform in [c, 1] the mean rate is (1 - c) / 4
        broken += found is not None and (1 - found) / 4 > error
    assert broken / cases <= 0.05
    assert found_any / cases > 0.5


def test_where_nothing_passes_the_surest_rows_tell_how_wrong_they_are():
    """Of 1,000 rows a fifth is wrong, and of the surest 200 a tenth."""
    confidence = np.linspace(1, 0, 1000, endpoint=False)
    wrong = np.arange(1000) % 5 == 0
    wrong[:200] = np.arange(200) % 10 == 9
    found = operating_point.least_confidence(confidence, wrong, alone(1000), 0.05)
    assert found.threshold is None
    assert (found.surest, found.surest_error) == (89, 8 / 89)

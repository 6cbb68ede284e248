"""Intervals on one scale, and the accuracy of the last runs."""

import pytest

from tl_pipeline.report import forest
from tl_pipeline.runs.records import Result
from tl_pipeline.score import Score


def score(value: float, margin: float = 0.02) -> Score:
    return Score(value=value, low=value - margin, high=value + margin)


def result(role: str, test: float, held_out: float) -> Result:
    return Result(
        evaluation=role,
        encoder="lenet5",
        head="logistic",
        role=role,
        folds=score(held_out),
        test=score(test),
        test_images=100,
    )


def test_values_lie_between_the_ends_of_all_intervals():
    """0.70 to 0.92, and 6 % of that on either side."""
    found = forest.plot(
        [
            result("best", 0.9, 0.88),
            result("candidate", 0.72, 0.8),
            result("control", 0.1, 0.75),
        ]
    )
    best, other, control = found.rows
    assert best.test.high == pytest.approx(100 * 1.06 / 1.12, abs=0.01)
    assert other.test.low == pytest.approx(100 * 0.06 / 1.12, abs=0.01)
    assert best.held_out.at == pytest.approx(
        100 * (0.18 / 0.22 + 0.06) / 1.12, abs=0.01
    )
    assert (control.test.at, control.test.low, control.test.outside) == (0, 0, True)
    assert not control.held_out.outside
    assert [text for _, text in found.ticks] == ["70", "75", "80", "85", "90"]
    assert found.ticks[0][0] == pytest.approx(100 * 0.06 / 1.12)


def test_a_control_that_does_better_is_on_the_scale():
    best, control = forest.plot(
        [result("best", 0.3, 0.4), result("control", 0.7, 0.75)]
    ).rows
    assert control.held_out.high == pytest.approx(100 * 1.06 / 1.12, abs=0.01)
    assert best.test.low < best.test.at < control.test.at < control.held_out.at
    assert not control.test.outside


def test_scores_without_intervals_are_points():
    one = result("best", 0.5, 0.5).model_copy(
        update={"test": Score(value=0.5), "folds": Score(value=0.5)}
    )
    (row,) = forest.plot([one]).rows
    assert row.test.low == row.test.at == row.test.high == 50

"""The first sentences of a page, in words."""

import pytest

from tl_pipeline.report.verdict import compared_with
from tl_pipeline.score import Score


@pytest.mark.parametrize(
    ("difference", "how", "numbers"),
    [
        ((0.01, -0.02, 0.04), "a tie with", "+1.0 points, 95 % interval -2.0 to +4.0"),
        ((0.03, 0.0, 0.05), "a tie with", "+3.0 points, 95 % interval +0.0 to +5.0"),
        ((0.03, 0.01, 0.05), "ahead of", "+3.0 points, 95 % interval +1.0 to +5.0"),
        (
            (-0.03, -0.05, -0.01),
            "on test behind",
            "-3.0 points, 95 % interval -5.0 to -1.0",
        ),
    ],
)
def test_an_interval_that_holds_zero_is_a_tie(
    difference: tuple[float, float, float], how: str, numbers: str
):
    value, low, high = difference
    score = Score(value=value, low=low, high=high)
    said = compared_with("knn on lenet5", score)
    assert said == f"{how} the next, knn on lenet5 ({numbers})"

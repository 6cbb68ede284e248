"""What more images would give, of curves that are known."""

import numpy as np
import pytest

from tl_pipeline.studies.learning_curve import expected

IMAGES = [40, 80, 160, 320, 640]


def drawn(errors: list[float], rows: int = 4000, draws: int = 5) -> list[np.ndarray]:
    """Draws that are wrong in these shares of the rows."""
    chance = np.random.default_rng(0).random((draws, rows))
    return [chance >= error for error in errors]


def law(images: int) -> float:
    return 0.1 + 1.5 * images**-0.4


def test_a_power_law_is_continued():
    right = drawn([law(images) for images in IMAGES])
    found = expected(IMAGES, right, np.arange(4000), [1280, 2560], seed=0)
    assert found is not None
    for (value, low, high), images in zip(found, (1280, 2560), strict=True):
        assert value == pytest.approx(1 - law(images), abs=0.01)
        assert low < 1 - law(images) < high
    assert found[1][2] - found[1][1] > found[0][2] - found[0][1]


def test_rows_that_are_alike_tell_less():
    right = drawn([law(images) for images in IMAGES])
    right = [np.repeat(point[:, :400], 10, axis=1) for point in right]
    alone = expected(IMAGES, right, np.arange(4000), [1280], seed=0)
    together = expected(IMAGES, right, np.repeat(np.arange(400), 10), [1280], seed=0)
    wide, narrow = (one[0][2] - one[0][1] for one in (together, alone))
    assert wide > 2 * narrow


@pytest.mark.parametrize(
    ("errors", "draws"),
    [
        ([0.5, 0.4, 0.3], 5),  # too few points for three unknowns
        ([0.5, 0.4, 0.3, 0.35, 0.32], 5),  # more images made it worse
        ([0.5, 0.4, 0.3, 0.25, 0.2], 1),  # nothing tells what chance does
    ],
)
def test_a_curve_that_tells_nothing_is_not_continued(errors, draws):
    right = drawn(errors, draws=draws)
    images = IMAGES[: len(errors)]
    assert expected(images, right, np.arange(4000), [1280], seed=0) is None

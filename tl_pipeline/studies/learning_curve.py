"""What more images would give: a power law through the errors with fewer."""

from collections.abc import Sequence

import numpy as np

from tl_pipeline.evaluation.intervals import LEVEL

LEAST = 4  # points of a curve with three unknowns
_RESAMPLES = 400
_RATES = np.linspace(0.05, 2.0, 79)


def expected(
    images: Sequence[int],
    right: Sequence[np.ndarray],
    units: np.ndarray,
    more: Sequence[int],
    seed: int,
) -> list[tuple[float, float, float]] | None:
    """The accuracy with ``more`` images, if the curve goes on as it does.

    Errors are floor + scale * images ** -rate (Cortes et al. 1994, NIPS 6), fitted by
    least squares. The interval is a percentile bootstrap over draws and units.

    Args:
        images: how many were learned from at each point.
        right: whether each row was right, bool (draws, n), at each point.
        units: equal for rows that belong together, (n,).
        more: numbers of images.
        seed: that of the bootstrap.

    Returns:
        The accuracy, and the ends of its 95 % interval. None for one draw, for fewer
        than ``LEAST`` points, or where the last one is not the best: such a curve is
        none that goes on.
    """
    accuracy = np.array([point.mean() for point in right])
    draws = len(right[0])
    if draws < 2 or len(set(images)) < LEAST or accuracy.argmax() < len(images) - 1:
        return None
    unit = np.unique(units, return_inverse=True)[1]
    sizes = np.bincount(unit)
    chance = np.random.default_rng(seed)
    by_draw = chance.multinomial(draws, np.full(draws, 1 / draws), _RESAMPLES)
    by_unit = chance.multinomial(
        len(sizes), np.full(len(sizes), 1 / len(sizes)), _RESAMPLES
    )
    rows = (by_unit @ sizes) * draws
    hits = [np.stack([np.bincount(unit, row) for row in point]) for point in right]
    drawn = [((by_draw @ cells) * by_unit).sum(axis=1) / rows for cells in hits]
    curves = np.vstack([accuracy, np.stack(drawn, axis=1)])
    found = 1 - _continued(np.array(images), 1 - curves, np.array(more))
    low, high = np.quantile(found[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return [*zip(found[0].tolist(), low.tolist(), high.tolist(), strict=True)]


def _continued(images: np.ndarray, errors: np.ndarray, more: np.ndarray) -> np.ndarray:
    """The power law through each row of ``errors`` (curves, points) at ``more``."""
    best = np.full(len(errors), np.inf)
    found = np.empty((len(errors), len(more)))
    for rate in _RATES:
        powers = (images / images[-1]) ** -rate
        centred = powers - powers.mean()
        scale = np.maximum(errors @ centred / (centred @ centred), 0)
        floor = errors.mean(axis=1) - scale * powers.mean()
        through = floor < 0  # no error is below 0
        scale[through] = (errors @ powers / (powers @ powers))[through]
        floor = np.maximum(floor, 0)
        missed = errors - floor[:, None] - scale[:, None] * powers
        loss = (missed**2).sum(axis=1)
        better = loss < best
        best[better] = loss[better]
        ahead = floor[:, None] + scale[:, None] * (more / images[-1]) ** -rate
        found[better] = ahead[better]
    return found

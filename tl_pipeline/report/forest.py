"""Candidates and their intervals on one scale: the rows of a forest plot."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tl_pipeline.runs.records import Result
from tl_pipeline.score import Score

_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)
_ROOM = 0.06  # of the scale, left and right of all intervals


class Mark(NamedTuple):
    """A score in percent of the width: its value and the ends of its interval.

    ``outside`` tells that the value lies left of the scale.
    """

    at: float
    low: float
    high: float
    outside: bool


class Row(NamedTuple):
    """One candidate or control."""

    result: Result
    test: Mark
    held_out: Mark


class Forest(NamedTuple):
    """Rows in the order of the record; ticks are places in percent, and their texts."""

    rows: list[Row]
    ticks: list[tuple[float, str]]


def plot(results: Sequence[Result]) -> Forest:
    """All ``results`` on a scale that begins with the least of all but the controls.

    A control that is left of it has marks at the edge.
    """
    every = [score for r in results for score in (r.test, r.held_out)]
    compared = [r for r in results if r.role != "control"]
    scores = [score for r in compared for score in (r.test, r.held_out)]
    least, most = min(map(_low, scores)), max(map(_high, every))
    room = _ROOM * ((most - least) or 0.1)
    scale = max(0.0, least - room), min(1.0, most + room)
    rows = [Row(r, _mark(r.test, scale), _mark(r.held_out, scale)) for r in results]
    return Forest(rows, list(_ticks(*scale)))


def _mark(score: Score, scale: tuple[float, float]) -> Mark:
    def place(value: float) -> float:
        share = (value - scale[0]) / (scale[1] - scale[0])
        return round(100 * min(max(share, 0.0), 1.0), 2)

    ends = place(_low(score)), place(_high(score))
    return Mark(place(score.value), *ends, outside=score.value < scale[0])


def _ticks(least: float, most: float) -> Iterable[tuple[float, str]]:
    step = next((s for s in _STEPS if (most - least) / s <= 6), _STEPS[-1])
    for number in range(math.ceil(least / step - 1e-9), 1 + round(1 / step)):
        value = number * step
        if value <= most + 1e-9:
            yield 100 * (value - least) / (most - least), f"{100 * value:.0f}"


def _low(score: Score) -> float:
    return score.value if score.low is None else score.low


def _high(score: Score) -> float:
    return score.value if score.high is None else score.high

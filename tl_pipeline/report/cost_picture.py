"""Accuracy over cost: where the encoders that were compared stand in a picture."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tl_pipeline.runs.records import TunedEncoder, Tuning

# Of the area with the points, in units of the picture.
WIDTH, HEIGHT = 300, 180
_APART = 9  # points of one cost
_MARGIN = 0.04  # of the accuracies' range, above and below
_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)


class Point(NamedTuple):
    """One encoder; ``low`` and ``high`` end its interval. ``y`` grows downwards."""

    x: float
    y: float
    low: float
    high: float
    encoder: TunedEncoder
    chosen: bool


class Tick(NamedTuple):
    """A number on an axis."""

    at: float
    text: str


class Picture(NamedTuple):
    """Points from the cheapest on, and what stands on the axes."""

    points: list[Point]
    costs: list[Tick]
    accuracies: list[Tick]


def picture(tuning: Tuning) -> Picture | None:
    """The candidates of ``tuning`` by milliseconds an image, on a logarithmic scale.

    Those that were never timed are left out; None if nothing is left to compare.
    """
    timed = [one for one in tuning.candidates if one.seconds_per_image]
    if len(timed) < 2:
        return None
    costs = _groups(timed)
    least, most = math.log(min(costs)), math.log(max(costs))
    inset = _APART * max(map(len, costs.values())) / 2 + 6

    def x(cost: float) -> float:
        if most == least:
            return WIDTH / 2
        return inset + (WIDTH - 2 * inset) * (math.log(cost) - least) / (most - least)

    lows = [_low(one) for one in timed]
    highs = [_high(one) for one in timed]
    room = _MARGIN * (max(highs) - min(lows))
    bottom, top = max(0.0, min(lows) - room), min(1.0, max(highs) + room)

    def y(accuracy: float) -> float:
        return HEIGHT * (top - accuracy) / ((top - bottom) or 1.0)

    points = [
        Point(
            x(cost) + _APART * (place - (len(group) - 1) / 2),
            y(one.probe.value),
            y(_low(one)),
            y(_high(one)),
            one,
            one.key == tuning.key,
        )
        for cost, group in costs.items()
        for place, one in enumerate(group)
    ]
    step = next((s for s in _STEPS if (top - bottom) / s <= 6), _STEPS[-1])
    first = math.ceil(bottom / step - 1e-9)
    numbers = [n * step for n in range(first, math.floor(top / step + 1e-9) + 1)]
    return Picture(
        points,
        _apart([Tick(x(cost), f"{1000 * cost:.3g}") for cost in costs]),
        [Tick(y(number), f"{100 * number:.0f}") for number in numbers],
    )


def _groups(timed: Iterable[TunedEncoder]) -> Mapping[float, list[TunedEncoder]]:
    """Encoders of one cost, which stand beside each other, from the cheapest on."""
    groups: dict[float, list[TunedEncoder]] = defaultdict(list)
    for one in sorted(timed, key=lambda one: one.seconds_per_image or 0.0):
        groups[one.seconds_per_image or 0.0].append(one)
    return groups


def _apart(ticks: list[Tick]) -> list[Tick]:
    """Those whose texts do not touch."""
    shown: list[Tick] = []
    for tick in ticks:
        if not shown or tick.at - shown[-1].at > 28:
            shown.append(tick)
    return shown


def _low(one: TunedEncoder) -> float:
    return one.probe.value if one.probe.low is None else one.probe.low


def _high(one: TunedEncoder) -> float:
    return one.probe.value if one.probe.high is None else one.probe.high

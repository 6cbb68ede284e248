"""Learning curves as lines in pixels, from the rows of CURVE."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

WIDTH, HEIGHT = 240, 150
# A tick of the axis of epochs at most so often.
_TICKS = 8


class Line(NamedTuple):
    """The points (x, y) of one split, from the left, and what each says."""

    split: str
    points: tuple[tuple[float, float], ...]
    said: tuple[str, ...]

    @property
    def path(self) -> str:
        """Of an SVG."""
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in self.points)


class Panel(NamedTuple):
    """One picture of WIDTH x HEIGHT pixels, y from the top; ticks with their texts."""

    title: str
    lines: tuple[Line, ...]
    epochs: tuple[tuple[float, int], ...]
    values: tuple[tuple[float, str], ...]
    kept: float


def panels(rows: Iterable[Mapping[str, Any]]) -> tuple[Panel, Panel]:
    """Loss and accuracy by epoch and split; the last epoch is kept."""
    ordered = sorted(rows, key=lambda row: row["epoch"])
    top = _ceiling(max(row["loss"] for row in ordered))
    least = min(row["accuracy"] for row in ordered)
    bottom = min(math.floor(10 * least) / 10, 0.9)
    loss = _panel("loss", ordered, "loss", (0.0, top), "{:g}")
    return loss, _panel("right, %", ordered, "accuracy", (bottom, 1.0), "{:.0%}")


def _panel(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    name: str,
    between: tuple[float, float],
    form: str,
) -> Panel:
    last, (low, high) = rows[-1]["epoch"], between

    def x(epoch: int) -> float:
        return round(WIDTH * (epoch - 1) / (last - 1), 1) if last > 1 else WIDTH / 2

    def y(value: float) -> float:
        return round(HEIGHT * (high - value) / (high - low), 1)

    def text(value: float) -> str:
        return form.format(value).rstrip("%")

    step = -(-last // _TICKS)
    ticks = [epoch for epoch in range(1, last + 1) if (last - epoch) % step == 0]
    lines = []
    for split in dict.fromkeys(row["split"] for row in rows):
        some = [row for row in rows if row["split"] == split]
        points = tuple((x(row["epoch"]), y(row[name])) for row in some)
        said = tuple(
            f"epoch {row['epoch']}, {split}: loss {row['loss']:.3f}, right in "
            f"{100 * row['accuracy']:.1f} %"
            for row in some
        )
        lines.append(Line(split, points, said))
    values = (low, (low + high) / 2, high)
    return Panel(
        title,
        tuple(lines),
        tuple((x(epoch), epoch) for epoch in ticks),
        tuple((y(value), text(value)) for value in values),
        x(last),
    )


def _ceiling(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, ... and their like below 1."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * n for n in (1, 2, 5, 10) if power * n >= value)

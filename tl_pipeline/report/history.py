"""Test accuracy of the last runs on a dataset, and of their champions."""

from collections.abc import Sequence
from typing import NamedTuple

from tl_pipeline.data.split_report import SplitChange
from tl_pipeline.data.splits import TEST
from tl_pipeline.runs import records
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.store.artifacts import Store

WIDTH, HEIGHT = 560, 150
_MOST = 30
_ROOM = 0.08


class Run(NamedTuple):
    """One run in units of the picture, y downwards; ``same_test`` as the run before."""

    record: RunRecord
    x: float
    y: float
    low: float
    high: float
    same_test: bool


class History(NamedTuple):
    """Runs from the oldest on; ``champion`` are the corners of its line."""

    runs: list[Run]
    champion: list[tuple[float, float]]
    ticks: list[tuple[float, str]]


def of(store: Store, record: RunRecord) -> History | None:
    """The last runs up to ``record`` that found something new; None if it is alone."""
    found: list[RunRecord] = []
    for one in (*_before(store, record), record):
        if not found or _found(found[-1]) != _found(one):
            found.append(one)
    return picture(found[-_MOST:]) if len(found) > 1 else None


def picture(found: Sequence[RunRecord]) -> History:
    """``found``, of which there are two or more, from the oldest on."""
    lows = [one.best.test.low or one.best.test.value for one in found]
    highs = [one.best.test.high or one.best.test.value for one in found]
    room = _ROOM * (max(highs) - min(lows) or 0.1)
    bottom, top = max(0.0, min(lows) - room), min(1.0, max(highs) + room)

    def y(accuracy: float) -> float:
        return round(HEIGHT * (top - accuracy) / (top - bottom), 1)

    step = WIDTH / len(found)
    runs = [
        Run(
            one,
            round(step * (place + 0.5), 1),
            y(one.best.test.value),
            y(low),
            y(high),
            not place or _same_test(found[place - 1], one),
        )
        for place, (one, low, high) in enumerate(zip(found, lows, highs, strict=True))
    ]
    middle = (bottom + top) / 2
    ticks = [(y(value), f"{100 * value:.1f}") for value in (bottom, middle, top)]
    return History(runs, _champion(runs, step), ticks)


def _same_test(before: RunRecord, record: RunRecord) -> bool:
    """Whether both were tested on the same images with the same labels."""
    if before.manifest == record.manifest:
        return True
    report, images = record.split_report, record.best.test_images
    if not (report and report.since) or images != before.best.test_images:
        return False
    moved = any(TEST in change.came_from for change in report.since.values())
    return report.since[TEST] == SplitChange() and not moved


def _champion(runs: Sequence[Run], step: float) -> list[tuple[float, float]]:
    """The steps of the test accuracy that each champion had when it was promoted."""
    corners: list[tuple[float, float]] = []
    height: float | None = None
    for run in runs:
        if run.record.registered.champion:
            height = run.y
        if height is not None:
            corners += [(run.x - step / 2, height), (run.x + step / 2, height)]
    return corners


def _before(store: Store, record: RunRecord) -> list[RunRecord]:
    return [
        one
        for one in records.every(store)
        if one.dataset == record.dataset and one.run_id < record.run_id
    ]


def _found(record: RunRecord) -> tuple[str, str, bool]:
    registered = record.registered
    return record.best.evaluation, registered.model, registered.champion

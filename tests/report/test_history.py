"""The accuracy of the last runs, and of their champions."""

from datetime import UTC, datetime

import pytest

from tl_pipeline.config.specs import RunSpec
from tl_pipeline.data.split_report import SplitChange, SplitReport
from tl_pipeline.data.splits import SPLITS
from tl_pipeline.report import history
from tl_pipeline.runs import records
from tl_pipeline.runs.records import Registered, Result, RunRecord
from tl_pipeline.score import Score
from tl_pipeline.store.artifacts import Store


def run(
    number: int,
    accuracy: float,
    *,
    champion: bool,
    manifest: str = "m",
    since: dict[str, SplitChange] | None = None,
) -> RunRecord:
    test = Score(value=accuracy, low=accuracy - 0.05, high=accuracy + 0.05)
    best = Result(
        evaluation=f"evaluation {accuracy}",
        encoder="lenet5",
        head="logistic",
        role="best",
        folds=test,
        test=test,
        test_images=100,
    )
    return RunRecord(
        run_id=f"{number:04d}",
        dataset="photos",
        started=datetime(2026, 1, number, tzinfo=UTC),
        finished=datetime(2026, 1, number, tzinfo=UTC),
        spec=RunSpec(dataset="photos"),
        steps=[],
        manifest=manifest,
        images=100,
        quarantined=0,
        duplicates=0,
        results=[best],
        gain=None,
        split_report=SplitReport(splits={}, classes={}, since=since),
        registered=Registered(
            name="photos", version=1, model=f"{accuracy}", champion=champion, reason=""
        ),
    )


def test_the_line_is_the_champion_and_a_refused_model_lies_beside_it():
    """From 0.45 to 0.95 and 8 % of that on either side, on 150 units."""
    found = history.picture(
        [
            run(1, 0.5, champion=True),
            run(2, 0.9, champion=True),
            run(3, 0.7, champion=False, manifest="n"),
        ]
    )
    first, second, third = found.runs
    assert first.y == pytest.approx(150 * (0.45 + 0.04) / 0.58, abs=0.1)
    assert second.y == pytest.approx(150 * (0.05 + 0.04) / 0.58, abs=0.1)
    assert third.low - third.high == pytest.approx(150 * 0.1 / 0.58, abs=0.2)
    assert [height for _, height in found.champion] == [
        first.y,
        first.y,
        second.y,
        second.y,
        second.y,
        second.y,
    ]
    assert [one.same_test for one in found.runs] == [True, True, False]


def test_runs_are_apart_where_test_images_changed_and_not_where_others_did():
    same = {name: SplitChange() for name in SPLITS}
    train = {**same, "train": SplitChange(entered=9, relabelled=1)}
    changes = [
        same,
        train,
        {**same, "test": SplitChange(relabelled=1)},
        {**same, "train": SplitChange(came_from={"test": 1})},
    ]
    runs = [
        run(number, 0.5, champion=True, manifest=str(number), since=since)
        for number, since in enumerate([None, *changes], start=1)
    ]
    found = history.picture(runs)
    assert [one.same_test for one in found.runs] == [True, True, True, False, False]


def test_runs_that_found_nothing_new_and_later_ones_are_left_out(store: Store):
    made = [
        run(1, 0.5, champion=True),
        run(2, 0.5, champion=True),
        run(3, 0.6, champion=True),
        run(4, 0.7, champion=True),
    ]
    for record in made:
        records.write(store, record)
    found = history.of(store, made[2])
    assert found
    assert [one.record.run_id for one in found.runs] == ["0001", "0003"]
    assert history.of(store, made[1]) is None

"""Where encoders stand in the picture of accuracy over cost."""

import math
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tl_pipeline import report
from tl_pipeline.config import catalog
from tl_pipeline.config.specs import HeadSpec, RunSpec
from tl_pipeline.pipeline import wiring
from tl_pipeline.report.cost_picture import HEIGHT, WIDTH, picture
from tl_pipeline.runs.records import TunedEncoder, Tuning
from tl_pipeline.score import Score
from tl_pipeline.store.artifacts import Store


def encoder(
    name: str, accuracy: float, milliseconds: float | None, *, best: bool = False
) -> TunedEncoder:
    return TunedEncoder(
        key=name,
        encoder=name,
        probe=Score(value=accuracy, low=accuracy - 0.02, high=accuracy + 0.02),
        behind=None if best else Score(value=-0.01, low=-0.02, high=0.01),
        seconds_per_image=milliseconds and milliseconds / 1000,
    )


def tuning(*candidates: TunedEncoder, chosen: str) -> Tuning:
    return Tuning(
        question="",
        spec="lenet5",
        key=chosen,
        chosen=datetime(2026, 1, 2, tzinfo=UTC),
        trained=300,
        sampled=200,
        candidates=list(candidates),
        dropped=["behind"],
        unaffordable=["dear"],
    )


BEST = encoder("best", 0.75, 8.0, best=True)
FAST = encoder("fast", 0.74, 2.0)
MIDDLE = encoder("middle", 0.73, 4.0)
TWIN = encoder("twin", 0.70, 2.0)


def test_costs_are_logarithmic_and_accuracies_linear():
    found = picture(tuning(BEST, FAST, MIDDLE, chosen="fast"))
    assert found
    fast, middle, best = found.points
    assert [p.encoder.key for p in found.points] == ["fast", "middle", "best"]
    assert middle.x == pytest.approx(WIDTH / 2)  # 4 between 2 and 8
    assert fast.x + best.x == pytest.approx(WIDTH)
    # 71 to 77 % and 4 % of that on both sides
    assert best.high == pytest.approx(HEIGHT * 0.04 / 1.08)
    assert middle.low == pytest.approx(HEIGHT * 1.04 / 1.08)
    for p in found.points:
        assert p.low - p.y == pytest.approx(p.y - p.high)
        assert p.low - p.high == pytest.approx(HEIGHT * 4 / 6 / 1.08)
    assert [p.chosen for p in found.points] == [True, False, False]
    assert [tick.text for tick in found.costs] == ["2", "4", "8"]
    # every percent would be too close
    assert [tick.text for tick in found.accuracies] == ["72", "74", "76"]


def test_what_one_pass_gives_stands_side_by_side():
    found = picture(tuning(BEST, FAST, TWIN, chosen="fast"))
    assert found
    fast, twin, _ = found.points
    assert twin.x - fast.x == 9
    assert [tick.text for tick in found.costs] == ["2", "8"]
    assert found.costs[0].at == pytest.approx((fast.x + twin.x) / 2)
    assert math.isclose(found.costs[0].at + found.costs[1].at, WIDTH)


def test_one_cost_stands_in_the_middle():
    found = picture(tuning(FAST, TWIN, chosen="fast"))
    assert found
    assert sum(p.x for p in found.points) == pytest.approx(WIDTH)


def test_nothing_to_compare_is_no_picture():
    assert picture(tuning(FAST, chosen="fast")) is None
    assert picture(tuning(FAST, encoder("new", 0.7, None), chosen="fast")) is None


def test_the_page_marks_the_chosen_one_and_names_what_was_left_out(
    folder: Path, store: Store
):
    spec = RunSpec(
        dataset=str(folder), heads=(HeadSpec.parse("logistic:C=0.1"),), controls=False
    )
    record = wiring.run(wiring.prepare(spec, store))
    assert "Which encoder was chosen" not in report.render(
        store, record, catalog.find(str(folder))
    )
    chosen = tuning(BEST, FAST, MIDDLE, chosen="fast")
    text = report.render(
        store,
        record.model_copy(update={"tuning": chosen}),
        catalog.find(str(folder)),
    )
    assert "fast was chosen on 2026-01-02 from 4 candidates" in text
    assert text.count('class="ring"') == text.count('class="chosen"') == 1
    assert "<title>fast: 74.0 %, 2 ms an image</title>" in text
    assert "not looked at further: behind." in text
    assert "did not fit into the budget: dear." in text
    assert "-1.0, -2.0 to +1.0" in text

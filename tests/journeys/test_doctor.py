"""``tl doctor`` says what is wrong and what cures it."""

from datetime import UTC, datetime, timedelta

from tests.runs.made import record
from tl_pipeline.cli import doctor
from tl_pipeline.runs import records
from tl_pipeline.store.artifacts import Store


def fails() -> str:
    raise RuntimeError("nightly (ID): no heartbeat for 120 seconds")


def test_a_clock_that_is_behind_and_dead_runs_are_found(store: Store):
    store.create()
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    records.write(store, record("20990101T000000000-000001", finished=tomorrow))
    found = doctor.examine(str(store.root), lambda: "fine", fails)
    told = {check.check: check for check in found}
    clock, dead = told["clock"], told["runs under Prefect"]
    assert not clock.ok
    assert clock.found.endswith(f"the last run ended {tomorrow:%Y-%m-%d %H:%M} UTC")
    assert clock.cure.startswith("set the clock")
    assert (dead.ok, dead.found) == (
        False,
        "nightly (ID): no heartbeat for 120 seconds",
    )
    assert "automations.yaml" in dead.cure
    room = told["room for the next runs"]  # the images of the run are not here
    assert room.ok
    assert room.found.endswith(" GB are free; not known of photos")

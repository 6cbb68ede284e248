"""A run record that no run made: fast, and with values that a test can know."""

from datetime import UTC, datetime, timedelta
from typing import Any

from tl_pipeline.config.specs import RunSpec
from tl_pipeline.runs.planning import Step
from tl_pipeline.runs.records import Registered, Result, RunRecord
from tl_pipeline.score import Score
from tl_pipeline.store.timings import Timings

STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def score(value: float) -> Score:
    return Score(value=value, low=value - 0.1, high=value + 0.1)


def result(evaluation: str, role: str = "best", **fields: Any) -> Result:
    known: dict[str, Any] = {
        "encoder": "lenet5/c5 LETTERS",
        "encoder_key": "e" * 32,
        "head": "logistic(C=1.0)",
        "validation": score(0.8),
        "test": score(0.7),
        "test_images": 10,
    }
    return Result(evaluation=evaluation, role=role, **(known | fields))


def without_times(results: list[Result]) -> list[Result]:
    """``results`` but for what each machine measures itself."""
    return [one.model_copy(update={"milliseconds": 0, "bytes": 0}) for one in results]


def record(run_id: str, dataset: str = "photos", **fields: Any) -> RunRecord:
    known: dict[str, Any] = {
        "started": STARTED,
        "finished": STARTED + timedelta(seconds=90),
        "spec": RunSpec(dataset=dataset),
        "steps": [
            Step(
                stage="embed",
                subject="lenet5/c5 LETTERS",
                cached=False,
                reason="new",
                keys={"encoder": "e" * 32},
                units=20,
                seconds=2.5,
                timings=Timings(read=1.0, decode=3.0, idle=9.0, elapsed=4.0),
            )
        ],
        "manifest": "a" * 32,
        "images": 20,
        "quarantined": 1,
        "duplicates": 2,
        "results": [result("b" * 32)],
        "gain": score(0.25),
        "registered": Registered(
            name=dataset, version=1, model="c" * 32, champion=True, reason="first"
        ),
    }
    return RunRecord(run_id=run_id, dataset=dataset, **(known | fields))

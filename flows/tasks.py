"""One thin task per stage.

Prefect's own cache is off: whether a stage runs is the store's to say, which knows the
content of its inputs and whether the outputs still exist. The task ends in a state that
tells which: ``Cached``, or ``Completed`` with the reason.
"""

from collections.abc import Sequence
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from tl_pipeline.config.specs import HeadSpec
from tl_pipeline.encoders.concat import AnyEncoder
from tl_pipeline.pipeline.wiring import STAGES
from tl_pipeline.runs.planning import Outcome


def perform(stage: str, inputs: Sequence[Any]) -> State[Outcome[Any]]:
    """Run ``stage`` on ``inputs``, taking the output out of each earlier outcome."""
    outcome = STAGES[stage].run(*map(_output, inputs))
    due = [step for step in outcome.steps if not step.cached]
    said = "; ".join(dict.fromkeys(step.reason for step in due or outcome.steps))
    if not due:
        return Completed(name="Cached", message=said, data=outcome)
    return Completed(message=f"ran: {said}", data=outcome)


def run_name(stage: str, inputs: Sequence[Any]) -> str:
    """What the UI calls the task run, such as ``train mlp on resnet18/avgpool V1``."""
    head = next((f"{i.name} on" for i in inputs if isinstance(i, HeadSpec)), "")
    subject = next((i.label for i in inputs if isinstance(i, AnyEncoder)), "")
    several = next((i for i in inputs if isinstance(i, tuple)), ())
    if several:
        one = len(several) == 1
        subject = several[0].label if one else f"{len(several)} encoders"
    return " ".join(part for part in (stage, head, subject) if part)


def _output(value: Any) -> Any:
    if isinstance(value, Outcome):
        return value.output
    return [_output(item) for item in value] if isinstance(value, list) else value


def _task(stage: str) -> Any:
    @task(name=stage, cache_policy=NO_CACHE, persist_result=False)
    def run_stage(*inputs: Any) -> Any:
        return perform(stage, inputs)

    return run_stage


TASKS = {stage: _task(stage) for stage in STAGES}

"""Each stage as a Prefect task.

Prefect's own cache is off: whether a stage runs is the store's to say, which knows the
content of its inputs and whether the outputs still exist. The task ends in a state that
tells which: ``Cached``, or ``Completed`` with the reason. One task at a time: a second
would compete for the same cores and GPU memory.
"""

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from tl_pipeline.pipeline.stage import Stage
from tl_pipeline.runs.planning import Outcome, OutputT


class TaskPerStage:
    """Runs each stage in a task of its own, after the one before."""

    def __init__(self) -> None:
        self._before: list[State[Any]] = []

    def __call__(self, stage: Stage[OutputT]) -> Outcome[OutputT]:
        """Run ``stage`` as a task that waits for the last one.

        Raises:
            TransferLearningError: the error of the stage itself.
        """
        named = task(
            name=stage.title.partition(" ")[0],
            task_run_name=stage.title,
            cache_policy=NO_CACHE,
            persist_result=False,
        )
        state: State[Any] = named(lambda: _state(stage.run()))(
            return_state=True, wait_for=self._before
        )
        outcome = state.result()
        self._before = [state]
        return outcome


def _state(outcome: Outcome[Any]) -> State[Outcome[Any]]:
    """``Cached`` if nothing had to be done, with the reason either way."""
    due = [step for step in outcome.steps if not step.cached]
    said = "; ".join(dict.fromkeys(step.reason for step in due or outcome.steps))
    if not due:
        return Completed(name="Cached", message=said, data=outcome)
    return Completed(message=f"ran: {said}", data=outcome)

"""Each stage as a Prefect task.

Prefect's own cache is off: whether a stage runs is the store's to say, which knows the
content of its inputs and whether the outputs still exist. The task ends in a state that
tells which: ``Cached``, or ``Completed`` with the reason. One task at a time: a second
would compete for the same cores and GPU memory.

A store, a source or a registry that does not answer ends a run that somebody watches.
Of a scheduled one the task is tried again: what was finished is in the store.
"""

import errno
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from tl_pipeline import progress
from tl_pipeline.pipeline.stage import Stage
from tl_pipeline.runs.planning import Outcome, OutputT

DELAYS = [10.0, 60.0, 300.0]  # seconds before a task is tried again
# Of a network file system, or a disk.
_PASSING = {errno.EIO, errno.EBUSY, errno.ESTALE, errno.EHOSTUNREACH, errno.ENETUNREACH}
_ResultT = TypeVar("_ResultT")


def may_pass(_task: Any, _run: Any, state: Any) -> bool:
    """Whether a task failed because something did not answer that may yet."""
    fault = state.result(raise_on_failure=False)
    return any(
        isinstance(one, ConnectionError | TimeoutError)
        or (isinstance(one, OSError) and one.errno in _PASSING)
        for one in _chain(fault)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """``error``, and what it was raised for."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class TaskPerStage:
    """Runs each stage in a task of its own, after the one before.

    What does not answer is tried again after ``DELAYS``, unless somebody watches now.
    """

    def __init__(self) -> None:
        self._before: list[State[Any]] = []
        self._retries = 0 if progress.watched() else len(DELAYS)

    def attempt(self, title: str, work: Callable[[], _ResultT]) -> _ResultT:
        """What ``work`` gives, in a task beside those of the stages.

        Raises:
            TransferLearningError: the error of ``work`` itself.
        """
        return self._named(title)(work)()

    def __call__(self, stage: Stage[OutputT]) -> Outcome[OutputT]:
        """Run ``stage`` as a task that waits for the last one.

        Raises:
            TransferLearningError: the error of the stage itself.
        """
        state: State[Any] = self._named(stage.title)(lambda: _state(stage.run()))(
            return_state=True, wait_for=self._before
        )
        outcome = state.result()
        self._before = [state]
        return outcome

    def _named(self, title: str) -> Callable[[Callable[[], Any]], Any]:
        return task(
            name=title.partition(" ")[0],
            task_run_name=title,
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=self._retries,
            retry_delay_seconds=DELAYS,
            retry_condition_fn=may_pass,
        )


def _state(outcome: Outcome[Any]) -> State[Outcome[Any]]:
    """``Cached`` if nothing had to be done, with the reason either way."""
    due = [step for step in outcome.steps if not step.cached]
    said = "; ".join(dict.fromkeys(step.reason for step in due or outcome.steps))
    if not due:
        return Completed(name="Cached", message=said, data=outcome)
    return Completed(message=f"ran: {said}", data=outcome)

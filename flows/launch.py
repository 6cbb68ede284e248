"""Start the flow from the command line: here and now, or served on a schedule."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError

from tl_pipeline import progress
from tl_pipeline.errors import InvalidSpec, ServerError
from tl_pipeline.runs.records import RunRecord

_SILENCE = timedelta(minutes=2)  # a run that lives sends heartbeats
_PATIENCE = 60  # seconds in which a server that was just started answers
_STARTING = 300  # seconds that a temporary server may take on a busy machine
_CURE = (
    "start it (`prefect server start`), unset PREFECT_API_URL for a temporary one, or "
    "do without: tl run --runner direct"
)


def run_here(parameters: Mapping[str, Any]) -> RunRecord:
    """Run the flow in this process, on a temporary server unless one is configured.

    Errors are raised, not logged: whoever called shows them once.

    Raises:
        ServerError: the server that is configured does not answer, or a temporary one
            does not start.
    """
    _quiet(level="CRITICAL")
    _check(parameters)
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
        temporary_settings,
    )

    from flows.transfer_learning import transfer_learning

    if PREFECT_API_URL.value():
        _await_server()
    # The heartbeat finds dead workers of deployments; here it costs a second.
    settings = temporary_settings(
        {
            PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
            PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: _STARTING,
        }
    )
    with settings, _one_message():
        return transfer_learning(**parameters)  # pyright: ignore[reportReturnType]


def serve(name: str, cron: str | None, parameters: Mapping[str, Any]) -> None:
    """Serve the flow from this process as the deployment ``transfer-learning/name``.

    Raises:
        InvalidSpec: ``cron`` is no schedule.
        ServerError: there is no server, or it does not answer.
    """
    _quiet(level="WARNING")
    _check(parameters)
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.settings import PREFECT_API_URL

    try:
        if cron is not None:
            CronSchedule(cron=cron)
    except ValidationError:
        raise InvalidSpec(
            f"--cron {cron!r} is no schedule: give five fields (minute, hour, day, "
            'month, day of the week), such as "0 2 * * *" for 02:00 UTC every day'
        ) from None
    if not PREFECT_API_URL.value():
        raise ServerError(
            "no Prefect server is configured, so no schedule would ever fire: run "
            "`prefect server start` and export PREFECT_API_URL, such as "
            "http://127.0.0.1:4200/api"
        )
    _await_server()
    if late := cancel_late(name):
        said = f"{late} late run{'s' * (late > 1)} cancelled"
        progress.notice(f"{said}: the last makes up for all")
    from flows.transfer_learning import transfer_learning

    transfer_learning.serve(  # pyright: ignore[reportFunctionMemberAccess]
        name=name,
        cron=cron,
        parameters=dict(parameters),
        limit=1,  # late runs come one after another
        pause_on_shutdown=False,  # else its schedule stays off after a restart
    )


def cancel_late(name: str) -> int:
    """Cancel what the schedule of the deployment missed, but for its last run.

    Nothing served it, so each would do the same now; how many were cancelled.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.states import Cancelled

    of = DeploymentFilter.model_validate({"name": {"any_": [name]}})
    due = {
        "state": {"type": {"any_": ["SCHEDULED"]}},
        "expected_start_time": {"before_": datetime.now(UTC)},
    }
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            deployment_filter=of,
            flow_run_filter=FlowRunFilter.model_validate(due),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        )
        late = [run.id for run in runs if run.auto_scheduled][1:]
        for run in late:
            state = Cancelled(
                message="late: a later run of the schedule makes up for it"
            )
            client.set_flow_run_state(run, state, force=True)
    return len(late)


def server_can_start() -> str:
    """Prefect's version, if its server imports with the libraries that are installed.

    Raises:
        Exception: whatever a broken combination of libraries raises.
    """
    _quiet(level="CRITICAL")
    import prefect
    from prefect.server.api.server import create_app

    create_app(ephemeral=True)
    return f"{prefect.__version__} can start its server"


def dead_runs() -> str:
    """How many runs the configured server calls pending or running, all of them alive.

    Raises:
        RuntimeError: some have sent no heartbeat for a while: they died with their
            process or machine.
        Exception: the server does not answer.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        return "PREFECT_API_URL is not set: a temporary server for each run"
    begun = {"state": {"type": {"any_": ["PENDING", "RUNNING"]}}}
    asked = FlowRunFilter.model_validate(begun)
    since = datetime.now(UTC) - _SILENCE
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=asked)
        old = [run for run in runs if run.state and run.state.timestamp < since]
        dead = [run for run in old if not _beats(client, run.id, since)]
    if dead:
        named = ", ".join(f"{run.name} ({run.id})" for run in dead)
        raise RuntimeError(f"{named}: no heartbeat for {_SILENCE.seconds} seconds")
    return f"{len(runs)} running at {PREFECT_API_URL.value()}"


def _beats(client: Any, run: Any, since: datetime) -> bool:
    """Whether the flow run of that id sent a heartbeat ``since``."""
    wanted = {
        "event": {"name": ["prefect.flow-run.heartbeat"]},
        "resource": {"id": [f"prefect.flow-run.{run}"]},
        "occurred": {"since": since.isoformat()},
    }
    body = {"filter": wanted, "limit": 1}
    return bool(client.request("POST", "/events/filter", json=body).json()["events"])


def _await_server() -> None:
    """Wait until the server of ``PREFECT_API_URL`` answers, as one just started does.

    Raises:
        ServerError: it does not.
    """
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    until, told = time.monotonic() + _PATIENCE, False
    with get_client(sync_client=True) as client:
        while (fault := client.api_healthcheck()) is not None:
            if time.monotonic() > until:
                raise ServerError(
                    f"the Prefect server at {PREFECT_API_URL.value()} does not answer "
                    f"({str(fault) or type(fault).__name__}): {_CURE}"
                )
            if not told:
                progress.notice(f"waiting for Prefect at {PREFECT_API_URL.value()}")
                told = True
            time.sleep(1)


@contextmanager
def _one_message() -> Iterator[None]:
    """A server that is lost on the way, or does not start, in one message."""
    import httpx

    try:
        yield
    except httpx.TransportError as error:
        raise ServerError(
            f"the Prefect server stopped answering ({error}); what was finished is "
            f"kept. {_CURE.capitalize()}"
        ) from None
    except RuntimeError as error:
        if "ephemeral" not in str(error):
            raise
        raise ServerError(
            f"Prefect's temporary server did not start within {_STARTING} seconds: "
            f"{_CURE}"
        ) from None


def _check(parameters: Mapping[str, Any]) -> None:
    """Refuse a runner that is not installed before a server starts for it."""
    from flows import clusters

    clusters.check(parameters["runner"], parameters["address"])


def _quiet(level: str) -> None:
    """Prefect as a guest on a user's console: no chatter, no call home."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", level)
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")

"""Start the flow from the command line: here and now, or served on a schedule."""

import os
from collections.abc import Mapping
from typing import Any

from tl_pipeline.runs.records import RunRecord


def run_here(parameters: Mapping[str, Any]) -> RunRecord:
    """Run the flow in this process, on a temporary server unless one is configured.

    Errors are raised, not logged: whoever called shows them once.
    """
    _quiet(level="CRITICAL")
    _check(parameters)
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from flows.transfer_learning import transfer_learning

    # The heartbeat finds dead workers of deployments; here it costs a second a run.
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        return transfer_learning(**parameters)  # pyright: ignore[reportReturnType]


def serve(name: str, cron: str | None, parameters: Mapping[str, Any]) -> None:
    """Serve the flow from this process as the deployment ``transfer-learning/name``."""
    _quiet(level="WARNING")
    _check(parameters)
    from flows.transfer_learning import transfer_learning

    transfer_learning.serve(  # pyright: ignore[reportFunctionMemberAccess]
        name=name,
        cron=cron,
        parameters=dict(parameters),
        pause_on_shutdown=False,  # else its schedule stays off after a restart
    )


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


def _check(parameters: Mapping[str, Any]) -> None:
    """Refuse a runner that is not installed before a server starts for it."""
    from flows import clusters

    clusters.check(parameters["runner"], parameters["address"])


def _quiet(level: str) -> None:
    """Prefect as a guest on a user's console: no chatter, no call home."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", level)
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")

"""A real Prefect server, for the tests that need one."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import REPOSITORY

PREFECT = (sys.executable, "-m", "prefect")


class Server:
    """A Prefect server on a free port of 127.0.0.1, with a home of its own.

    ``store`` is that of its deployments.
    """

    store = Path()

    def __init__(self, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")},
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_RUNNER_POLL_FREQUENCY": "2",
        }
        self._started: list[subprocess.Popen] = []

    def start(self, *arguments: str, program: Sequence[str] = PREFECT) -> None:
        self._started.append(
            subprocess.Popen(
                [*program, *arguments],
                env=self.environment,
                cwd=REPOSITORY,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    def call(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*PREFECT, *arguments],
            env=self.environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )

    def until_deployed(self, name: str) -> None:
        """Wait until there is such a deployment."""
        until = time.monotonic() + 120
        while True:
            try:
                self.ask(f"deployments/name/{name}")
            except urllib.error.HTTPError:
                assert time.monotonic() < until, f"{name} is not deployed"
                time.sleep(0.5)
            else:
                return

    def begin(self, name: str, **parameters: object) -> str:
        """The id of a run of the deployment ``name``, which begins at once."""
        deployment = self.ask(f"deployments/name/{name}")["id"]
        asked = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return self.ask(f"deployments/{deployment}/create_flow_run", asked)["id"]

    def completed(self, run: str, patience: float = 240) -> None:
        """Wait for the end of a run."""
        until = time.monotonic() + patience
        while (state := self.ask(f"flow_runs/{run}")["state"])["name"] != "Completed":
            assert state["type"] not in {"FAILED", "CRASHED"}, state["message"]
            assert time.monotonic() < until, state
            time.sleep(0.5)

    def ask(self, path: str, body: dict | None = None, how: str | None = None) -> Any:
        """What a GET of ``path`` answers, or a POST of ``body``; or ``how`` says else.

        A busy server answers 503, or 500; it is asked again, as Prefect's client does.
        """
        request = urllib.request.Request(
            f"{self.api}/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method=how,
        )
        until = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:
                    text = answer.read()
            except urllib.error.HTTPError as error:
                if error.code < 500 or time.monotonic() > until:
                    raise
                time.sleep(1)
            else:
                return json.loads(text) if text else None

    def wait_until_up(self) -> None:
        until = time.monotonic() + 300
        while time.monotonic() < until:
            try:
                urllib.request.urlopen(f"{self.api}/health", timeout=5).close()
            except OSError:
                time.sleep(0.5)
            else:
                return
        pytest.fail("the Prefect server did not start within five minutes")

    def kill(self, *words: str) -> None:
        """What a power cut does: all that was started is gone, runs with it.

        Or only those processes whose command holds one of ``words``.
        """
        family = self.processes(*words)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=20)
        self._started = [one for one in self._started if one.poll() is None]

    def processes(self, *words: str) -> list[psutil.Process]:
        """Those that were started, or those of them whose command holds a word."""
        return [one for one in self._family() if not words or _says(one, words)]

    def _family(self) -> list[psutil.Process]:
        """All that was started and all that those started, in whatever session."""
        found = {}
        for started in self._started:
            with contextlib.suppress(psutil.NoSuchProcess):
                top = psutil.Process(started.pid)
                found |= {p.pid: p for p in [top, *top.children(recursive=True)]}
        # A child whose parent is gone is nobody's; what runs for this home is ours.
        home = self.environment["PREFECT_HOME"]
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("PREFECT_HOME") == home:
                    found[process.pid] = process
        found.pop(os.getpid(), None)
        return list(found.values())


def _says(process: psutil.Process, words: Sequence[str]) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(word in process.cmdline() for word in words)
    return False


@contextlib.contextmanager
def flow_server() -> Iterator[None]:
    """A server with a database of its own for the flows of this process.

    Prefect's server is imported here: it takes a third of the time of all imports.
    """
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    quiet = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    with prefect_test_harness(server_startup_timeout=300), temporary_settings(quiet):
        yield

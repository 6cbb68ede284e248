"""Servers, workers and runs of Prefect that are killed, and what the next run makes.

A night is a run of a deployment, on the folder and store of ``tests.faults``; at a
random moment what Prefect needs is killed and started again, and another run follows.
"""

import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests.faults import HEADS, PATIENCE, Ended, Nights
from tests.prefect_server import Server
from tl_pipeline.store.artifacts import Store

# A word of the command of each process.
SERVER, WORKER, SERVE = "server", "worker", "serve"
RUN, SERVED_RUN = "prefect.engine", "--multiprocessing-fork"
KILLED = {
    "server killed": (SERVER,),
    "worker killed": (WORKER,),
    "run killed": (RUN,),
    "server, worker and run killed": (SERVER, WORKER, RUN),
    "tl serve and its run killed": (SERVE, SERVED_RUN),
}


class Deployed:
    """A server, a worker and `tl serve`, and the nights that they run."""

    def __init__(self, root: Path) -> None:
        self._nights, self._server = Nights(root / "nights"), Server(root / "prefect")
        self._start(SERVER)
        self._server.ask("work_pools/", {"name": "local", "type": "process"})
        deploy = self._server.call("--no-prompt", "deploy", "--name", "nightly")
        assert deploy.returncode == 0, deploy.stdout + deploy.stderr
        self._start(WORKER, SERVE)
        self._length: dict[bool, float] = {}
        for served in (False, True):
            self._nights.begin()
            begun = time.monotonic()
            self._server.completed(self._begin(served=served))
            self._length[served] = time.monotonic() - begun
            self._check()

    def try_out(self, name: str, seed: int) -> Ended:
        """Kill what ``name`` says; how the first run ended, and when the next did.

        Raises:
            AssertionError: something does not hold.
            TimeoutError: a run waits for ever.
        """
        killed, chance = KILLED[name], random.Random(f"{name} {seed}")
        served = SERVE in killed
        self._nights.begin()
        first = self._begin(served=served)
        time.sleep(chance.uniform(0, self._length[served]))
        self._server.kill(*killed)
        time.sleep(chance.uniform(0, 3))
        again = time.monotonic()
        self._start(*killed)
        self._server.completed(self._begin(served=served), PATIENCE)
        seconds = time.monotonic() - again
        self._check()
        state = self._server.ask(f"flow_runs/{first}")["state"]
        name, why = state["name"], " ".join((state["message"] or "").split())
        said = f"next completed after {seconds:.0f} s; the first is {name}: {why}"
        return Ended(0 if name == "Completed" else -signal.SIGKILL, said, seconds)

    def close(self) -> None:
        """End all that was started."""
        self._server.kill()

    def _start(self, *parts: str) -> None:
        """Start these, the server first, as systemd does."""
        if SERVER in parts:
            port = str(self._server.port)
            self._server.start("server", "start", "--host", "127.0.0.1", "--port", port)
            self._server.wait_until_up()
        if WORKER in parts:
            self._server.start("worker", "start", "--pool", "local")
        if SERVE in parts:
            tl = (str(Path(sys.executable).with_name("tl")),)
            self._server.start("serve", "digits", program=tl)
            self._server.until_deployed("transfer-learning/served")

    def _begin(self, *, served: bool) -> str:
        name = "transfer-learning/served" if served else "transfer-learning/nightly"
        return self._server.begin(name, **self._parameters())

    def _parameters(self) -> dict[str, Any]:
        return {
            "dataset": str(self._nights.images),
            "store": str(self._nights.place),
            "heads": list(HEADS),
            "controls": False,
        }

    def _check(self) -> None:
        """Once no run is left, of which one may have outlived its worker."""
        until = time.monotonic() + PATIENCE
        while self._server.processes(RUN, SERVED_RUN):
            if time.monotonic() > until:
                raise TimeoutError(f"a run is still there after {PATIENCE} s")
            time.sleep(0.2)
        self._nights.check(Store.open(self._nights.place))

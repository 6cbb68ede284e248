"""A real server, a real worker, a scheduled run: what no test harness sees.

With a newer sqlalchemy schedules silently never fire, with a newer fastapi no server
starts; this is the test that would notice.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows import launch
from tests.conftest import REPOSITORY
from tests.prefect_server import Server

pytestmark = pytest.mark.timeout(600)
LONG = {
    "heads": ["mlp:hidden=64..512"],
    "search": "cross_validation:strategy=random,configurations=500",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("prefect"))
    try:
        made.start("server", "start", "--host", "127.0.0.1", "--port", str(made.port))
        made.wait_until_up()
        yield made
    finally:
        made.kill()


@pytest.fixture(scope="module")
def told(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list]:
    """What a webhook is told, once the alerts are set up by the words of the docs."""
    bodies: list[dict[str, str]] = []

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            bodies.append(json.loads(self.rfile.read(length)))
            self.send_response(204)
            self.end_headers()

        def log_request(self, *_: object, **__: object) -> None:
            pass

    listening = HTTPServer(("127.0.0.1", 0), Webhook)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    guide = (REPOSITORY / "docs" / "engineer.md").read_text()
    (words,) = re.findall(r"```sh\n(ALERTS=.*?)```", guide, re.DOTALL)
    url = f"http://127.0.0.1:{listening.server_port}/hook"
    words = re.sub(r"ALERTS=\S+", f"ALERTS={url}", words)
    words = words.replace("alerts.yaml >", f"{REPOSITORY}/alerts.yaml >")
    ours = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", words],
        env={**server.environment, "PATH": ours},
        cwd=tmp_path_factory.mktemp("alerts"),
        check=True,
        timeout=240,
    )
    yield bodies
    listening.shutdown()
    listening.server_close()


@pytest.fixture(scope="module")
def deployed(
    server: Server,
    told: list,
    tmp_path_factory: pytest.TempPathFactory,
) -> Server:
    """The deployment of prefect.yaml, due every minute besides its own cron.

    More often, the next run would begin before the first has ended. That one has a
    champion to tell of.
    """
    del told
    store = tmp_path_factory.mktemp("store") / "tl_store"
    server.ask("work_pools/", {"name": "local", "type": "process"})
    deploy = server.call(
        *("--no-prompt", "deploy", "--name", "nightly", "--interval", "60"),
        *("--param", f"store={store}", "--param", 'heads=["logistic:C=0.1"]'),
        *("--param", "controls=false"),
    )
    assert deploy.returncode == 0, deploy.stdout + deploy.stderr
    server.start("worker", "start", "--pool", "local")
    server.store = store
    return server


def automations() -> list[dict]:
    """Those that the docs set up."""
    return YAML(typ="safe").load(REPOSITORY / "automations.yaml")["automations"]


def test_scheduled_run_completes(deployed: Server):
    """Nobody asked for it but the clock."""
    until, asked = time.monotonic() + 240, {"sort": "EXPECTED_START_TIME_ASC"}
    while not (runs := deployed.ask("flow_runs/filter", asked)):
        assert time.monotonic() < until, "nothing is scheduled"
        time.sleep(0.5)
    assert runs[0]["auto_scheduled"]
    deployed.completed(runs[0]["id"])
    # The clock has shown what it can; the next runs would take time from tests.
    deployed.ask(f"deployments/{runs[0]['deployment_id']}/pause_deployment", {})


def test_deployment_run_completes_and_its_tasks_are_cached(deployed: Server):
    """After the scheduled run has done the work."""
    run = deployed.begin("transfer-learning/nightly", dataset="digits")
    deployed.completed(run)
    asked = {"flow_runs": {"id": {"any_": [run]}}}
    tasks = deployed.ask("task_runs/filter", asked)
    states = {task["name"]: task["state"]["name"] for task in tasks}
    assert states.pop("prepare digits") == states.pop("publish digits") == "Completed"
    assert set(states.values()) == {"Cached"}
    assert "train logistic on lenet5/c5 LETTERS" in states


def test_a_new_champion_and_a_failed_run_are_told_to_a_webhook(
    deployed: Server, told: list[dict[str, str]]
):
    """After the scheduled run, which has registered the first model."""
    deployed.begin("transfer-learning/nightly", dataset="digts")
    until = time.monotonic() + 240
    while len(told) < 2:
        assert time.monotonic() < until, told
        time.sleep(0.5)
    champion, failed = (one["text"] for one in told)
    assert (
        champion == "champion of digits is version 1: the first model of this dataset"
    )
    assert failed.startswith("run digts of transfer-learning: Failed: ")
    assert "UnknownName: unknown dataset 'digts'. Did you mean 'digits'?" in failed


@pytest.mark.exhaustive  # the flow alone: test_predict.py
def test_a_batch_is_predicted_once_by_a_deployment(deployed: Server, tmp_path: Path):
    """By the model of the runs before; the second has nothing to do."""
    store = deployed.store
    deploy = deployed.call(
        *("--no-prompt", "deploy", "--name", "hourly", "--param", f"store={store}")
    )
    assert deploy.returncode == 0, deploy.stdout + deploy.stderr
    output = tmp_path / "said.csv"
    deployed.completed(deployed.begin("batch-predict/hourly"))
    deployed.completed(deployed.begin("batch-predict/hourly", output=str(output)))
    assert output.read_text().count("\n") == 1 + 1797
    records = sorted((store / "batches" / "digits").glob("*.json"))
    assert [json.loads(file.read_text())["new"] for file in records] == [1797, 0]
    with pytest.raises(urllib.error.HTTPError) as refused:
        deployed.begin("batch-predict/hourly", output="said.xlsx")
    assert "output" in refused.value.read().decode()


@pytest.mark.parametrize(
    ("parameters", "named", "choice"),
    [
        ({"backbones": ["resnet5"]}, "backbones", "resnet50"),
        ({"heads": ["svm"]}, "heads", "logistic"),
        ({"runner": "spark"}, "runner", "dask"),
        ({"part_rows": -5}, "part_rows", "minimum"),
        ({"heads": ["logistic:D=3"]}, "heads", "logistic(:(C|"),
    ],
)
def test_bad_parameter_is_refused_with_its_name_and_the_choices(
    deployed: Server, parameters: dict[str, object], named: str, choice: str
):
    with pytest.raises(urllib.error.HTTPError) as refused:
        deployed.begin("transfer-learning/nightly", **parameters)
    assert refused.value.code == 409
    said = json.loads(refused.value.read())["detail"]
    assert named in said
    assert choice in said


@pytest.mark.exhaustive  # the automation is Prefect's
def test_a_run_that_takes_too_long_is_ended_by_the_worker(deployed: Server):
    """By the automation of the docs, once somebody sets its seconds and turns it on."""
    (ends,) = (one for one in automations() if one["name"] == "tl cancel long runs")
    ends["enabled"], ends["trigger"]["within"] = True, 10  # the least
    made = deployed.ask("automations/", ends)["id"]
    run = deployed.begin("transfer-learning/nightly", **LONG)
    until = time.monotonic() + 240
    while (state := deployed.ask(f"flow_runs/{run}")["state"])["name"] != "Cancelled":
        assert time.monotonic() < until, state
        time.sleep(0.5)
    while deployed.processes("prefect.engine"):
        assert time.monotonic() < until, "the process of the run is still there"
        time.sleep(0.5)
    deployed.ask(f"automations/{made}", {}, "DELETE")


@pytest.mark.exhaustive  # a killed run: test_incremental.py and test_mirror.py
def test_after_a_power_cut_the_next_run_completes(deployed: Server):
    """Server, worker and run are killed at once; nothing waits for what they held.

    The last test of this file, since it starts the server again.
    """
    server = deployed
    run = server.begin("transfer-learning/nightly", **LONG)
    until = time.monotonic() + 120
    while server.ask(f"flow_runs/{run}")["state"]["type"] != "RUNNING":
        assert time.monotonic() < until
        time.sleep(0.5)
    time.sleep(1)
    server.kill()
    server.start("server", "start", "--host", "127.0.0.1", "--port", str(server.port))
    server.wait_until_up()
    assert server.ask(f"flow_runs/{run}")["state"]["name"] == "Running"
    server.start("worker", "start", "--pool", "local")
    again = server.begin("transfer-learning/nightly", dataset="digits")
    server.completed(again)


def test_of_late_runs_the_last_makes_up_for_all(deployed: Server):
    """Where nothing served a deployment for a while; what somebody asked for stays."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    flow = deployed.ask("flows/", {"name": "transfer-learning"})["id"]
    hourly = [{"schedule": {"cron": "0 * * * *"}, "active": True}]
    asked = {"name": "late", "flow_id": flow, "schedules": hourly}
    made = deployed.ask("deployments/", asked)["id"]
    now = datetime.now(UTC)
    since = {"start_time": f"{now - timedelta(hours=7)}", "end_time": f"{now}"}
    deployed.ask(f"deployments/{made}/schedule", since | {"min_runs": 7})
    by_hand = deployed.begin("transfer-learning/late")
    with temporary_settings({PREFECT_API_URL: deployed.api}):
        assert launch.cancel_late("late") == 6
        assert launch.cancel_late("late") == 0
    of_it = {"deployments": {"name": {"any_": ["late"]}}}
    runs = deployed.ask("flow_runs/filter", of_it | {"sort": "EXPECTED_START_TIME_ASC"})
    due = [r for r in runs if r["expected_start_time"] < f"{now:%Y-%m-%dT%H:%M:%S}"]
    assert [run["state"]["type"] for run in due] == ["CANCELLED"] * 6 + ["SCHEDULED"]
    assert deployed.ask(f"flow_runs/{by_hand}")["state"]["type"] == "SCHEDULED"


def test_a_run_without_heartbeats_is_dead(
    deployed: Server, monkeypatch: pytest.MonkeyPatch
):
    """As `tl doctor` says."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    flow = deployed.ask("flows/", {"name": "died"})["id"]
    state = {"type": "RUNNING", "name": "Running"}
    run = deployed.ask("flow_runs/", {"flow_id": flow, "name": "it", "state": state})
    state = {"type": "PENDING", "name": "Submitting"}  # its worker died with it
    deployed.ask("flow_runs/", {"flow_id": flow, "name": "submitted", "state": state})
    with temporary_settings({PREFECT_API_URL: deployed.api}):
        assert f"running at {deployed.api}" in launch.dead_runs()  # it has just begun
        monkeypatch.setattr(launch, "_SILENCE", timedelta(0))
        with pytest.raises(
            RuntimeError, match=rf"it \({run['id']}\).*: no heart"
        ) as found:
            launch.dead_runs()
    assert "submitted (" in str(found.value)


def test_the_automation_that_finds_dead_runs_is_accepted(deployed: Server):
    for one in automations():
        deployed.ask("automations/", one)
    known = {one["name"]: one for one in deployed.ask("automations/filter", {})}
    found = known["tl crash dead runs"]
    assert found["enabled"]
    assert found["trigger"]["within"] == 120
    assert [action["state"] for action in found["actions"]] == ["CRASHED"]
    assert not known["tl cancel long runs"]["enabled"]

"""A real server, a real worker, a scheduled run: what no test harness sees.

With a newer sqlalchemy schedules silently never fire, with a newer fastapi no server
starts; this is the test that would notice.
"""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.exhaustive import more
from tests.prefect_server import Server

pytestmark = pytest.mark.timeout(600)


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
def deployed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The deployment of prefect.yaml, due every minute besides its own cron.

    More often, the next run would begin before the first has ended.
    """
    store = tmp_path_factory.mktemp("store") / "tl_store"
    pool = server.call("work-pool", "create", "local", "--type", "process")
    assert pool.returncode == 0, pool.stderr
    deploy = server.call(
        *("--no-prompt", "deploy", "--name", "nightly", "--interval", "60"),
        *("--param", f"store={store}", "--param", 'heads=["logistic:C=0.1"]'),
        *("--param", "controls=false"),
    )
    assert deploy.returncode == 0, deploy.stdout + deploy.stderr
    server.start("worker", "start", "--pool", "local")
    server.store = store
    return server


def test_scheduled_run_completes(deployed: Server):
    """Nobody asked for it but the clock."""
    until = time.monotonic() + 240
    states: list[str] = []
    while time.monotonic() < until:
        runs = deployed.post("flow_runs/filter", {"sort": "EXPECTED_START_TIME_ASC"})
        scheduled = [r for r in runs if r["auto_scheduled"]]
        states = [r["state"]["name"] for r in scheduled]
        if "Completed" in states:
            # The clock has shown what it can; the next runs would take time from tests.
            deployed.post(
                f"deployments/{runs[0]['deployment_id']}/pause_deployment", {}
            )
            return
        assert "Failed" not in states, next(
            r["state"]["message"] for r in scheduled if r["state"]["name"] == "Failed"
        )
        time.sleep(1)
    pytest.fail(f"no scheduled run completed within four minutes: {states}")


def test_deployment_run_completes_and_its_tasks_are_cached(deployed: Server):
    """As the README says it, after the scheduled run has done the work."""
    run = deployed.call(
        *("deployment", "run", "transfer-learning/nightly"),
        *("--param", "dataset=digits", "--watch"),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    # Of a busy server --watch shows some of the events only.
    created = re.search("UUID: ([0-9a-f-]{36})", run.stdout)
    assert created
    asked = {"flow_runs": {"id": {"any_": [created[1]]}}}
    tasks = deployed.post("task_runs/filter", asked)
    assert {task["state"]["name"] for task in tasks} == {"Cached"}
    assert "train logistic on lenet5/c5 LETTERS" in {task["name"] for task in tasks}


@pytest.mark.exhaustive  # the flow alone: test_predict.py
def test_a_batch_is_predicted_once_by_a_deployment(deployed: Server, tmp_path: Path):
    """By the model of the runs before; the second has nothing to do."""
    store = deployed.store
    deploy = deployed.call(
        *("--no-prompt", "deploy", "--name", "hourly", "--param", f"store={store}")
    )
    assert deploy.returncode == 0, deploy.stdout + deploy.stderr
    asked = ("deployment", "run", "batch-predict/hourly", "--watch")
    output = tmp_path / "said.csv"
    for given in ((), ("--param", f"output={output}")):
        run = deployed.call(*asked, *given)
        assert run.returncode == 0, run.stdout + run.stderr
    assert output.read_text().count("\n") == 1 + 1797
    records = sorted((store / "batches" / "digits").glob("*.json"))
    assert [json.loads(file.read_text())["new"] for file in records] == [1797, 0]
    wrong = deployed.call(*asked[:-1], "--param", "output=said.xlsx")
    assert wrong.returncode == 1
    assert "output" in wrong.stdout + wrong.stderr


@pytest.mark.parametrize(
    ("parameter", "named", "choice"),
    [
        ('backbones=["resnet5"]', "backbones", "resnet50"),
        *more(
            ("epochs=3", "epochs", "heads"),
            ('heads=["svm"]', "heads", "logistic"),
            ("runner=spark", "runner", "dask"),
            ("part_rows=-5", "part_rows", "minimum"),
            ('heads=["logistic:D=3"]', "heads", "logistic(:(C|"),
        ),
    ],
)
def test_bad_parameter_is_refused_with_its_name_and_the_choices(
    deployed: Server, parameter: str, named: str, choice: str
):
    run = deployed.call(
        *("deployment", "run", "transfer-learning/nightly", "--param", parameter)
    )
    said = "".join((run.stdout + run.stderr).split())
    assert run.returncode == 1
    assert named in said
    assert choice in said


@pytest.mark.exhaustive  # a killed run: test_incremental.py and test_mirror.py
def test_after_a_power_cut_the_next_run_completes(deployed: Server):
    """Server, worker and run are killed at once; nothing waits for what they held.

    The last test of this file, since it starts the server again.
    """
    server = deployed
    asked = ("deployment", "run", "transfer-learning/nightly")
    more = ("--param", 'heads=["mlp:hidden=64..512"]')
    search = ("--param", "search=cross_validation:strategy=random,configurations=500")
    assert server.call(*asked, *more, *search).returncode == 0
    (run,) = _until(server, "RUNNING")
    time.sleep(1)
    server.kill()
    server.start("server", "start", "--host", "127.0.0.1", "--port", str(server.port))
    server.wait_until_up()
    (still,) = server.post("flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    assert still["state"]["name"] == "Running"
    server.start("worker", "start", "--pool", "local")
    again = server.call(*asked, "--param", "dataset=digits", "--watch")
    assert again.returncode == 0, again.stdout + again.stderr


def _until(server: Server, state: str) -> list[str]:
    """The ids of the runs in ``state``, once there are some."""
    wanted = {"flow_runs": {"state": {"type": {"any_": [state]}}}}
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if found := server.post("flow_runs/filter", wanted):
            return [run["id"] for run in found]
        time.sleep(0.5)
    pytest.fail(f"no run is {state}")


def test_the_automation_that_finds_dead_runs_is_accepted(deployed: Server):
    made = deployed.call("automation", "create", "--from-file", "automations.yaml")
    assert made.returncode == 0, made.stdout + made.stderr
    (found,) = deployed.post("automations/filter", {})
    assert found["enabled"]
    assert found["trigger"]["within"] == 120
    assert [action["state"] for action in found["actions"]] == ["CRASHED"]

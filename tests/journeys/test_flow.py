"""The flow on a Prefect test server: states, names, failures."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.command_line import Tl, in_this_process
from tests.object_store import ObjectStore
from tests.prefect_server import flow_server
from tests.runs.made import without_times
from tl_pipeline.config.encoder_specs import backbone_of
from tl_pipeline.config.specs import HeadSpec, RunSpec
from tl_pipeline.errors import UnknownName
from tl_pipeline.evaluation import drift
from tl_pipeline.pipeline import wiring
from tl_pipeline.runs import records
from tl_pipeline.storage import places
from tl_pipeline.store.artifacts import Store

if TYPE_CHECKING:
    from prefect.client.schemas.objects import TaskRun

# Prefect's test server leaves sockets and streams to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::ResourceWarning",
    "ignore::DeprecationWarning",
)


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    """One Prefect server with a database of its own for this file."""
    with flow_server():
        yield


@pytest.fixture
def tl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tl:
    """Type ``tl`` in an empty folder."""
    return in_this_process(tmp_path, monkeypatch)


def task_runs(flow_run_id, last: str = "publish") -> "dict[str, TaskRun]":
    """Those of a flow that has ended, once the server has heard of all they did."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    chosen = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    with get_client(sync_client=True) as client:
        until = time.monotonic() + 60
        while True:
            runs = client.read_task_runs(flow_run_filter=chosen)
            found = {run.name: run for run in runs}
            ended = [run.state is not None and run.state.is_final() for run in runs]
            if any(name.startswith(last) for name in found) and all(ended):
                return found
            assert time.monotonic() < until, found
            time.sleep(0.1)


def test_first_run_completes_and_second_is_cached(folder: Path, tmp_path: Path):
    """Each task says in its state whether it ran, and why."""
    from flows.transfer_learning import transfer_learning

    given = {
        "dataset": str(folder),
        "heads": ["logistic:C=0.1"],
        "store": str(tmp_path / "store"),
    }
    first = transfer_learning(**given, return_state=True)
    second = transfer_learning(**given, return_state=True)
    ran = task_runs(first.state_details.flow_run_id)
    cached = task_runs(second.state_details.flow_run_id)
    assert (
        set(ran)
        == set(cached)
        >= {"ingest photos", "embed 2 encoders", "register photos"}
    )
    assert {t.state.name for t in ran.values()} == {"Completed"}
    assert ran["train logistic on lenet5/c5 LETTERS"].state.message.startswith("ran: ")
    for name in ("prepare photos", "publish photos"):
        assert cached.pop(name).state.name == "Completed"
    assert {t.state.name for t in cached.values()} == {"Cached"}
    assert second.result().best == first.result().best


def test_what_is_typed_is_the_flow(folder: Path, tl: Tl):
    """``tl run`` shows what came out; ``tl predict`` finds the model."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import FlowRunSort

    done = tl("run", folder, "--head", "logistic:C=0.1", "--no-controls")
    assert done.returncode == 0, done.stderr
    with get_client(sync_client=True) as client:
        (last,) = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
    assert last.state is not None
    assert last.state.name == "Completed"
    ran = task_runs(last.id)
    assert ran["train logistic on lenet5/c5 LETTERS"].state.message.startswith("ran: ")
    assert "photos: test accuracy" in done.stdout


def test_doctor_finds_this_machine_fit(tl: Tl):
    """Here, where Prefect's server is imported already."""
    done = tl("doctor", "--json")
    checks = {row["check"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 0, [c for c in checks.values() if not c["ok"]]
    assert checks["fastapi"]["ok"]
    assert "operators work together" in checks["torch and torchvision"]["found"]
    assert "can start its server" in checks["prefect server"]["found"]


def test_new_images_are_predicted_once_by_a_flow(
    folder: Path, tl: Tl, tmp_path: Path, crops: Callable[[str, int], Image.Image]
):
    from flows.batch_predict import batch_predict

    run = ("--head", "logistic:C=1", "--no-controls", "--runner", "direct")
    assert tl("run", folder, *run).returncode == 0
    (tmp_path / "incoming").mkdir()
    for number in range(100, 104):
        crops("flower", number).save(tmp_path / "incoming" / f"{number}.jpg")
    first = batch_predict("photos", "incoming")
    second = batch_predict("photos", "incoming")
    assert (first.new, second.new) == (4, 0)
    assert all(step.cached for step in second.steps)
    schema = batch_predict.parameters.properties
    assert r"\.parquet" in schema["output"]["anyOf"][0]["pattern"]
    with pytest.raises(Exception, match="output"):
        batch_predict("photos", "incoming", output="said.xlsx")


def test_what_a_run_came_to_stands_in_artifacts_and_an_event(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of each run; the champion is announced by the run that changed it alone."""
    from prefect.client.orchestration import get_client

    from flows import announcing
    from flows.transfer_learning import transfer_learning

    events: list[tuple[str, dict[str, str], dict[str, Any]]] = []
    monkeypatch.setattr(
        announcing,
        "emit_event",
        lambda name, resource, payload: events.append((name, resource, payload)),
    )
    (folder / "china" / "note.jpg").write_text("no image")
    data = folder.rename(folder.with_name("My_Photos"))
    given = {
        "dataset": str(data),
        "heads": ["logistic:C=0.1"],
        "controls": False,
        "store": str(tmp_path / "store"),
    }
    record = transfer_learning(**given)
    transfer_learning(**given)
    with get_client(sync_client=True) as client:
        asked = client.request("POST", "/artifacts/filter", json={"sort": "ID_DESC"})
    found = [(a["key"], a["data"]) for a in asked.json()]
    (refused, again), (text, _) = (
        [data for key, data in found if key == wanted]
        for wanted in ("quarantine-my-photos", "run-my-photos")
    )
    assert refused == again
    (row,) = json.loads(refused)
    assert (Path(row["uri"]).name, row["reason"]) == ("note.jpg", "not an image")
    best = record.best
    assert text.startswith(f"# My\\_Photos: test accuracy {best.test.share} \\[")
    assert f"| best | {best.encoder} | {best.head} | {best.held_out.share} |" in text
    refusals = "1 inputs refused, 0 duplicate files: `tl sql 'FROM quarantine'`, "
    assert refusals in text
    (event,) = events
    assert event[:2] == (
        "tl.champion.changed",
        {"prefect.resource.id": "tl.model.My_Photos"},
    )
    assert (event[2]["version"], event[2]["reason"]) == (
        1,
        "the first model of this dataset",
    )


def test_a_batch_that_drifted_is_stored_told_and_a_failed_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from prefect.client.schemas.objects import StateType

    from flows import announcing
    from flows.batch_predict import batch_predict

    monkeypatch.setattr(drift, "FEWEST", 8)
    events: list[tuple[str, dict[str, str], dict[str, Any]]] = []
    monkeypatch.setattr(
        announcing,
        "emit_event",
        lambda name, resource, payload: events.append((name, resource, payload)),
    )
    spec = RunSpec(
        dataset=str(folder),
        heads=(HeadSpec(name="logistic", params={"C": 0.1}),),
        controls=False,
    )
    store = Store.open(tmp_path / "store")
    wiring.run(wiring.prepare(spec, store))
    root = tmp_path / "unlike"
    root.mkdir()
    for number in range(20):
        unlike = Image.new("RGB", (64, 64), (10 * number, 0, 255))
        unlike.save(root / f"{number}.png")
    catalog = tmp_path / "catalog.yaml"
    how = "{action: fail, error: 0.05}"
    entry = f"{{type: image_folder, path: {root}, labels: none, drift: {how}}}"
    catalog.write_text(f"version: 1\ndatasets:\n  unlike: {entry}\n")
    state = batch_predict(
        folder.name,
        "unlike",
        catalog=str(catalog),
        store=str(store.root),
        return_state=True,
    )
    assert (state.name, state.type) == ("Drift", StateType.FAILED)
    record = records.latest_batch(store, "unlike")
    assert record is not None
    tripped = [one.model_dump() for one in record.drift if one.tripped]
    assert "embeddings" in {one["statistic"] for one in tripped}
    (event,) = events
    assert event[:2] == ("tl.drift", {"prefect.resource.id": "tl.dataset.unlike"})
    assert (event[2]["new"], event[2]["tripped"]) == (20, tripped)


def test_flow_and_direct_call_agree(folder: Path, tmp_path: Path):
    """The same wiring, whoever calls the stages; joint and averaged ones too."""
    from flows.transfer_learning import transfer_learning

    backbones = ["lenet5", ["lenet5", "lenet5:layer=f6"]]
    flow = transfer_learning(
        str(folder),
        backbones=backbones,
        heads=["logistic:C=0.1"],
        ensemble="average",
        store=str(tmp_path / "a"),
    )
    spec = RunSpec(
        dataset=str(folder),
        backbones=tuple(map(backbone_of, backbones)),
        heads=(HeadSpec(name="logistic", params={"C": 0.1}),),
        ensemble="average",
    )
    direct = wiring.run(wiring.prepare(spec, Store.open(tmp_path / "b")))
    assert without_times(flow.results) == without_times(direct.results)
    assert [s.subject for s in flow.steps] == [s.subject for s in direct.steps]


def test_a_flow_tunes_in_a_task_and_keeps_the_choice(folder: Path, tmp_path: Path):
    """What nightly runs do."""
    from flows.transfer_learning import transfer_learning

    given = {
        "dataset": str(folder),
        "backbones": ["squeezenet1_0:weights=random:0,side=48,precision=fp32"],
        "heads": ["logistic:C=0.1"],
        "tune": "side=32/48,pool=gap",
        "controls": False,
        "store": str(tmp_path / "store"),
    }
    first = transfer_learning(**given, return_state=True)
    second = transfer_learning(**given, return_state=True)
    ran = task_runs(first.state_details.flow_run_id)["tune photos"]
    cached = task_runs(second.state_details.flow_run_id)["tune photos"]
    assert ran.state.message.startswith("ran: nothing is chosen yet: 4 candidates")
    assert cached.state.name == "Cached"
    record = first.result()
    assert [s.short() for s in record.spec.backbones] == [record.tuning.spec]
    assert second.result().tuning == record.tuning


def test_a_store_that_does_not_answer_for_a_while_is_asked_again(
    folder: Path,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    object_server: ObjectStore,
):
    """By a run that nobody watches: in the first task, in embed, and in the last."""
    from flows import tasks
    from flows.transfer_learning import transfer_learning

    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tasks, "DELAYS", [0.1, 0.1])
    monkeypatch.setattr(places, "_REST", 0)
    head = HeadSpec(name="logistic", params={"C": 0.1})
    spec = RunSpec(dataset=str(folder), heads=(head,), controls=False)
    direct = wiring.run(wiring.prepare(spec, Store.open(tmp_path / "undisturbed")))
    refused: list[tuple[str, str]] = []

    def before(method: str, path: str) -> int | None:
        once = {("GET", "/store.json"), ("PUT", "/part-"), ("PUT", "/runs/")}
        for one in once - set(refused):
            if method == one[0] and one[1] in path:
                refused.append(one)
                return 503
        return None

    object_server.before = before
    state = transfer_learning(
        str(folder), heads=[head.short()], controls=False, store=url, return_state=True
    )
    assert [part for _, part in refused] == ["/store.json", "/part-", "/runs/"]
    assert state.name == "Completed"
    assert without_times(state.result().results) == without_times(direct.results)
    ran = task_runs(state.state_details.flow_run_id)
    tried = {name: run.run_count for name, run in ran.items() if run.run_count > 1}
    asked_twice = ("prepare photos", "embed lenet5/c5 LETTERS", "publish photos")
    assert tried == dict.fromkeys(asked_twice, 2)
    assert len(records.every(Store.open(url))) == 1


def test_failure_is_the_first_error_itself(tmp_path: Path):
    """Not a Prefect wrapper, and the state tells the message."""
    from flows.transfer_learning import transfer_learning

    store = str(tmp_path / "store")
    with pytest.raises(UnknownName, match="unknown dataset 'digts'"):
        transfer_learning("digts", store=store, catalog="data_catalog.yaml")
    state = transfer_learning(
        "digts", store=store, catalog="data_catalog.yaml", return_state=True
    )
    assert state.is_failed()
    tried = task_runs(state.state_details.flow_run_id, "prepare")
    assert {name: run.run_count for name, run in tried.items()} == {"prepare digts": 1}
    assert "Did you mean 'digits'" in state.message


def test_parameters_name_the_choices_in_their_schema():
    from flows.transfer_learning import transfer_learning

    schema = transfer_learning.parameters.properties
    assert "squeezenet1_0" in schema["backbones"]["items"]["anyOf"][0]["pattern"]
    assert "logistic" in schema["heads"]["items"]["pattern"]

"""``tl store gc`` in an object store: beside runs and readers of other machines.

S3 is spoken by moto's server in this process. A machine is a cache folder of its own.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tests.object_store import ObjectStore, environment
from tests.store.test_mirror import killed
from tl_pipeline import query
from tl_pipeline.config.specs import EncoderSpec, HeadSpec, RunSpec
from tl_pipeline.errors import StoreError
from tl_pipeline.maintenance import garbage
from tl_pipeline.maintenance.gc_roots import Retention
from tl_pipeline.pipeline import wiring
from tl_pipeline.registry import index
from tl_pipeline.runs import records as runs
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.keys import key_document, keys_in
from tl_pipeline.store.remote import gc_lease

At = Callable[[str], Store]
ONE = Retention(keep_runs=1)

pytestmark = pytest.mark.usefixtures("one_thread", "one_core", "object_server")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, crops: Callable[..., Any]) -> Path:
    """Two classes of 30 photos."""
    root = tmp_path_factory.mktemp("data") / "photos"
    for label in ("china", "flower"):
        (root / label).mkdir(parents=True)
        for number in range(30):
            crops(label, number).save(root / label / f"{number:03d}.jpg")
    return root


@pytest.fixture(scope="module")
def made(
    _serving: ObjectStore, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The URL of a store with two runs, a week old; the first had controls."""
    url = _serving.bucket("made") + "/store"
    cache = str(tmp_path_factory.mktemp("made"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(_serving).items():
            patch.setenv(name, value)
        patch.setenv("TL_CACHE", cache)
        patch.setenv("TL_CORES", "1")
        for number in ("first", "last"):
            run(Store.open(url), photos, number)
    _serving.age(url, 7)
    return url


@pytest.fixture
def used(made: str, url: str, object_server: ObjectStore) -> str:
    """A copy of that store, at the place where machines open it."""
    object_server.copy(made, url)
    return url


def work(store: Store, photos: Path, number: str) -> wiring.Work:
    """The first run, or the last one: of its candidates only the best is registered."""
    layer = {"first": "c5", "last": "f6"}[number]
    spec = RunSpec(
        dataset=str(photos),
        backbones=(EncoderSpec(backbone="lenet5", layer=layer),),
        heads=(HeadSpec.parse("logistic:C=0.1"),),
        part_rows=16,
        controls=number == "first",
    )
    return wiring.prepare(spec, store)


def run(store: Store, photos: Path, number: str) -> RunRecord:
    return wiring.run(work(store, photos, number))


def due(store: Store, photos: Path, number: str) -> list[str]:
    """What a run would do."""
    steps = wiring.plan(work(store, photos, number))
    return [f"{step.stage} {step.subject}" for step in steps if not step.cached]


def control(store: Store, photos: Path) -> EmbeddingFolder:
    """The embeddings that only the first run reaches: those of the untrained twin."""
    (key,) = (e.key for e in work(store, photos, "first").encoders if e.control)
    return EmbeddingFolder(store, key)


def tl(
    cache: Path, *arguments: object, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """The real command, on the machine with that ``cache``."""
    done = subprocess.run(
        [sys.executable, "-m", "tl_pipeline.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        env={**os.environ, "TL_CACHE": str(cache)},
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def unreached(store: Store) -> list[str]:
    return [str(w.path.relative_to(store.root)) for w in garbage.find(store).waste]


def assert_whole(server: ObjectStore, url: str) -> None:
    """Every artifact that has a provenance has all that it lists."""
    objects = server.objects(url)
    for name, text in objects.items():
        if name.endswith("/provenance.json"):
            folder = name.rpartition("/")[0]
            for file, facts in json.loads(text)["files"].items():
                stem, dot, ending = file.rpartition(".")
                end = f"{dot}{ending}"
                assert f"{folder}/{stem}-{facts['sha256'][:32]}{end}" in objects


def assert_there(server: ObjectStore, made: str, used: str, number: str) -> None:
    """All that the record of a run of ``made`` names is in ``used``."""
    before = server.objects(made)
    records = [text for name, text in before.items() if name.startswith("runs/")]
    named = keys_in(records[["first", "last"].index(number)].decode())
    wanted = {n for n in before if n.split("/")[1:2] and n.split("/")[1] in named}
    assert len(wanted) > 10
    assert wanted <= server.objects(used).keys()


# What goes and what stays


def test_the_command_removes_what_it_said_and_keeps_what_is_reached(
    used: str, at: At, object_server: ObjectStore, photos: Path, tmp_path: Path
):
    first = at("A")
    assert due(first, photos, "first") == []
    query.ask(first, "FROM embeddings")  # brings them to the mirror
    before = object_server.objects(used)
    for path in first.root.rglob("*"):
        os.utime(path, (0, 0))
    gc = ("store", "gc", "--keep-runs", 1, "--json", "--store", used)
    said = json.loads(tl(tmp_path / "A", *gc, "--dry-run").stdout)
    assert object_server.objects(used) == before
    done = json.loads(tl(tmp_path / "A", *gc).stdout)
    assert done["waste"] == said["waste"]
    assert done["stay"] == said["stay"] == []
    kinds = {row["kind"] for row in done["waste"]}
    assert {"run", "report", "heads", "evaluations", "embeddings"} <= kinds

    left = object_server.objects(used)
    assert left.items() <= before.items()
    gone = tuple(row["path"] for row in done["waste"])
    assert not [name for name in left if name.startswith(gone)]
    assert not [path for path in gone if (first.root / path).exists()]
    removed = sum(len(data) for name, data in before.items() if name not in left)
    assert sum(row["bytes"] for row in done["waste"]) == removed
    assert_whole(object_server, used)
    assert garbage.find(at("B"), ONE, 0).waste == []

    third = at("C")
    assert due(third, photos, "last") == []
    assert index.load_model(third, "photos").dataset == "photos"
    assert query.ask(third, "FROM runs").num_rows == 1
    sql = "SELECT count(DISTINCT encoder_key) AS n FROM embeddings"
    assert query.ask(third, sql).to_pylist() == [{"n": 2}]
    assert query.ask(at("A"), sql).to_pylist() == [{"n": 2}]


def test_what_is_young_or_was_used_lately_stays(
    used: str, at: At, object_server: ObjectStore, photos: Path
):
    first = at("A")
    young = first.build("heads", key_document("t", 1, {}, {}), lambda _: None)
    old = first.build("heads", key_document("t", 2, {}, {}), lambda _: None)
    object_server.age(f"{used}/heads/{old.key}", 2)
    control(at("B"), photos).embedded()  # as a run under way does
    found = garbage.find(first, ONE)
    folder = control(first, photos).path.name
    assert {item.path.name for item in found.young} == {young.key, folder}
    assert old.key in {item.path.name for item in found.waste}
    garbage.collect(first, found.waste, 1)
    assert at("D").find("heads", young.key)
    assert at("D").find("heads", old.key) is None
    assert len(control(at("D"), photos).embedded()) == 60


@pytest.mark.usefixtures("used")
def test_a_plan_marks_nothing_as_used(at: At, photos: Path):
    assert due(at("B"), photos, "first") == []
    assert garbage.find(at("A"), ONE).young == []


def test_leftovers_of_workers_go_after_the_time_of_grace(
    used: str, at: At, object_server: ObjectStore
):
    name = ".building/partitions-1/0001.parquet"
    object_server.put(f"{used}/{name}", b"x")
    assert [w.path.name for w in garbage.find(at("A")).young] == ["partitions-1"]
    object_server.age(f"{used}/.building", 2)
    found = garbage.find(at("A"))
    assert [w.why for w in found.waste] == ["a killed process left it"]
    garbage.collect(at("A"), found.waste, 1)
    assert name not in object_server.objects(used)


@pytest.mark.usefixtures("used")
def test_finished_work_that_was_never_sent_counts_as_the_rest(
    at: At, object_server: ObjectStore
):
    first = at("A")
    object_server.before = lambda method, _: 403 if method == "PUT" else None
    with pytest.raises(StoreError):
        first.build("heads", key_document("t", 1, {}, {}), lambda _: None)
    object_server.before = None
    found = garbage.find(first)
    assert [w.kind for w in found.young] == ["heads"]
    assert found.waste == []


# Killed, or without a connection


@pytest.mark.parametrize("deletions", [2, 9])
def test_a_collection_killed_on_the_way_leaves_a_whole_store(
    made: str,
    used: str,
    at: At,
    object_server: ObjectStore,
    deletions: int,
    monkeypatch: pytest.MonkeyPatch,
):
    """SIGKILL while the server holds back the answer to one deletion."""
    before = object_server.objects(used).keys()
    at("A")
    gc = ("store", "gc", "--keep-runs", "1", "--store", used)
    command = [sys.executable, "-m", "tl_pipeline.cli", *gc]
    assert killed(object_server, deletions, command, "DELETE")
    assert_whole(object_server, used)
    left = object_server.objects(used).keys()
    assert left - before == {gc_lease.NAME}
    assert len(before - left) >= deletions
    assert_there(object_server, made, used, "last")
    monkeypatch.setattr(gc_lease, "_DEAD_S", 0.2)
    monkeypatch.setattr(gc_lease, "_LOOK_S", 0.1)
    again = at("A")
    garbage.collect(again, garbage.find(again, ONE).waste, 1)
    assert unreached(at("D")) == []
    assert_there(object_server, made, used, "last")
    assert_whole(object_server, used)


def test_a_store_that_refuses_a_deletion_is_one_message_and_is_tried_again(
    used: str, at: At, object_server: ObjectStore, tmp_path: Path
):
    left = [3]

    def refuse(method: str, path: str) -> int | None:
        left[0] -= method == "DELETE"
        return 403 if left[0] < 0 and ".collecting" not in path else None

    object_server.before = refuse
    gc = ("store", "gc", "--keep-runs", 1, "--json", "--store", used)
    said = tl(tmp_path / "A", *gc, code=2)
    assert used in said.stderr
    assert "access denied" in said.stderr
    object_server.before = None
    assert_whole(object_server, used)
    assert gc_lease.NAME not in object_server.objects(used)
    garbage.collect(at("A"), garbage.find(at("A"), ONE).waste, 1)
    assert unreached(at("B")) == []


# Beside other machines


def test_an_old_mirror_neither_brings_back_nor_believes_in_what_was_removed(
    used: str, at: At, object_server: ObjectStore, photos: Path
):
    second = at("B")
    assert due(second, photos, "first") == []
    query.ask(second, "FROM embeddings")
    assert list(control(second, photos).path.glob("part-*"))
    assert query.ask(second, "FROM runs").num_rows == 2

    first = at("A")
    garbage.collect(first, garbage.find(first, ONE).waste, 1)
    left = object_server.objects(used)
    assert query.ask(at("B"), "FROM runs").num_rows == 1
    sql = "SELECT count(DISTINCT encoder_key) AS n FROM embeddings"
    assert query.ask(at("B"), sql).to_pylist() == [{"n": 2}]
    assert object_server.objects(used) == left
    run(at("B"), photos, "last")
    assert not [n for n in object_server.objects(used).keys() - left if "/part-" in n]
    assert unreached(at("C")) == []

    embed = [s for s in due(at("B"), photos, "first") if s.startswith("embed")]
    assert embed == ["embed lenet5/c5 random:0"]
    run(at("B"), photos, "first")
    assert due(at("C"), photos, "first") == []
    assert unreached(at("C")) == []
    assert_whole(object_server, used)


@pytest.mark.parametrize("moment", ["write", "write_atomically"])
def test_what_a_run_used_and_others_removed_meanwhile_is_there_when_it_ends(
    made: str,
    used: str,
    at: At,
    object_server: ObjectStore,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
):
    """Removed just before it ends, or just before its record is written."""
    first, second = at("A"), at("B")
    write, gone = getattr(runs, moment), []

    def late(*given: Any) -> Any:
        found = garbage.find(first, ONE)
        gone.extend(garbage.collect(first, found.waste, 1).removed)
        return write(*given)

    with monkeypatch.context() as patch:
        patch.setattr(runs, moment, late)
        run(second, photos, "first")
    kinds = {waste.kind for waste in gone}
    assert {"heads", "evaluations"} <= kinds
    assert "embeddings" not in kinds  # marked
    assert_there(object_server, made, used, "first")
    assert_whole(object_server, used)


def test_a_run_that_ends_while_its_artifacts_are_removed_waits_and_sends_them_again(
    made: str,
    used: str,
    at: At,
    object_server: ObjectStore,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """The first deletion of an artifact is held back until the run has its record."""
    monkeypatch.setattr(gc_lease, "_LOOK_S", 0.05)
    first, second = at("A"), at("B")
    assert due(second, photos, "first") == []  # all is in its mirror
    found = garbage.find(first, ONE).waste
    holding, recorded = threading.Event(), threading.Event()

    def hold(method: str, path: str) -> int | None:
        if method == "DELETE" and "/heads/" in path:
            holding.set()
            assert recorded.wait(60)
        if method == "GET" and gc_lease.NAME in path:
            waiting.append(path)

    waiting: list[str] = []
    object_server.before = hold
    with monkeypatch.context() as patch:
        write = runs.write

        def late(store: Store, record: RunRecord) -> Path:
            collector.start()
            assert holding.wait(60)
            waiting.clear()
            threading.Timer(0.5, recorded.set).start()
            return write(store, record)

        done: list[garbage.Collected] = []
        collector = threading.Thread(
            target=lambda: done.append(garbage.collect(first, found, 1))
        )
        patch.setattr(runs, "write", late)
        run(second, photos, "first")
        collector.join()
    assert len(waiting) > 2
    assert "heads" in {waste.kind for waste in done[0].removed}
    assert_there(object_server, made, used, "first")
    assert_whole(object_server, used)


@pytest.mark.usefixtures("used")
def test_embeddings_that_come_into_use_between_finding_and_removing_stay(
    at: At, photos: Path
):
    first = at("A")
    found = garbage.find(first, ONE).waste
    folder = control(at("B"), photos)
    assert len(folder.embedded()) == 60
    done = garbage.collect(first, found, 1)
    assert [waste.path.name for waste in done.in_use] == [folder.path.name]
    assert len(control(at("C"), photos).embedded()) == 60


@pytest.mark.usefixtures("used")
def test_who_comes_to_use_embeddings_that_are_being_removed_waits_and_sees_none(
    at: At, object_server: ObjectStore, photos: Path, monkeypatch
):
    monkeypatch.setattr(gc_lease, "_LOOK_S", 0.05)
    first, folder = at("A"), control(at("B"), photos)
    assert len(folder.parts().whole) == 4
    found = garbage.find(first, ONE).waste
    holding, go_on = threading.Event(), threading.Event()

    def hold(method: str, path: str) -> int | None:
        if method == "DELETE" and "/embeddings/" in path:
            holding.set()
            assert go_on.wait(60)

    object_server.before = hold
    collector = threading.Thread(target=garbage.collect, args=(first, found, 1))
    collector.start()
    assert holding.wait(60)
    threading.Timer(0.5, go_on.set).start()
    assert folder.embedded() == set()
    collector.join()


@pytest.mark.usefixtures("used")
def test_readers_beside_a_collection_see_all_rows_of_what_stays(at: At, photos: Path):
    first, second = at("A"), at("B")
    (key,) = (e.key for e in work(second, photos, "last").encoders)
    expected = EmbeddingFolder(second, key).load(
        EmbeddingFolder(second, key).embedded()
    )
    found = garbage.find(first, ONE).waste
    wrong: list[object] = []
    done = threading.Event()

    def read(store: Store) -> None:
        while not done.is_set():
            store.mirror.forget(store.root / "runs")
            loaded = EmbeddingFolder(store, key).load(expected.image_ids)
            if not np.array_equal(loaded.vectors, expected.vectors):
                wrong.append(loaded.image_ids)
            rows = query.ask(store, "FROM runs").num_rows
            if rows not in {1, 2}:
                wrong.append(rows)

    failed: list[BaseException] = []

    def guarded(store: Store) -> None:
        try:
            read(store)
        except BaseException as error:  # noqa: BLE001 - told below
            failed.append(error)

    reader = threading.Thread(target=guarded, args=(second,))
    reader.start()
    garbage.collect(first, found, 1)
    done.set()
    reader.join()
    assert failed == []
    assert wrong == []


def test_a_second_collection_at_the_same_time_is_refused(
    used: str, at: At, object_server: ObjectStore, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(gc_lease, "_LOOK_S", 0.05)
    monkeypatch.setattr(gc_lease, "_RENEWED_S", 0.0)
    first = at("A")
    stop = threading.Event()

    def alive() -> None:
        while not stop.wait(0.2):
            first.mirror.remove(["nothing"])

    with first.mirror.collecting([]):
        heart = threading.Thread(target=alive)
        heart.start()
        gc = ("store", "gc", "--keep-runs", 1, "--store", used)
        said = tl(tmp_path / "B", *gc, code=2)
        stop.set()
        heart.join()
    assert f"{used}: a tl store gc on" in said.stderr
    assert "Nothing was removed" in said.stderr
    assert gc_lease.NAME not in object_server.objects(used)


def test_a_collection_that_stood_still_does_not_go_on(at: At, monkeypatch):
    """Others believe that it died, and use what it was about to remove."""
    first = at("A")
    first.create()
    now = time.time()
    with first.mirror.collecting([]):
        monkeypatch.setattr(time, "time", lambda: now + 40)
        with pytest.raises(StoreError, match="stood still"):
            first.mirror.remove(["heads/x"])


def test_the_notice_of_a_process_that_died_holds_nobody_up_for_ever(
    at: At, object_server: ObjectStore, url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gc_lease, "_DEAD_S", 0.3)
    monkeypatch.setattr(gc_lease, "_LOOK_S", 0.05)
    first = at("A")
    first.create()
    made = first.build("heads", key_document("t", 1, {}, {}), lambda _: None)
    places = {"host": "h", "places": [f"heads/{made.key}"]}
    object_server.put(f"{url}/{gc_lease.NAME}", json.dumps(places).encode())
    object_server.forget()
    first.keep([made.key])
    looks = [p for m, p in object_server.requests if gc_lease.NAME in p]
    assert len(looks) > 2

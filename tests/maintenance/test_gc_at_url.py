"""``tl store gc`` in an object store: beside runs and readers of other machines.

S3 is spoken by moto's server in this process. A machine is a cache folder of its own.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.command_line import in_this_process
from tests.exhaustive import more
from tests.object_store import ObjectStore, environment
from tests.store.test_mirror import killed
from tl_pipeline import query
from tl_pipeline.config.specs import EncoderSpec, HeadSpec, RunSpec
from tl_pipeline.errors import StoreError
from tl_pipeline.maintenance import gc
from tl_pipeline.maintenance.gc_roots import RunPolicy
from tl_pipeline.pipeline import wiring
from tl_pipeline.registry import index
from tl_pipeline.runs import records as runs
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.keys import key_document, keys_in

At = Callable[[str], Store]
ONE = RunPolicy(keep_runs=1)

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
    """The URL of a store with two runs, eight days old; the first had controls."""
    url = _serving.bucket("made") + "/store"
    cache = str(tmp_path_factory.mktemp("made"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(_serving).items():
            patch.setenv(name, value)
        patch.setenv("TL_CACHE", cache)
        patch.setenv("TL_CORES", "1")
        for number in ("first", "last"):
            run(Store.open(url), photos, number)
    _serving.age(url, 8)
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
    with pytest.MonkeyPatch.context() as patch:
        typed = in_this_process(cache.parent, patch, TL_CACHE=str(cache))
        done = typed(*arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def unreached(store: Store) -> list[str]:
    found = gc.find(store).garbage
    return [str(g.item.path.relative_to(store.root)) for g in found]


def assert_whole(server: ObjectStore, url: str) -> None:
    """Every artifact that has a provenance has all that it lists."""
    objects = server.objects(url)
    for name, text in objects.items():
        if name.endswith("/provenance.json") and not name.startswith("mlflow/"):
            folder = name.rpartition("/")[0]
            for file, facts in json.loads(text)["files"].items():
                path = Path(file)
                named = f"{path.stem}-{facts['sha256'][:32]}{path.suffix}"
                assert f"{folder}/{path.with_name(named)}" in objects


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
    gc_command = ("store", "gc", "--keep-runs", 1, "--json", "--store", used)
    said = json.loads(tl(tmp_path / "A", *gc_command, "--dry-run").stdout)
    assert object_server.objects(used) == before
    done = json.loads(tl(tmp_path / "A", *gc_command).stdout)
    assert sorted(r["path"] for r in done["garbage"]) == sorted(
        r["path"] for r in said["garbage"]
    )
    assert done["stay"] == said["stay"] == []
    kinds = {row["kind"] for row in done["garbage"]}
    assert {"runs", "reports", "heads", "evaluations", "embeddings"} <= kinds

    left = object_server.objects(used)
    assert left.items() <= before.items()
    gone = tuple(row["path"] for row in done["garbage"])
    assert not [name for name in left if name.startswith(gone)]
    assert not [path for path in gone if (first.root / path).exists()]
    removed = sum(len(data) for name, data in before.items() if name not in left)
    assert sum(row["bytes"] for row in done["garbage"]) == removed
    assert_whole(object_server, used)
    assert gc.find(at("B"), ONE, 0).garbage == []

    third = at("C")
    assert due(third, photos, "last") == []
    assert index.load_model(third, "photos").dataset == "photos"
    assert query.ask(third, "FROM runs").num_rows == 1
    sql = "SELECT count(DISTINCT encoder_key) AS n FROM embeddings"
    assert query.ask(third, sql).to_pylist() == [{"n": 2}]
    assert query.ask(at("A"), sql).to_pylist() == [{"n": 2}]


def test_what_is_young_or_used_by_a_run_on_another_machine_stays(
    used: str, at: At, object_server: ObjectStore, photos: Path
):
    first, second = at("A"), at("B")
    young = first.build("heads", key_document("t", 1, {}, {}), lambda _: None)
    old = first.build("heads", key_document("t", 2, {}, {}), lambda _: None)
    object_server.age(f"{used}/heads/{old.key}", 8)
    folder = control(second, photos)
    head = next(
        g.item
        for g in gc.find(first, ONE).garbage
        if g.item.kind == "heads" and g.item.key != old.key
    )
    with second.in_use([folder.encoder_key]):
        assert second.find("heads", head.key)
        named = [n for n in object_server.objects(used) if n.startswith("in_use/")]
        assert len(named) == 2
        found = gc.collect(first, ONE)
    assert [g.item.key for g in found.stays] == [young.key]
    assert not {g.item.key for g in found.garbage} & {folder.encoder_key, head.key}
    assert at("D").find("heads", young.key)
    assert at("D").find("heads", head.key)
    assert at("D").find("heads", old.key) is None
    assert len(control(at("D"), photos).embedded()) == 60
    assert not [n for n in object_server.objects(used) if n.startswith("in_use/")]


def test_what_a_run_that_died_elsewhere_names_stays_as_long_as_the_retention(
    used: str, at: At, object_server: ObjectStore, photos: Path
):
    key = control(at("B"), photos).encoder_key
    text = json.dumps({"host": "dead", "keys": [key]}).encode()
    object_server.put(f"{used}/in_use/{'1' * 32}-0.json", text)
    assert key not in {g.item.key for g in gc.find(at("A"), ONE).garbage}
    object_server.age(f"{used}/in_use", 8)
    found = {g.item.key: g.why for g in gc.find(at("A"), ONE).garbage}
    assert found[key] == "no run or model uses it"
    assert found[f"{'1' * 32}-0.json"] == "its run died"


def test_a_run_writes_one_object_first_and_deletes_it_at_its_end(
    used: str, at: At, object_server: ObjectStore, photos: Path
):
    """What the last run used is named at once, so nothing is written for each find."""
    object_server.forget()
    run(at("B"), photos, "last")
    writes = [
        (method, path.partition("/store/")[2])
        for method, path in object_server.requests
        if method in {"PUT", "DELETE"}
    ]
    assert writes[0][0] == "PUT"
    assert writes[0][1].startswith("in_use/")
    assert [m for m, path in writes if path.startswith("in_use/")] == ["PUT", "DELETE"]
    assert not [n for n in object_server.objects(used) if n.startswith("in_use/")]


@pytest.mark.usefixtures("used")
def test_a_plan_names_nothing_as_used(at: At, object_server: ObjectStore, photos: Path):
    second = at("B")
    object_server.forget()
    assert due(second, photos, "first") == []
    assert [m for m, _ in object_server.requests if m in {"PUT", "DELETE"}] == []


def test_leftovers_of_workers_go_after_the_retention(
    used: str, at: At, object_server: ObjectStore
):
    name = ".building/partitions-1/0001.parquet"
    object_server.put(f"{used}/{name}", b"x")
    assert [g.item.path.name for g in gc.find(at("A")).stays] == ["partitions-1"]
    object_server.age(f"{used}/.building", 8)
    found = gc.collect(at("A"))
    assert [g.why for g in found.garbage] == ["a killed process left it"]
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
    found = gc.find(first)
    assert [g.item.kind for g in found.stays] == ["heads"]
    assert found.garbage == []


# Killed, or without a connection


@pytest.mark.parametrize("deletions", [9, *more(2)])
def test_a_collection_killed_on_the_way_leaves_a_whole_store(
    made: str, used: str, at: At, object_server: ObjectStore, deletions: int
):
    """SIGKILL while the server holds back the answer to one deletion."""
    before = object_server.objects(used).keys()
    at("A")
    arguments = ("store", "gc", "--keep-runs", "1", "--store", used)
    command = [sys.executable, "-m", "tl_pipeline.cli", *arguments]
    assert killed(object_server, deletions, command, "DELETE")
    assert_whole(object_server, used)
    left = object_server.objects(used).keys()
    assert left < before
    assert len(before - left) >= deletions
    assert_there(object_server, made, used, "last")
    gc.collect(at("A"), ONE)
    assert unreached(at("D")) == []
    assert_there(object_server, made, used, "last")
    assert_whole(object_server, used)


def test_a_store_that_refuses_a_deletion_is_one_message_and_is_tried_again(
    used: str, at: At, object_server: ObjectStore, tmp_path: Path
):
    left = [3]

    def refuse(method: str, _: str) -> int | None:
        left[0] -= method == "DELETE"
        return 403 if left[0] < 0 else None

    object_server.before = refuse
    arguments = ("store", "gc", "--keep-runs", 1, "--json", "--store", used)
    said = tl(tmp_path / "A", *arguments, code=2)
    assert used in said.stderr
    assert "access denied" in said.stderr
    object_server.before = None
    assert_whole(object_server, used)
    gc.collect(at("A"), ONE)
    assert unreached(at("B")) == []


# Beside other machines


@pytest.mark.exhaustive  # the command removes: above
def test_an_old_mirror_neither_brings_back_nor_believes_in_what_was_removed(
    used: str, at: At, object_server: ObjectStore, photos: Path
):
    second = at("B")
    assert due(second, photos, "first") == []
    query.ask(second, "FROM embeddings")
    assert list(control(second, photos).path.glob("part-*"))
    assert query.ask(second, "FROM runs").num_rows == 2

    gc.collect(at("A"), ONE)
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


@pytest.mark.exhaustive  # damaged objects: test_mirror.py
def test_what_only_a_mirror_has_is_sent_again_by_the_run_that_uses_it(
    made: str, used: str, at: At, object_server: ObjectStore, photos: Path
):
    """Its record names what was collected since this machine fetched it."""
    assert due(at("B"), photos, "first") == []  # all is in its mirror
    gone = gc.collect(at("A"), ONE).garbage
    assert {"heads", "evaluations"} <= {g.item.kind for g in gone}
    record = run(at("B"), photos, "first")
    ran = {step.stage for step in record.steps if not step.cached}
    assert ran == {"embed"}  # parts that are gone there are gone here, too
    assert_there(object_server, made, used, "first")
    assert_whole(object_server, used)


def test_a_collection_beside_a_run_takes_nothing_that_it_uses(
    made: str, used: str, at: At, object_server: ObjectStore, photos: Path
):
    """It comes between the first look of the run and its record."""
    first, second = at("A"), at("B")
    write = runs.write

    def late(store: Store, record: RunRecord) -> Path:
        gc.collect(first, ONE)
        return write(store, record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "write", late)
        record = run(second, photos, "first")
    assert all(step.cached for step in record.steps)
    assert_there(object_server, made, used, "first")
    assert_whole(object_server, used)


@pytest.mark.usefixtures("used")
def test_readers_beside_a_collection_see_all_rows_of_what_stays(at: At, photos: Path):
    first, second = at("A"), at("B")
    (key,) = (e.key for e in work(second, photos, "last").encoders)
    expected = EmbeddingFolder(second, key).load(
        EmbeddingFolder(second, key).embedded()
    )
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
    gc.collect(first, ONE)
    done.set()
    reader.join()
    assert failed == []
    assert wrong == []

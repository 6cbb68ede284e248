"""``tl store`` on a real store: it removes waste, and nothing that anybody needs."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.conftest import REPOSITORY
from tl_pipeline import query
from tl_pipeline.cli import main
from tl_pipeline.errors import TransferLearningError
from tl_pipeline.maintenance import garbage
from tl_pipeline.maintenance.gc_roots import Retention
from tl_pipeline.runs import records as runs
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.files import set_aside
from tl_pipeline.store.keys import key_document

Tl = Callable[..., subprocess.CompletedProcess]
DAY = 86_400


def command(place: Path, *arguments: object) -> list[str]:
    return [
        *(sys.executable, "-m", "tl_pipeline.cli", *map(str, arguments)),
        *("--store", str(place)),
    ]


def call(place: Path, *arguments: object, code: int = 0) -> str:
    """What ``tl`` prints for ``arguments`` on the store at ``place``."""
    said, ended = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main.app(command(place, *arguments)[3:])
        except SystemExit as done:
            ended = done.code or 0
        except TransferLearningError as error:
            sys.stderr.write(f"{error}")
            ended = error.exit_code
    assert ended == code, said.getvalue()
    return said.getvalue()


def asked(place: Path, *arguments: object):
    """The JSON that ``tl`` prints, among what it says on standard error."""
    said = call(place, *arguments, "--json")
    start = min(said.index(c) for c in "[{" if c in said)
    return json.JSONDecoder().raw_decode(said[start:])[0]


RUNS = {
    "c5": ("--backbone", "lenet5", "--head", "logistic:C=1"),
    "f6": ("--backbone", "lenet5:layer=f6", "--head", "logistic:C=1", "--no-controls"),
    "poor": (
        *("--backbone", "lenet5:layer=f6", "--no-controls"),
        *("--head", "mlp:hidden=1,max_epochs=1,learning_rate=1e-9"),
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, crops) -> tuple[Path, Path]:
    """A store with three runs, the champion from the first; and its photos."""
    root = tmp_path_factory.mktemp("made")
    photos = root / "photos"
    for label in ("china", "flower"):
        (photos / label).mkdir(parents=True)
        for number in range(30):
            crops(label, number).save(photos / label / f"{number:03d}.jpg")
    for arguments in (RUNS["c5"], RUNS["f6"], RUNS["poor"]):
        call(root / "store", "run", photos, *arguments, "--runner", "direct")
    return root / "store", photos


@pytest.fixture
def used(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of that store, a week old, and the photos."""
    store, photos = made
    shutil.copytree(store, tmp_path / "store")
    age(tmp_path / "store", 7)
    query.build(Store.open(tmp_path / "store"))
    return tmp_path / "store", photos


def age(folder: Path, days: float) -> None:
    """Make everything in ``folder`` that many days old."""
    then = time.time() - days * DAY
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (then, then))


def content(store: Path) -> set[str]:
    """All files but what is disposable or rebuilt."""
    paths = (path.relative_to(store) for path in store.rglob("*") if path.is_file())
    disposable = {"memo", ".locks", "catalog.duckdb", "mlflow.db"}
    return {str(path) for path in paths if path.parts[0] not in disposable}


def test_show_counts_what_there_is_and_says_who_uses_it(used: tuple[Path, Path]):
    store, _ = used
    found = asked(store, "store", "show")
    kinds = {row["kind"]: row for row in found["kinds"]}
    for kind in ("heads", "evaluations", "manifests", "models"):
        folders = [p for p in (store / kind).iterdir() if p.name[0] != "."]
        assert kinds[kind]["count"] == len(folders)
        assert kinds[kind]["unused"] == 0
    files = sum(p.stat().st_size for p in (store / "heads").rglob("*") if p.is_file())
    assert kinds["heads"]["bytes"] == files
    assert kinds["runs"]["count"] == 3
    encoders = {row["encoder"]: row for row in found["encoders"]}
    champion = encoders["lenet5/c5 LETTERS"]
    assert (champion["images"], champion["refused"], champion["parts"]) == (60, 0, 1)
    assert "model photos version 1" in champion["used_by"]
    assert encoders["lenet5/c5 random:0"]["used_by"] == ["dataset photos"]
    text = call(store, "store", "show")
    assert "lenet5/c5 LETTERS" in text
    assert "unused" in text


def test_nothing_is_waste_while_all_runs_are_kept(used: tuple[Path, Path]):
    store, _ = used
    before = content(store)
    assert "0 files and folders, 0 B, removed" in call(store, "store", "gc")
    assert content(store) == before


def test_gc_removes_what_it_said_and_keeps_what_the_last_run_and_models_need(
    used: tuple[Path, Path],
):
    store, photos = used
    before = content(store)
    said = asked(store, "store", "gc", "--keep-runs", 1, "--dry-run")
    assert content(store) == before
    assert said["removed"] is False
    done = asked(store, "store", "gc", "--keep-runs", 1)
    assert done["waste"] == said["waste"]
    kinds = {row["kind"] for row in done["waste"]}
    assert {"run", "report", "heads", "evaluations", "embeddings"} <= kinds
    gone = [row["path"] for row in done["waste"]]
    assert not any((store / path).exists() for path in gone)
    assert sum(row["bytes"] for row in done["waste"]) > 10_000
    image = next((photos / "china").iterdir())
    (answer,) = asked(store, "predict", "photos", image)
    assert answer["label"] == "china"
    plan = asked(store, "plan", photos, *RUNS["poor"])
    assert [step["subject"] for step in plan if not step["cached"]] == []
    (count,) = asked(store, "sql", "SELECT count(*) AS n FROM runs")
    assert count["n"] == 1
    rows = asked(store, "sql", "SELECT encoder, count(*) n FROM embeddings GROUP BY 1")
    assert {r["encoder"]: r["n"] for r in rows} == {
        "lenet5/c5 LETTERS": 60,  # of the champion
        "lenet5/f6 LETTERS": 60,  # of the last run
    }
    again = asked(store, "store", "gc", "--keep-runs", 1, "--grace", 0)
    assert again["waste"] == []


def test_a_champion_of_no_kept_run_is_still_compared_with(used: tuple[Path, Path]):
    """The gate needs the predictions of the evaluation that the champion came from."""
    store, photos = used
    shutil.rmtree(store / "runs")
    call(store, "store", "gc", "--grace", 0)
    head = ("--backbone", "lenet5:layer=f6", "--head", "logistic:C=0.5")
    said = call(store, "run", photos, *head, "--no-controls", "--runner", "direct")
    assert "validation images in common with version" in said


def test_records_younger_than_asked_stay(used: tuple[Path, Path]):
    store, _ = used
    runs_kept = asked(store, "store", "gc", "--older-than", 1, "--dry-run")["waste"]
    assert runs_kept == []
    for record in sorted((store / "runs" / "photos").glob("*.json"))[:2]:
        text = json.loads(record.read_text())
        record.write_text(json.dumps({**text, "finished": "2020-01-01T00:00:00Z"}))
    found = asked(store, "store", "gc", "--older-than", 1, "--dry-run")["waste"]
    assert len([row for row in found if row["kind"] == "run"]) == 2
    found = asked(
        store, "store", "gc", "--older-than", 1, "--keep-runs", 3, "--dry-run"
    )
    assert found["waste"] == []


def test_what_is_young_or_was_used_lately_stays(used: tuple[Path, Path]):
    place, _ = used
    store = Store.open(place)
    records = sorted((place / "runs" / "photos").glob("*.json"))
    old = runs.RunRecord.model_validate_json(records[0].read_text())
    heads = [
        key for step in old.steps if step.stage == "train" for key in step.keys.values()
    ]
    fresh = store.build("heads", key_document("t", 1, {}, {}), lambda _: None)
    assert store.find("heads", heads[2])  # as a run under way does
    random = next(
        s.keys["encoder"]
        for s in old.steps
        if "random" in s.subject and s.stage == "embed"
    )
    EmbeddingFolder(store, random).embedded()
    found = garbage.find(store, Retention(keep_runs=1))
    waste = {item.path.name for item in found.waste}
    young = {item.path.name for item in found.young}
    assert young == {fresh.key, heads[2], f"encoder={random}"}
    assert heads[1] in waste
    garbage.collect(store, found.waste, 1)
    assert store.find("heads", heads[2])
    assert store.find("heads", heads[1]) is None


def test_what_comes_into_use_between_finding_and_removing_stays(
    used: tuple[Path, Path],
):
    store = Store.open(used[0])
    found = garbage.find(store, Retention(keep_runs=1))
    head = next(item for item in found.waste if item.kind == "heads")
    folder = next(item for item in found.waste if item.kind == "embeddings")
    assert store.find("heads", head.path.name)
    with store.lock(f"encoder-{folder.path.name.partition('=')[2]}"):
        done = garbage.collect(store, found.waste, 1)
    assert done.in_use == [head, folder]
    assert head.path.exists()
    assert folder.path.exists()


def test_leftovers_go_after_a_day(used: tuple[Path, Path]):
    place, _ = used
    store = Store.open(place)
    folder = next((place / "embeddings").iterdir())
    part = next(folder.glob("part-*"))
    plants = [
        place / ".building" / ("0" * 32) / "half.bin",
        folder / ".writing-1",
        place / "heads" / ".damaged-0-1" / "head.json",
        place / "memo" / f".encoders.json.{'0' * 32}",
        place / "runs" / "photos" / f".x.json.{'0' * 32}",
    ]
    for path in plants:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    set_aside(shutil.copyfile(part, folder / "part-x.parquet"), "a test")
    assert garbage.find(store).waste == []
    assert len(garbage.find(store).young) == 6
    said = call(place, "store", "show")
    assert "set aside because damaged" in said
    assert "a test" in said
    assert "tl store gc --dry-run" in said
    said = call(place, "store", "gc")
    assert "6 more" in said
    assert "--grace 1 days" in said
    assert len(asked(place, "store", "gc", "--dry-run")["stay"]) == 6
    call(place, "store", "gc", "--grace", 0)
    assert not any(path.exists() for path in plants)
    assert list(place.rglob(".damaged-*")) == list(place.rglob(".why-*")) == []
    assert part.exists()


def test_a_gc_killed_at_any_step_is_finished_by_the_next(
    used: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    place, photos = used
    store = Store.open(place)

    class Killed(Exception):
        pass

    rename = Path.rename
    total = len(garbage.find(store, Retention(keep_runs=1)).waste)
    steps = 0
    while steps < total:
        left = [3]

        def dying(path: Path, target: Path, left: list[int] = left) -> Path:
            if path.is_relative_to(place) and ".trash" in str(target):
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
            return rename(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", dying)
            found = garbage.find(store, Retention(keep_runs=1))
            with pytest.raises(Killed):
                garbage.collect(store, found.waste, 1)
        steps += 3
        for kind in garbage.ARTIFACTS:
            for folder in (place / kind).glob("[!.]*/"):
                assert (folder / "provenance.json").exists()
        if len(garbage.find(store, Retention(keep_runs=1)).waste) <= 3:
            break
    found = garbage.find(store, Retention(keep_runs=1))
    garbage.collect(store, found.waste, 1)
    assert not (place / ".trash").exists()
    plan = asked(place, "plan", photos, *RUNS["poor"])
    assert all(step["cached"] for step in plan)
    (count,) = asked(place, "sql", "SELECT count(*) AS n FROM runs")
    assert count["n"] == 1


def test_a_reader_beside_gc_and_compact_sees_all_rows(used: tuple[Path, Path]):
    place, _ = used
    store = Store.open(place)
    last = runs.latest(store, "photos")
    assert last
    key = next(s.keys["encoder"] for s in last.steps if s.stage == "embed")
    folder = EmbeddingFolder(store, key)
    ids = sorted(folder.embedded())
    expected = folder.load(ids).vectors.copy()
    for file in folder.path.glob("part-*"):
        file.unlink()
    for start in range(0, 60, 2):
        folder.add(ids[start : start + 2], expected[start : start + 2])
    wrong, done = [], threading.Event()

    def read() -> None:
        while not done.is_set():
            found = EmbeddingFolder(store, key).load(ids)
            if not np.array_equal(found.vectors, expected):
                wrong.append(len(found.image_ids))

    reader = threading.Thread(target=read)
    reader.start()
    call(place, "store", "gc", "--keep-runs", 1, "--grace", 0)
    said = call(place, "store", "compact", "--encoder", key[:8], "--rows", 20)
    call(place, "store", "compact")
    done.set()
    reader.join()
    assert wrong == []
    assert "lenet5/f6 LETTERS" in said
    (row,) = [r for r in asked(place, "store", "compact") if r["encoder_key"] == key]
    assert row["parts_before"] == row["parts_after"] == 1
    rows = asked(place, "sql", "SELECT count(*) n FROM embeddings GROUP BY encoder")
    assert {r["n"] for r in rows} == {60}


def test_the_view_of_embeddings_shows_a_doubled_row_once(used: tuple[Path, Path]):
    place, _ = used
    store = Store.open(place)
    folder = EmbeddingFolder(store, reach_encoder(store))
    ids = sorted(folder.embedded())
    folder.add(ids[:3], folder.load(ids[:3]).vectors)  # as another machine does
    files = folder.path.glob("part-*")
    assert sum(pq.read_metadata(file).num_rows for file in files) == 63
    query.build(store)
    counts = "SELECT count(*) n FROM embeddings GROUP BY encoder_key"
    assert {row["n"] for row in asked(place, "sql", counts)} == {60}
    (doubled,) = asked(place, "sql", "SELECT count(*) n FROM doubled_embeddings")
    assert doubled["n"] == 3


def reach_encoder(store: Store) -> str:
    """The key of the encoder of the last run."""
    last = runs.latest(store, "photos")
    assert last
    return next(s.keys["encoder"] for s in last.steps if s.stage == "embed")


def test_damage_is_set_aside_and_computed_anew_in_the_same_run(
    used: tuple[Path, Path],
):
    place, photos = used
    folder = EmbeddingFolder(Store.open(place), reach_encoder(Store.open(place)))
    (part,) = folder.path.glob("part-*")
    before = part.read_bytes()
    data = bytearray(before)
    data[len(data) // 2] ^= 0x10
    part.write_bytes(data)
    said = call(place, "run", photos, *RUNS["poor"], "--runner", "direct")
    assert "the part files of 60 images are gone or damaged" in said
    assert len(folder.embedded()) == 60
    (aside,) = folder.path.glob(".damaged-*")
    assert aside.read_bytes() == bytes(data)
    said = call(place, "store", "show")
    assert "CRC" in said


def test_two_runs_at_once_on_one_store_lose_and_double_nothing(
    made: tuple[Path, Path], tmp_path: Path
):
    _, photos = made
    place = tmp_path / "store"
    arguments = ("run", photos, "--backbone", "lenet5", "--head", "logistic:C=1")
    options = ("--part-rows", 7, "--runner", "direct", "--json")
    both = [
        subprocess.Popen(
            command(place, *arguments, *options),
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
        )
        for _ in range(2)
    ]
    records = [json.loads(process.communicate(timeout=240)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert records[0]["results"] == records[1]["results"]
    counts = (
        "SELECT count(*) n, count(DISTINCT image_id) d FROM embeddings GROUP BY encoder"
    )
    assert asked(place, "sql", counts) == [{"n": 60, "d": 60}] * 2
    alone = tmp_path / "alone"
    call(alone, *arguments, "--part-rows", 7, "--runner", "direct")
    for folder in (alone / "embeddings").iterdir():
        key = folder.name.partition("=")[2]
        one, two = (EmbeddingFolder(Store.open(s), key) for s in (alone, place))
        ids = one.embedded()
        assert np.array_equal(one.load(ids).vectors, two.load(ids).vectors)


@pytest.mark.parametrize("arguments", [("show",), ("gc",), ("compact",)])
def test_a_folder_that_is_no_store_is_refused(tmp_path: Path, arguments):
    said = call(tmp_path / "none", "store", *arguments, code=2)
    assert "is no store yet" in said
    assert not (tmp_path / "none").exists()


def test_an_encoder_that_is_not_there_is_refused(used: tuple[Path, Path]):
    said = call(used[0], "store", "compact", "--encoder", "nobody", code=2)
    assert "unknown encoder key 'nobody'" in said

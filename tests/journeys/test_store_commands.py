"""``tl store`` on a real store: it removes garbage, and nothing that anybody needs."""

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
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import REPOSITORY
from tests.exhaustive import more
from tl_pipeline import query
from tl_pipeline.cli import main
from tl_pipeline.errors import TransferLearningError
from tl_pipeline.maintenance import gc
from tl_pipeline.maintenance.gc_roots import RunPolicy
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
def made(tmp_path_factory, sixty_photos: Path) -> tuple[Path, Path]:
    """A store with three runs, the champion from the first; and its photos."""
    store = tmp_path_factory.mktemp("made") / "store"
    for arguments in (RUNS["c5"], RUNS["f6"], RUNS["poor"]):
        call(store, "run", sixty_photos, *arguments, "--runner", "direct")
    return store, sixty_photos


@pytest.fixture
def used(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of that store, a week old, and the photos."""
    store, photos = made
    shutil.copytree(store, tmp_path / "store")
    age(tmp_path / "store", 7)
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


def test_nothing_is_garbage_while_all_runs_are_kept(used: tuple[Path, Path]):
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
    assert done["garbage"] == said["garbage"]
    kinds = {row["kind"] for row in done["garbage"]}
    assert {"runs", "reports", "heads", "evaluations", "embeddings"} <= kinds
    gone = [row["path"] for row in done["garbage"]]
    assert not any((store / path).exists() for path in gone)
    assert sum(row["bytes"] for row in done["garbage"]) > 10_000
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
    again = asked(store, "store", "gc", "--keep-runs", 1, "--retention", 0)
    assert again["garbage"] == []


def test_a_champion_of_no_kept_run_is_still_compared_with(used: tuple[Path, Path]):
    """The gate needs the predictions of the evaluation that the champion came from."""
    store, photos = used
    shutil.rmtree(store / "runs")
    call(store, "store", "gc", "--retention", 0)
    head = ("--backbone", "lenet5:layer=f6", "--head", "logistic:C=0.5")
    said = call(store, "run", photos, *head, "--no-controls", "--runner", "direct")
    assert "held-out images in common with version" in said


def test_records_younger_than_asked_stay(used: tuple[Path, Path]):
    store, _ = used
    runs_kept = asked(store, "store", "gc", "--older-than", 1, "--dry-run")["garbage"]
    assert runs_kept == []
    for record in sorted((store / "runs" / "photos").glob("*.json"))[:2]:
        text = json.loads(record.read_text())
        record.write_text(json.dumps({**text, "finished": "2020-01-01T00:00:00Z"}))
    found = asked(store, "store", "gc", "--older-than", 1, "--dry-run")["garbage"]
    assert len([row for row in found if row["kind"] == "runs"]) == 2
    found = asked(
        store, "store", "gc", "--older-than", 1, "--keep-runs", 3, "--dry-run"
    )
    assert found["garbage"] == []


def test_what_is_young_or_used_by_a_run_under_way_stays(used: tuple[Path, Path]):
    place, _ = used
    store = Store.open(place)
    records = sorted((place / "runs" / "photos").glob("*.json"))
    old = runs.RunRecord.model_validate_json(records[0].read_text())
    heads = [step.keys["fitted"] for step in old.steps if step.stage == "train"]
    random = next(
        s.keys["encoder"]
        for s in old.steps
        if "random" in s.subject and s.stage == "embed"
    )
    fresh = store.build("heads", key_document("t", 1, {}, {}), lambda _: None)
    with store.in_use([random]):  # as a run does when it begins
        assert store.find("heads", heads[2])
        collected = gc.collect(Store.open(place), RunPolicy(keep_runs=1))
    assert [g.item.key for g in collected.stays] == [fresh.key]
    gone = {g.item.key for g in collected.garbage}
    assert heads[1] in gone
    assert not gone & {heads[2], random}
    assert store.find("heads", heads[2])
    assert store.find("heads", heads[1]) is None
    assert list((place / "in_use").iterdir()) == []
    gone = {g.item.key for g in gc.collect(store, RunPolicy(keep_runs=1)).garbage}
    assert gone >= {heads[2], random}


def test_what_a_dead_run_names_stays_as_long_as_the_retention(
    used: tuple[Path, Path],
):
    store = Store.open(used[0])
    head = next(
        g.item for g in gc.find(store, RunPolicy(1)).garbage if g.item.kind == "heads"
    )
    with contextlib.suppress(ZeroDivisionError), store.in_use([head.key]):
        left = shutil.copytree(store.root / "in_use", store.root / "left")
        raise ZeroDivisionError
    assert list((store.root / "in_use").iterdir()) == []
    shutil.rmtree(store.root / "in_use")
    left.rename(store.root / "in_use")  # as a kill leaves it
    age(store.root / "in_use", 6)
    assert head.key not in {g.item.key for g in gc.find(store, RunPolicy(1)).garbage}
    age(store.root / "in_use", 2)
    assert head.key in {g.item.key for g in gc.find(store, RunPolicy(1), 1).garbage}
    age(store.root / "in_use", 8)
    found = {g.item.path.name: g.why for g in gc.find(store, RunPolicy(1)).garbage}
    (file,) = (store.root / "in_use").iterdir()
    assert found[file.name] == "its run died"
    assert head.key in found


def test_a_run_and_a_collection_on_one_machine_wait_for_each_other(
    used: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    """Whichever comes first: nothing that the run finds goes afterwards."""
    store = Store.open(used[0])
    head = next(
        g.item for g in gc.find(store, RunPolicy(1)).garbage if g.item.kind == "heads"
    )
    found: list[object] = []

    def run() -> None:
        other = Store.open(store.root)
        with other.in_use([]):
            found.append(other.find("heads", head.key))

    with store.lock("gc"):  # as a collection does that has read the roots
        run_thread = threading.Thread(target=run)
        run_thread.start()
        run_thread.join(0.5)
        assert run_thread.is_alive()
        shutil.rmtree(head.path)
    run_thread.join()
    assert found == [None]
    assert "waiting for tl store gc to end" in capsys.readouterr().err


@pytest.mark.parametrize("study", ["rank", *more("few-shot")])
def test_a_study_under_way_keeps_its_embeddings(
    used: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, study: str
):
    """A collection comes after it began; the record of its encoder is dropped."""
    place, photos = used
    random = "lenet5:weights=random:0"
    keys = {e["encoder_key"]: e for e in asked(place, "store", "show")["encoders"]}
    (key,) = [k for k, e in keys.items() if e["encoder"] == "lenet5/c5 random:0"]
    seen: list[set[str]] = []
    embedded = EmbeddingFolder.embedded_ids

    def collected_first(folder: EmbeddingFolder) -> pa.ChunkedArray:
        if not seen:
            found = gc.collect(Store.open(place), RunPolicy(keep_runs=1)).garbage
            seen.append({g.item.key for g in found})
        return embedded(folder)

    monkeypatch.setattr(EmbeddingFolder, "embedded_ids", collected_first)
    call(place, study, photos, "--backbone", random)
    assert len(seen[0]) > 5
    assert key not in seen[0]
    assert key in {g.item.key for g in gc.find(Store.open(place), RunPolicy(1)).garbage}


def test_embeddings_that_are_being_written_stay(used: tuple[Path, Path]):
    store = Store.open(used[0])
    found = gc.find(store, RunPolicy(keep_runs=1)).garbage
    item = next(g.item for g in found if g.item.kind == "embeddings")
    with store.lock(f"encoder-{item.key}"):
        done = gc.collect(store, RunPolicy(keep_runs=1))
    assert [g.item.path for g in done.stays] == [item.path]
    assert item.path.exists()


def test_weights_go_with_the_last_encoder_and_model_that_name_them(
    used: tuple[Path, Path],
):
    store = Store.open(used[0])
    (kept,) = (store.root / "weights").iterdir()  # those of LeNet-5
    other = store.root / "weights" / ("0" * 64)
    other.write_bytes(b"nobody names it")
    age(other.parent, 8)
    assert [g.item.path for g in gc.find(store).garbage] == [other]
    gc.collect(store, RunPolicy(keep_runs=1))
    assert list((store.root / "weights").iterdir()) == [kept]
    for folder in ("runs", "registry", "mlflow.db"):
        path = store.root / folder
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    gc.collect(store)
    assert list((store.root / "weights").iterdir()) == []


def test_leftovers_go_after_the_retention(used: tuple[Path, Path]):
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
    assert gc.find(store).garbage == []
    assert len(gc.find(store).stays) == 6
    said = call(place, "store", "show")
    assert "set aside because damaged" in said
    assert "a test" in said
    assert "tl store gc --dry-run" in said
    said = call(place, "store", "gc")
    assert "6 more" in said
    assert "--retention 7 days" in said
    assert len(asked(place, "store", "gc", "--dry-run")["stay"]) == 6
    call(place, "store", "gc", "--retention", 0)
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
    total = len(gc.find(store, RunPolicy(keep_runs=1)).garbage)
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
            with pytest.raises(Killed):
                gc.collect(store, RunPolicy(keep_runs=1))
        steps += 3
        for kind in gc.ARTIFACTS:
            for folder in (place / kind).glob("[!.]*/"):
                assert (folder / "provenance.json").exists()
        if len(gc.find(store, RunPolicy(keep_runs=1)).garbage) <= 3:
            break
    gc.collect(store, RunPolicy(keep_runs=1))
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
    call(place, "store", "gc", "--keep-runs", 1, "--retention", 0)
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


def test_predictions_with_400_flipped_bytes_are_found_and_made_again(
    used: tuple[Path, Path],
):
    place, photos = used
    (champion,) = asked(place, "models")[-1:]
    best = json.loads(Path(champion["folder"], "model.json").read_text())["evaluation"]
    file = place / "evaluations" / best / "predictions.parquet"
    before = file.read_bytes()
    rows = pq.read_table(file)
    data = bytearray(before)
    middle = len(data) // 2 - 200
    data[middle : middle + 400] = bytes(
        byte ^ 0xFF for byte in data[middle : middle + 400]
    )
    file.write_bytes(data)
    plan = asked(place, "plan", photos, *RUNS["c5"])
    due = [s["subject"] for s in plan if not s["cached"] and s["stage"] == "evaluate"]
    assert due == ["logistic on lenet5/c5 LETTERS"]
    said = call(place, "run", photos, *RUNS["c5"], "--runner", "direct")
    (aside,) = (place / "evaluations").glob(".damaged-*")
    assert f"set aside as {aside.name}" in said
    assert pq.read_table(file) == rows
    assert "a file is missing or not as" in call(place, "store", "show")


def test_verify_reads_all_and_sets_aside_what_is_damaged(used: tuple[Path, Path]):
    place, photos = used
    assert "are whole" in call(place, "store", "verify")
    head = next((place / "heads").glob("[!.]*/"))
    (weights,) = (place / "weights").iterdir()
    part = next((place / "embeddings").glob("encoder=*/part-*.parquet"))
    files = [max(head.iterdir(), key=lambda f: f.stat().st_size), weights, part]
    for file in files:
        stat, data = file.stat(), bytearray(file.read_bytes())
        data[len(data) // 2] ^= 0x10
        file.write_bytes(data)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    said = call(place, "store", "verify", code=2)
    assert "3 damaged, set aside" in said
    for path in (head, weights, part):
        assert str(path.relative_to(place)) in said
        assert not path.exists()
    assert "are whole" in call(place, "store", "verify")
    for arguments in RUNS.values():
        call(place, "run", photos, *arguments, "--runner", "direct")
    assert weights.exists()
    assert part.exists()
    assert head.exists()


@pytest.mark.parametrize("text", ["", '{"host": "h", "keys": ['])
def test_what_a_power_cut_left_of_a_run_under_way_stops_no_collection(
    used: tuple[Path, Path], text: str
):
    place, _ = used
    (place / "in_use").mkdir(exist_ok=True)
    (place / "in_use" / f"{'0' * 32}-0.json").write_text(text)
    (place / "runs" / "photos" / "00000000T000000000-000000.json").write_text(text)
    found = asked(
        place, "store", "gc", "--keep-runs", 1, "--older-than", 1, "--dry-run"
    )
    assert [row for row in found["garbage"] if row["kind"] == "in_use"] == []


@pytest.mark.exhaustive  # two that end at once: test_catalogue.py
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

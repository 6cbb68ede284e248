"""The SQL catalogue: what its views say, and that they follow the store."""

import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import duckdb
import pytest

from tests.query.made import (
    EVALUATION,
    FIRST,
    SECOND,
    ask,
    count,
    described,
    image_id,
    images,
    scores,
)
from tests.runs.made import STARTED, record, result
from tl_pipeline import progress, query
from tl_pipeline.data.split_report import SplitChange, SplitReport, SplitSize
from tl_pipeline.errors import InvalidSpec, StoreError
from tl_pipeline.runs import records
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.tables import (
    METRICS,
)

VIEWS = "SELECT name, comment FROM help() WHERE kind = 'view'"


@pytest.fixture
def built(store: Store) -> Store:
    """A store of one run on three images, with its catalogue."""
    return with_catalogue(store)


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The same, for tests that only read it."""
    store = Store.open(tmp_path_factory.mktemp("still") / "store")
    store.create()
    return with_catalogue(store)


def with_catalogue(store: Store) -> Store:
    images(store, 3)
    records.write(store, record(FIRST))
    query.build(store)
    return store


def test_a_run_is_told_from_its_record(still: Store):
    """Times are UTC and plain: ``fetchall`` needs no package for time zones."""
    with query.connect(still) as connection:
        rows = connection.execute(
            "SELECT started, finished, seconds, images, quarantined, duplicates, "
            "best_encoder, best_encoder_key, best_head, test_accuracy, "
            "gain_by_transfer FROM runs"
        ).fetchall()
    assert rows == [
        (
            STARTED.replace(tzinfo=None),
            STARTED.replace(tzinfo=None) + timedelta(seconds=90),
            90.0,
            20,
            1,
            2,
            "lenet5/c5 LETTERS",
            "e" * 32,
            "logistic(C=1.0)",
            0.7,
            0.25,
        )
    ]


def test_stages_and_timings_are_told_from_the_record(still: Store):
    assert ask(still, "SELECT stage, cached, seconds FROM stages") == [
        {"stage": "embed", "cached": False, "seconds": 2.5}
    ]
    (row,) = ask(still, "FROM timings")
    step = record(FIRST).steps[0]
    assert step.timings is not None
    assert row["bottleneck"] == step.timings.bottleneck == "decoding"
    assert (row["images"], row["decode"], row["elapsed"]) == (20, 3.0, 4.0)


def test_splits_are_told_from_the_record(store: Store):
    report = SplitReport(
        splits={
            "train": SplitSize(images=8, share=0.8),
            "validation": SplitSize(images=0, share=0.0),
            "test": SplitSize(images=2, share=0.2, groups=1, distance=0.5),
        },
        classes={"a 'b\".c": (6, 0, 1), "d": (2, 0, 1)},
        since={
            "train": SplitChange(entered=2, left=1),
            "validation": SplitChange(),
            "test": SplitChange(came_from={"train": 2, "validation": 3}, relabelled=4),
        },
    )
    records.write(store, record(FIRST, split_report=report))
    (train, empty, test) = ask(
        store, "FROM splits ORDER BY split = 'test', split <> 'train'"
    )
    assert (train["images"], train["entered"], train["removed"]) == (8, 2, 1)
    assert (train["moved_in"], train["groups"], empty["images"]) == (0, None, 0)
    assert (test["moved_in"], test["relabelled"]) == (5, 4)
    assert (test["groups"], test["distance_from_train"]) == (1, 0.5)
    counted = ask(store, "SELECT label, split, images, share FROM class_counts")
    found = [(r["label"], r["split"], r["images"], r["share"]) for r in counted]
    assert sorted(found) == sorted(report.shares())


def test_an_evaluation_that_a_record_lists_twice_counts_once(store: Store):
    """As versions wrote it for an encoder that was named twice."""
    images(store, 3)
    twice = [result(EVALUATION), result(EVALUATION)]
    records.write(store, record(FIRST, results=twice))
    counts = [count(store, view) for view in ("metrics", "predictions", "runs")]
    assert counts == [1, 3, 1]


def test_every_table_with_an_encoder_tells_its_key_and_whether_it_is_a_control(
    still: Store,
):
    columns = ask(
        still,
        "SELECT table_name AS t, list(column_name) AS c FROM duckdb_columns() "
        "WHERE NOT internal GROUP BY t",
    )
    of = {row["t"]: set(row["c"]) for row in columns if "encoder" in row["c"]}
    assert of.keys() >= {"metrics", "predictions", "embeddings", "models", "timings"}
    assert [t for t, c in of.items() if {"encoder_key", "control"} - c] == []


def test_a_control_is_told_from_a_candidate(store: Store):
    images(store, 3)
    scores(store, "d" * 32, ["0" * 32])
    found = [
        result(EVALUATION, untrained="d" * 32),
        result("d" * 32, "control", encoder_key="f" * 32),
    ]
    records.write(store, record(FIRST, results=found))
    rows = ask(store, "SELECT evaluation, control, untrained FROM run_evaluations")
    assert {r["evaluation"]: (r["control"], r["untrained"]) for r in rows} == {
        EVALUATION: (False, "d" * 32),
        "d" * 32: (True, None),
    }
    assert count(store, "metrics WHERE NOT control") == 1


def test_two_encoders_of_one_weights_name_are_two_in_every_view(store: Store):
    keys = [described(store, letter * 64) for letter in "ab"]
    label = "lenet5/c5 same.pth"
    both = [EVALUATION, "d" * 32]
    for evaluation, key in zip(both, keys, strict=True):
        scores(store, evaluation, ["0" * 32], key)
    found = [
        result(evaluation, role, encoder=label, encoder_key=key)
        for evaluation, role, key in zip(both, ("best", "candidate"), keys, strict=True)
    ]
    records.write(store, record(FIRST, results=found))
    names = {key: f"{label} #{key[:6]}" for key in keys}
    for view in ("encoders", "run_evaluations", "metrics", "predictions"):
        rows = ask(store, f"SELECT DISTINCT encoder_key, encoder FROM {view}")
        assert {row["encoder_key"]: row["encoder"] for row in rows} == names
    (run,) = ask(store, "SELECT best_encoder FROM runs")
    assert run["best_encoder"] == names[keys[0]]


def test_a_copied_store_reads_its_own_rows(built: Store, tmp_path: Path):
    """Also when the original is gone on, and when it is no more."""
    copy = tmp_path / "copy"
    shutil.copytree(built.root, copy)
    images(built, 5)
    query.build(built)
    counts = [count(Store.open(at), "images") for at in (built.root, copy)]
    assert counts == [5, 3]
    shutil.rmtree(built.root)
    assert count(Store.open(copy), "predictions") == 3


def test_a_copy_that_any_duckdb_opens_never_reads_the_original(
    built: Store, tmp_path: Path
):
    copy = tmp_path / "copy"
    shutil.copytree(built.root, copy)
    for view in ("images", "metrics", "predictions", "runs", "classes", "changes"):
        with (
            duckdb.connect(copy / "catalog.duckdb", read_only=True) as reader,
            pytest.raises(duckdb.Error, match="tl sql --store FOLDER"),
        ):
            reader.sql(f"SELECT * FROM {view}").fetchall()
    assert count(Store.open(copy), "images") == 3
    with duckdb.connect(copy / "catalog.duckdb", read_only=True) as reader:
        assert len(reader.sql("FROM images").fetchall()) == 3
    with duckdb.connect() as other:
        other.execute(f"ATTACH '{copy / 'catalog.duckdb'}' AS c (READ_ONLY)")
        assert len(other.sql("FROM c.images").fetchall()) == 3


def test_a_moved_store_is_read_where_it_is(built: Store, tmp_path: Path):
    moved = tmp_path / "moved"
    built.root.rename(moved)
    assert count(Store.open(moved), "images") == 3


def test_a_store_that_cannot_be_written_to_is_read(
    built: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A copy on a medium that is only read: nothing is built in it."""
    copy = tmp_path / "copy"
    shutil.copytree(built.root, copy)
    before = (copy / "catalog.duckdb").read_bytes()

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Store, "lock", refuse)
    assert count(Store.open(copy), "images") == 3
    assert (copy / "catalog.duckdb").read_bytes() == before


def test_a_run_that_ended_while_another_built_is_there(built: Store):
    """The catalogue is behind its records: whoever asks builds it anew."""
    records.write(built, record(SECOND, "others"))
    found = ask(built, "SELECT dataset FROM runs ORDER BY run_id")
    assert [row["dataset"] for row in found] == ["photos", "others"]


WRITER = """
import sys, time
from pathlib import Path
from tests.runs.made import STARTED, record
from tl_pipeline import query
from tl_pipeline.query import catalogue
from tl_pipeline.runs import records
from tl_pipeline.store.artifacts import Store

run_id, dataset, slow = sys.argv[2:]
store = Store.open(sys.argv[1])
records.write(store, record(run_id, dataset))
write = catalogue._write

def slowly(*told):
    write(*told)
    Path(store.root, "read").touch()
    while slow == "slow" and not Path(store.root, "asked").exists():
        time.sleep(0.01)

catalogue._write = slowly
if slow == "quick":
    Path(store.root, "asked").touch()
query.build(store)
"""


def test_of_two_runs_that_end_together_none_is_lost(built: Store):
    """The first has read the records and is slow; the second must wait for it."""

    def start(run_id: str, dataset: str, how: str) -> subprocess.Popen[bytes]:
        told = [sys.executable, "-c", WRITER, built.root, run_id, dataset, how]
        return subprocess.Popen(told)

    first = start(SECOND, "slow", "slow")
    while not (built.root / "read").exists() and first.poll() is None:
        time.sleep(0.01)
    second = start("20260103T000000000-000003", "quick", "quick")
    assert (first.wait(300), second.wait(300)) == (0, 0)
    # what the file itself says, with no chance for us to build it anew
    with duckdb.connect(built.root / "catalog.duckdb", read_only=True) as reader:
        found = reader.sql("SELECT dataset FROM datasets").fetchall()
    assert {name for (name,) in found} == {"photos", "slow", "quick"}


KILLED = """
import duckdb, os, sys
shell = duckdb.connect(sys.argv[1])
shell.execute(sys.argv[2])
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("rebuilt", [True, False])
@pytest.mark.parametrize(
    "sql", ["INSERT INTO notes VALUES ('y')", "UPDATE datasets SET dataset = 'wrong'"]
)
def test_the_log_of_a_killed_shell_changes_nothing(
    built: Store, sql: str, *, rebuilt: bool
):
    file = built.root / "catalog.duckdb"
    with duckdb.connect(file) as shell:
        shell.execute("CREATE TABLE notes AS SELECT 'x' AS a")
    killed = subprocess.run([sys.executable, "-c", KILLED, file, sql], check=False)
    assert killed.returncode == -signal.SIGKILL
    log = file.with_name("catalog.duckdb.wal")
    assert log.exists()
    if rebuilt:
        records.write(built, record(SECOND))
        query.build(built)
        assert not log.exists()
    assert ask(built, "SELECT dataset FROM datasets") == [{"dataset": "photos"}]
    assert not log.exists()
    with duckdb.connect(file, read_only=True) as reader:
        assert reader.sql("SELECT dataset FROM datasets").fetchall() == [("photos",)]


def test_a_shell_that_holds_the_lock_is_one_message(still: Store):
    file = still.root / "catalog.duckdb"
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print(1, flush=True); "
    shell = subprocess.Popen(
        [sys.executable, "-c", f"{code}sys.stdin.read()", file],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert shell.stdout
        shell.stdout.readline()
        with pytest.raises(StoreError, match="close that shell") as said:
            query.ask(still, "FROM runs")
        assert f"process {shell.pid} has {file} open" in str(said.value)
        assert said.value.exit_code == 2
        assert "\n" not in str(said.value)
    finally:
        shell.communicate()


@pytest.mark.parametrize("damage", [b"", b"\0" * 64, b"{", b"\xff\xfe"])
def test_a_record_that_cannot_be_read_is_left_out(
    built: Store, damage: bytes, monkeypatch: pytest.MonkeyPatch
):
    said: list[str] = []
    monkeypatch.setattr(progress, "notice", said.append)
    bad = built.root / "runs" / "photos" / f"{SECOND}.json"
    bad.write_bytes(damage)
    assert [row["run_id"] for row in ask(built, "FROM runs")] == [FIRST]
    assert f"left {bad} out of the SQL catalogue: no run record" in said


@pytest.mark.parametrize("left", [0, 3, 100])
def test_a_truncated_table_costs_its_own_rows(built: Store, left: int):
    scores(built, "d" * 32, ["0" * 32])
    found = [result(EVALUATION), result("d" * 32, "candidate")]
    records.write(built, record(SECOND, results=found))
    assert [count(built, v) for v in ("metrics", "metrics_history")] == [2, 3]
    file = built.root / "evaluations" / ("d" * 32) / METRICS.file
    file.write_bytes(file.read_bytes()[:left])
    query.build(built)
    assert [count(built, v) for v in ("metrics", "metrics_history")] == [1, 2]


def test_what_is_built_on_the_one_before_is_what_is_built_anew(built: Store):
    """Only what changed is made again: every column, comment and row is the same."""
    described(built, "a" * 64)
    scores(built, "d" * 32, [image_id(0)], said="y")
    found = [result(EVALUATION), result("d" * 32, "candidate")]
    records.write(built, record(SECOND, results=found))
    file = built.root / "catalog.duckdb"
    told = []
    for _ in range(2):
        query.build(built)
        views = [row["name"] for row in ask(built, VIEWS)]
        told.append(
            [
                ask(built, "FROM help()"),
                *(ask(built, f"FROM {v} ORDER BY ALL") for v in views),
            ]
        )
        file.unlink()
    assert told[0] == told[1]


def test_a_catalogue_does_not_grow_by_being_built_again(built: Store):
    sizes = set()
    for _ in range(8):
        query.build(built)
        sizes.add((built.root / "catalog.duckdb").stat().st_size)
    assert len(sizes) <= 2


@pytest.mark.parametrize("damage", [slice(0, 100), slice(4096, 12_000), slice(0, None)])
def test_a_damaged_catalogue_is_built_anew(built: Store, damage: slice):
    file = built.root / "catalog.duckdb"
    content = bytearray(file.read_bytes())
    content[damage] = b"\xff" * len(content[damage])
    file.write_bytes(content)
    query.build(built)
    assert count(built, "images") == 3


def test_views_without_files_have_their_columns_and_no_rows(store: Store):
    """A record stays when its artifacts were removed."""
    records.write(store, record(FIRST))
    names = [row["name"] for row in ask(store, VIEWS)]
    empty = {name for name in names if count(store, name) == 0}
    assert {"images", "metrics", "predictions", "embeddings", "searches"} <= empty
    assert count(store, "runs") == 1
    assert ask(store, "SELECT uri, label, split FROM images") == []


def test_every_view_says_what_one_row_is(still: Store):
    rows = ask(still, VIEWS)
    assert {
        "images",
        "embeddings",
        "predictions",
        "metrics",
        "models",
        "quarantine",
    } <= {row["name"] for row in rows}
    assert all(row["comment"].startswith("One row per") for row in rows)


def test_a_reader_keeps_what_it_has_open(built: Store):
    with query.connect(built) as reader:
        records.write(built, record(SECOND))
        query.build(built)
        assert reader.sql("SELECT count(*) FROM runs").fetchall() == [(1,)]
    assert count(built, "runs") == 2
    assert not list(built.root.glob(".catalog*"))


def test_an_older_storage_format_is_written(still: Store):
    """So that a DuckDB on an analyst's laptop need not be the newest."""
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{still.root / 'catalog.duckdb'}' AS c (READ_ONLY)")
        tags = connection.sql(
            "SELECT tags FROM duckdb_databases() WHERE database_name = 'c'"
        ).fetchall()
    assert "v1.0.0" in str(tags)


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELEC 1", "syntax error"),
        ("FROM nowhere", "nowhere does not exist"),
        ("CREATE TABLE t AS SELECT 1", "CREATE is refused"),
        ("SELECT 'x'::INT", "Could not convert"),
        ("-- only a remark", "gives no rows"),
    ],
)
def test_wrong_queries_are_one_clear_error(still: Store, sql: str, said: str):
    with pytest.raises(InvalidSpec, match=said):
        query.ask(still, sql)


def test_no_run_no_catalogue(store: Store):
    with pytest.raises(StoreError, match="`tl run DATASET` builds it"):
        query.ask(store, "SELECT 1")

"""What ``tl sql`` may do, and how it writes what it found."""

import csv
import io
import json
import sys
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from tests.query.made import EVALUATION, FIRST, ask, image_id, manifest, scores
from tests.runs.made import record
from tl_pipeline import query
from tl_pipeline.cli import sql_shell
from tl_pipeline.cli.row_formats import Format
from tl_pipeline.cli.sql_command import sql
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.runs import records
from tl_pipeline.store.artifacts import Store

A, B = image_id(0), image_id(1)
URIS = {A: 'it\'s "a",\n|ü.png', B: "b\\.png"}


@pytest.fixture
def built(store: Store) -> Store:
    manifest(store, "a" * 32, [(i, uri, "x", "test") for i, uri in URIS.items()])
    scores(store, EVALUATION, list(URIS))
    records.write(store, record(FIRST))
    query.build(store)
    return store


def files(store: Store) -> list[Path]:
    return sorted(store.root.rglob("*"))


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("FROM read_text('{outside}')", "Cannot access file"),
        ("FROM read_text('{root}/../outside.csv')", "Cannot access file"),
        ("FROM '{outside}'", "Cannot access file"),
        ("FROM glob('{outside}')", "Cannot access file"),
        ("FROM '{root}2/x.csv'", "Cannot access file"),
        ("FROM read_text('https://example.invalid/x')", "Cannot access file"),
        ("COPY runs TO '{root}/x.csv'", "COPY is refused"),
        ("COPY runs TO '{outside}'", "COPY is refused"),
        ("FROM runs; COPY runs TO '{root}/x.csv'", "COPY is refused"),
        ("EXPLAIN ANALYZE COPY runs TO '{root}/x.csv'", "EXPLAIN is refused"),
        ("EXPLAIN /* */ ANALYZE COPY runs TO '{root}/x.csv'", "EXPLAIN is refused"),
        ("EXPLAIN (ANALYZE) COPY runs TO '{root}/x.csv'", "EXPLAIN is refused"),
        ("COPY (PIVOT splits ON split USING sum(images)) TO 'x'", "MULTI is refused"),
        ("EXPORT DATABASE '{root}/all'", "EXPORT is refused"),
        ("ATTACH '{root}/new.db'", "ATTACH is refused"),
        ("CREATE TEMP TABLE t AS SELECT 1", "CREATE is refused"),
        ("INSERT INTO datasets VALUES ('x')", "INSERT is refused"),
        ("DROP VIEW runs", "DROP is refused"),
        ("LOAD httpfs", "LOAD is refused"),
        ("INSTALL httpfs", "LOAD is refused"),
        ("SET threads = 1", "SET is refused"),
        ("USE memory", "SET is refused"),
        ("PRAGMA enable_profiling", "PRAGMA is refused"),
        ("CALL enable_logging()", "CALL is refused"),
        ("FROM statement", "statement does not exist"),
    ],
)
def test_what_does_more_than_read_the_store_is_refused(
    built: Store, tmp_path: Path, statement: str, said: str
):
    outside = tmp_path / "outside.csv"
    outside.write_text("a\n1\n")
    before = files(built)
    asked = statement.format(root=built.root, outside=outside)
    with pytest.raises(InvalidSpec, match=said) as refused:
        query.ask(built, asked)
    assert refused.value.exit_code == 2
    assert files(built) == before
    assert outside.read_text() == "a\n1\n"


@pytest.mark.parametrize(
    "statement",
    [
        "DESCRIBE runs",
        "SHOW TABLES",
        "SUMMARIZE runs",
        "EXPLAIN FROM runs",
        "EXPLAIN ANALYZE FROM runs",
        "PIVOT images ON split USING count(*)",
        "WITH a AS (FROM runs) FROM a",
        "(SELECT 1) UNION ALL VALUES (2)",
        "FROM read_text('{root}/store.json')",
    ],
)
def test_what_reads_the_store_is_answered(built: Store, statement: str):
    assert ask(built, statement.format(root=built.root))


def test_other_connections_of_this_process_stay_as_they_are(built: Store):
    file = built.root / "catalog.duckdb"
    with duckdb.connect(file, read_only=True) as mine, query.connect(built) as theirs:
        assert ask(built, "SELECT uri FROM images") == [
            {"uri": u} for u in URIS.values()
        ]
        for connection in (mine, theirs):
            connection.execute("SET threads = 1")
            assert connection.sql(f"FROM glob('{file}')").fetchall() == [(str(file),)]


ASKED = (
    "SELECT uri, 'nan'::FLOAT AS n, ['inf'::DOUBLE, 1.5] AS l, sum(2) AS s, NULL AS z, "
    "TIMESTAMP '2026-01-02 03:04:05' AS t FROM images GROUP BY uri ORDER BY uri"
)
FIRST_ROW = {
    "uri": URIS[B],
    "n": None,
    "l": [None, 1.5],
    "s": 2,
    "z": None,
    "t": "2026-01-02 03:04:05",
}


def printed(
    store: Store, form: Format | None, capfdbinary: pytest.CaptureFixture[bytes]
) -> bytes:
    sql(ASKED, store=str(store.root), form=form)
    return capfdbinary.readouterr().out


def test_json_has_null_for_what_is_no_number(
    built: Store, capfdbinary: pytest.CaptureFixture[bytes]
):
    (first, second) = json.loads(printed(built, "json", capfdbinary))
    assert first == FIRST_ROW
    assert second["uri"] == URIS[A]
    lines = printed(built, "jsonl", capfdbinary).splitlines()
    assert [json.loads(line) for line in lines] == [first, second]
    sql(ASKED, store=str(built.root), json=True)
    assert json.loads(capfdbinary.readouterr().out) == [first, second]


def test_csv_keeps_quotes_lines_and_lists(
    built: Store, capfdbinary: pytest.CaptureFixture[bytes]
):
    text = printed(built, "csv", capfdbinary).decode()
    (first, second) = csv.DictReader(io.StringIO(text, newline=""))
    assert (first["uri"], second["uri"]) == (URIS[B], URIS[A])
    assert json.loads(first["l"]) == [None, 1.5]
    assert (first["s"], first["z"], first["n"]) == ("2", "", "nan")


def test_markdown_is_one_line_a_row(
    built: Store, capfdbinary: pytest.CaptureFixture[bytes]
):
    lines = printed(built, "md", capfdbinary).decode().splitlines()
    assert lines[:2] == ["| uri | n | l | s | z | t |", "| --- " * 6 + "|"]
    assert lines[2].startswith("| b\\\\.png | nan | [inf, 1.5] | 2 |  | 2026-01-02")
    assert lines[3].startswith('| it\'s "a",<br>\\|ü.png |')


def test_parquet_is_as_duckdb_gives_it(
    built: Store, capfdbinary: pytest.CaptureFixture[bytes]
):
    rows = pq.read_table(io.BytesIO(printed(built, "parquet", capfdbinary)))
    assert rows["uri"].to_pylist() == [URIS[B], URIS[A]]
    assert rows["t"].to_pylist()[0] == datetime(2026, 1, 2, 3, 4, 5)  # noqa: DTZ001


def test_output_is_written_as_its_name_ends(built: Store, tmp_path: Path):
    for name in ("x.csv", "x.json", "x.jsonl", "x.parquet", "x.md"):
        sql("SELECT 1 AS a", store=str(built.root), output=tmp_path / name)
    assert (tmp_path / "x.csv").read_text() == '"a"\n1\n'
    assert json.loads((tmp_path / "x.json").read_text()) == [{"a": 1}]
    assert (tmp_path / "x.jsonl").read_text() == '{"a": 1}\n'
    assert pq.read_table(tmp_path / "x.parquet").to_pylist() == [{"a": 1}]
    assert (tmp_path / "x.md").read_text() == "| a |\n| --- |\n| 1 |\n"
    sql("SELECT 1 AS a", store=str(built.root), form="md", output=tmp_path / "x.txt")
    assert (tmp_path / "x.txt").read_text() == (tmp_path / "x.md").read_text()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x.txt", "Give --format csv, json, jsonl, parquet, md"),
        ("store/x.csv", "is in the store, which is only read"),
        ("none/x.csv", "cannot write .*: No such file or directory"),
    ],
)
def test_an_output_that_cannot_be_is_refused(
    built: Store, tmp_path: Path, name: str, said: str
):
    before = files(built)
    with pytest.raises(InvalidSpec, match=said):
        sql("SELECT 1", store=str(built.root), output=tmp_path / name)
    assert files(built) == before


def test_on_a_terminal_one_query_after_another_is_answered(
    built: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """A query may have several lines; a fault, or Ctrl-C, ends none but itself."""
    typed = iter(["SELECT count(*) AS n", "FROM images;", "FROM nowhere;", "FROM", 0])
    typed = [*typed, "", "SELECT 7 AS seven;"]
    prompts: list[str] = []

    def line(prompt: str) -> str:
        prompts.append(prompt)
        if not typed:
            raise EOFError
        if (said := typed.pop(0)) == 0:
            raise KeyboardInterrupt
        return str(said)

    monkeypatch.setattr("builtins.input", line)
    monkeypatch.setattr(sql_shell, "HISTORY", tmp_path / "history")
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    sql(store=str(built.root), form="jsonl")
    said = capsys.readouterr().out.splitlines()
    assert said[1] == '{"n": 2}'
    assert said[2].startswith("InvalidSpec: Catalog Error: Table with name nowhere")
    assert said[-3:] == ["", '{"seven": 7}', ""]
    assert prompts == ["tl> ", "... ", "tl> ", "tl> ", "... ", "tl> ", "tl> ", "tl> "]
    assert (tmp_path / "history").exists()


def test_views_columns_and_macros_are_completed(built: Store):
    names = sql_shell.words(ask(built, "FROM help()"))

    def completed(text: str) -> list[str]:
        found = (sql_shell.match(names, text, number) for number in range(len(names)))
        return [name for name in found if name]

    assert completed("predictions") == ["predictions", "predictions_history"]
    assert completed("classify") == ["classify_knn("]
    assert completed("near_i") == ["near_id"]
    assert completed("sel") == ["SELECT"]
    assert completed("nothing of the kind") == []

"""Every Parquet table: its grain, its key, what writing refuses."""

import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_pipeline.data.splits import SPLITS
from tl_pipeline.errors import DamagedArtifact
from tl_pipeline.store import tables
from tl_pipeline.store.keys import digest
from tl_pipeline.store.tables import DUPLICATES, MANIFEST, TABLES, Columns, Table

every_table = pytest.mark.parametrize("table", TABLES, ids=lambda table: table.file)


def value(kind: pa.DataType, number: int) -> Any:
    """Some value of that type; another number gives another value, but for bool."""
    if pa.types.is_list(kind):
        return [value(kind.value_type, number)]
    if pa.types.is_struct(kind):
        return {field.name: value(field.type, number) for field in kind}
    if pa.types.is_boolean(kind):
        return bool(number % 2)
    return f"text {number}" if pa.types.is_string(kind) else number


def some_rows(table: Table, count: int) -> list[dict[str, Any]]:
    return [{f.name: value(f.type, i) for f in table.schema} for i in range(count)]


@every_table
def test_a_table_says_what_one_row_is(table: Table):
    assert table.grain.startswith("One row per ")
    assert table.grain.endswith(".")


@every_table
def test_the_key_columns_are_there_and_required(table: Table):
    assert table.key
    for name in table.key:
        assert name in table.schema.names
        assert not table.schema.field(name).nullable


def test_every_table_has_a_file_of_its_own():
    assert len({table.file for table in TABLES}) == len(TABLES)


@every_table
@pytest.mark.parametrize("count", [0, 3])
def test_rows_come_back_as_they_were_written(table: Table, count: int, tmp_path: Path):
    data = tables.from_rows(table, some_rows(table, count))
    tables.write(table, data, tmp_path)
    assert tables.read(table, tmp_path).equals(data)
    assert tables.read(table, tmp_path).schema.equals(table.schema)
    assert tables.count(table, tmp_path) == count


@every_table
def test_columns_in_another_order_are_put_in_order(table: Table, tmp_path: Path):
    data = tables.from_rows(table, some_rows(table, 2))
    tables.write(table, data.select(table.schema.names[::-1]), tmp_path)
    assert tables.read(table, tmp_path).equals(data)


@every_table
def test_some_columns_can_be_read_alone(table: Table, tmp_path: Path):
    data = tables.from_rows(table, some_rows(table, 2))
    tables.write(table, data, tmp_path)
    assert tables.read(table, tmp_path, table.key).equals(data.select(table.key))


@every_table
def test_a_key_that_stands_twice_is_refused(table: Table, tmp_path: Path):
    first, second = some_rows(table, 2)
    twin = {**second, **{name: first[name] for name in table.key}}
    with pytest.raises(ValueError, match="is not unique"):
        tables.write(table, tables.from_rows(table, [first, twin]), tmp_path)
    assert not (tmp_path / table.file).exists()


@pytest.mark.parametrize(
    ("table", "column"),
    [(t, f.name) for t in TABLES for f in t.schema if not f.nullable],
    ids=lambda value: value if isinstance(value, str) else value.file,
)
def test_a_null_in_a_required_column_is_refused(
    table: Table, column: str, tmp_path: Path
):
    first, second = some_rows(table, 2)
    data = tables.from_rows(table, [first, {**second, column: None}])
    with pytest.raises(ValueError, match=column):
        tables.write(table, data, tmp_path)
    assert not (tmp_path / table.file).exists()


@pytest.mark.parametrize(
    ("table", "column"),
    [(t, f.name) for t in TABLES for f in t.schema if f.nullable],
    ids=lambda value: value if isinstance(value, str) else value.file,
)
def test_an_optional_column_may_be_left_out_of_a_row(
    table: Table, column: str, tmp_path: Path
):
    (row,) = some_rows(table, 1)
    del row[column]
    tables.write(table, tables.from_rows(table, [row]), tmp_path)
    assert tables.read(table, tmp_path)[column].to_pylist() == [None]


@every_table
def test_a_missing_column_is_refused(table: Table, tmp_path: Path):
    data = tables.from_rows(table, some_rows(table, 2))
    for column in table.schema.names:
        with pytest.raises(ValueError, match=column):
            tables.write(table, data.drop_columns(column), tmp_path)
    assert not (tmp_path / table.file).exists()


texts = st.text(max_size=20)
manifest_rows = st.lists(
    st.fixed_dictionaries(
        {
            "image_id": st.text("0123456789abcdef", min_size=1, max_size=32),
            "uri": texts,
            "label": texts,
            "split": st.sampled_from(SPLITS),
            "width": st.integers(1, 2**31 - 1),
            "height": st.integers(1, 2**31 - 1),
            "bytes": st.integers(0, 2**63 - 1),
            "group": st.none() | texts,
            "weight": st.none() | st.floats(0, width=32, allow_infinity=False),
            "declared": st.none() | st.sampled_from(SPLITS),
        }
    ),
    max_size=20,
    unique_by=lambda row: row["image_id"],
)


@settings(deadline=None, max_examples=50)
@given(manifest_rows)
def test_any_manifest_comes_back_as_it_was(rows):
    with tempfile.TemporaryDirectory() as folder:
        tables.write(MANIFEST, tables.from_rows(MANIFEST, rows), Path(folder))
        assert tables.read(MANIFEST, Path(folder)).to_pylist() == rows
        assert tables.count(MANIFEST, Path(folder)) == len(rows)


def test_a_folder_named_like_a_partition_adds_no_column(tmp_path: Path):
    folder = tmp_path / "encoder=1"
    folder.mkdir()
    rows = some_rows(MANIFEST, 1)
    tables.write(MANIFEST, tables.from_rows(MANIFEST, rows), folder)
    assert tables.read(MANIFEST, folder).to_pylist() == rows


@every_table
def test_a_missing_file_is_a_damaged_artifact(table: Table, tmp_path: Path):
    with pytest.raises(DamagedArtifact, match=rf"{table.file}.*run again"):
        tables.read(table, tmp_path)


@every_table
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_a_damaged_artifact(
    table: Table, share: float, tmp_path: Path
):
    tables.write(table, tables.from_rows(table, some_rows(table, 3)), tmp_path)
    data = (tmp_path / table.file).read_bytes()
    (tmp_path / table.file).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DamagedArtifact, match=rf"{table.file}.*run again"):
        tables.read(table, tmp_path)


@pytest.mark.parametrize("data", [None, b"", b"PAR1"], ids=["missing", "empty", "cut"])
def test_rows_of_a_damaged_file_cannot_be_counted(data: bytes | None, tmp_path: Path):
    if data is not None:
        (tmp_path / MANIFEST.file).write_bytes(data)
    with pytest.raises(DamagedArtifact, match=rf"{MANIFEST.file}.*run again"):
        tables.count(MANIFEST, tmp_path)


@pytest.mark.parametrize(
    ("table", "column"),
    [(t, f.name) for t in TABLES for f in t.schema if f.nullable],
    ids=lambda value: value if isinstance(value, str) else value.file,
)
def test_an_optional_column_that_an_older_version_did_not_write_is_null(
    table: Table, column: str, tmp_path: Path
):
    data = tables.from_rows(table, some_rows(table, 3))
    pq.write_table(data.drop_columns(column), tmp_path / table.file)
    assert tables.read(table, tmp_path).schema.equals(table.schema)
    assert tables.read(table, tmp_path, [column])[column].to_pylist() == [None] * 3
    others = [name for name in table.schema.names if name != column]
    assert tables.read(table, tmp_path, others).equals(data.select(others))


def test_a_file_without_a_required_column_is_a_damaged_artifact(tmp_path: Path):
    data = tables.from_rows(MANIFEST, some_rows(MANIFEST, 3))
    pq.write_table(data.drop_columns("split"), tmp_path / MANIFEST.file)
    with pytest.raises(DamagedArtifact, match="no column split; run again"):
        tables.read(MANIFEST, tmp_path)


cells = st.lists(st.tuples(texts, st.none() | st.integers(), st.floats()), max_size=9)


@settings(deadline=None)
@given(cells, st.integers(1, 4))
def test_columns_values_and_fingerprints_do_not_depend_on_the_step(rows, step):
    """NaN and the infinities among them, which are JSON to Python."""
    schema = pa.schema({"a": pa.string(), "b": pa.int64(), "c": pa.float64()})
    rows = [(a, None if b is None else b % 2**62, c) for a, b, c in rows]
    with patch.object(tables, "_STEP", step):
        collected = Columns(schema)
        collected.extend(rows[:2])
        collected.extend(rows[2:])
        data = collected.table()
        assert repr(list(tables.values(data, "a", "b", "c"))) == repr(rows)
        lists = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
        assert tables.fingerprint(data, "a", "b", "c") == digest(lists)
        assert tables.fingerprint(data, "a") == digest(lists[:1])
        assert tables.named_fingerprint('"x"', data["a"]) == digest(['"x"', lists[0]])


def test_counts_begin_with_the_most_frequent():
    column = pa.chunked_array([["a", "b"], ["c", "b", "c", "b"]])
    assert list(tables.counts(column).items()) == [("b", 3), ("c", 2), ("a", 1)]
    assert tables.counts(pa.chunked_array([], pa.string())) == {}


@pytest.mark.parametrize("where", [0, 3])
def test_a_key_that_stands_twice_among_sorted_ones_is_refused(
    tmp_path: Path, where: int
):
    rows = some_rows(DUPLICATES, 5)
    rows[where + 1]["uri"] = rows[where]["uri"]
    with pytest.raises(ValueError, match="is not unique"):
        tables.write(DUPLICATES, tables.from_rows(DUPLICATES, rows), tmp_path)

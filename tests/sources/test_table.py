"""What a table of images lists and reads: CSV, TSV and Parquet."""

import csv
import json
import os
import pathlib
import pickle
import random
import tracemalloc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from tl_pipeline.config.datasets import TableSpec
from tl_pipeline.data.identity import Memo, image_id
from tl_pipeline.data.scan import scan
from tl_pipeline.errors import DatasetError
from tl_pipeline.inputs.images import as_ppm
from tl_pipeline.sources import table_images
from tl_pipeline.sources.table import Table
from tl_pipeline.store.artifacts import Store

Images = list[tuple[bytes, str]]


def source(path: Path, **fields: Any) -> Table:
    return Table(TableSpec(name="x", type="table", path=path, **fields))


def listed(path: Path, **fields: Any) -> list[Any]:
    return list(source(path, **fields).entries())


def delimited(file: Path, rows: Sequence[Sequence[str]], separator: str = ",") -> Path:
    with file.open("w", newline="") as lines:
        csv.writer(lines, delimiter=separator).writerows(rows)
    return file


def parquet(file: Path, group: int = 30, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), file, row_group_size=group)
    return file


def files(folder: Path, images: Images) -> list[list[str]]:
    """Write the images; rows (relative path, label)."""
    (folder / "images").mkdir()
    rows = []
    for number, (data, label) in enumerate(images):
        name = f"images/{number:03d}.ppm"
        (folder / name).write_bytes(data)
        rows.append([name, label])
    return rows


def columns(images: Images) -> dict[str, list[Any]]:
    data, labels = zip(*images, strict=True)
    return {"image": list(data), "label": list(labels)}


def as_csv(folder: Path, images: Images) -> Path:
    rows = [["image", "label"], *files(folder, images)]
    return delimited(folder / "t.csv", rows)


def as_tsv(folder: Path, images: Images) -> Path:
    rows = [["image", "label"], *files(folder, images)]
    return delimited(folder / "t.tsv", rows, "\t")


def as_paths(folder: Path, images: Images) -> Path:
    names, labels = zip(*files(folder, images), strict=True)
    return parquet(folder / "t.parquet", image=list(names), label=list(labels))


def as_bytes(folder: Path, images: Images) -> Path:
    return parquet(folder / "t.parquet", **columns(images))


def as_structs(folder: Path, images: Images) -> Path:
    made = columns(images)
    made["image"] = [
        {"bytes": data, "path": f"{i}.ppm"} for i, data in enumerate(made["image"])
    ]
    return parquet(folder / "t.parquet", **made)


def as_mixed_structs(folder: Path, images: Images) -> Path:
    """Structs with bytes only, then with both or the path only, then the path only."""
    made, names = columns(images), [name for name, _ in files(folder, images)]
    made["image"] = [
        {
            "bytes": data if i < 60 or (i < 90 and i % 3) else None,
            "path": None if i < 30 else names[i],
        }
        for i, data in enumerate(made["image"])
    ]
    return parquet(folder / "t.parquet", **made)


def as_two_files(folder: Path, images: Images) -> Path:
    parquet(folder / "t-0.parquet", **columns(images[:77]))
    parquet(folder / "t-1.parquet", **columns(images[77:]))
    return folder / "t-*.parquet"


WRITERS = (
    as_csv,
    as_tsv,
    as_paths,
    as_bytes,
    as_structs,
    as_mixed_structs,
    as_two_files,
)
written = pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
Write = Callable[[Path, Images], Path]


@written
def test_what_was_written_comes_back(tmp_path: Path, two_hundred: Images, write: Write):
    table = source(write(tmp_path, two_hundred))
    entries = list(table.entries())
    found = [(table.read(entry.uri), entry.label) for entry in entries]
    assert found == two_hundred
    assert len({image_id(data) for data, _ in found}) == 200
    assert len({entry.uri for entry in entries}) == 200
    assert None not in {entry.version for entry in entries}
    assert None not in {entry.modified_ns for entry in entries}
    assert {(entry.split, entry.group) for entry in entries} == {(None, None)}


@written
def test_a_copy_in_another_process_is_the_same(
    tmp_path: Path, two_hundred: Images, write: Write
):
    table = source(write(tmp_path, two_hundred))
    entries = list(table.entries())
    table.read(entries[0].uri)
    copy = pickle.loads(pickle.dumps(table))
    assert copy.read(entries[-1].uri) == two_hundred[-1][0]
    assert list(copy.entries()) == entries


@written
def test_threads_reading_at_random_read_the_same(
    tmp_path: Path, two_hundred: Images, write: Write, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(table_images, "_KEPT", 0)
    table = source(write(tmp_path, two_hundred))
    uris = [entry.uri for entry in table.entries()]
    order = list(range(200)) * 2
    random.Random(0).shuffle(order)
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(lambda i: table.read(uris[i]), order))
    assert read == [two_hundred[i][0] for i in order]
    assert len(table._images._groups) <= 2


def test_rows_of_bytes_are_listed_without_reading_bytes_and_each_group_is_read_once(
    tmp_path: Path, two_hundred: Images, monkeypatch: pytest.MonkeyPatch
):
    loaded = []
    load = table_images.row_images

    def counted(file: Path, group: int, column: str):
        loaded.append(group)
        return load(file, group, column)

    monkeypatch.setattr(table_images, "row_images", counted)
    monkeypatch.setattr(table_images, "_KEPT", 0)
    for write in (as_bytes, as_structs):
        loaded.clear()
        file = write(tmp_path, two_hundred)
        asked = []
        batches = pq.ParquetFile.iter_batches

        def spied(self, size, groups, names, asked=asked, batches=batches):
            asked.extend(names)
            return batches(self, size, groups, names)

        with monkeypatch.context() as patch:
            patch.setattr(pq.ParquetFile, "iter_batches", spied)
            table = source(file)
            entries = list(table.entries())
        assert set(asked) == {"label"}
        for entry in entries:
            table.read(entry.uri)
        assert loaded == list(range(7))


def test_small_row_groups_are_all_kept(tmp_path: Path, two_hundred: Images):
    table = source(as_bytes(tmp_path, two_hundred))
    for entry in table.entries():
        table.read(entry.uri)
    assert len(table._images._groups) == 7


def test_a_changed_file_is_read_anew(tmp_path: Path, two_hundred: Images):
    table = source(as_bytes(tmp_path, two_hundred))
    uri = f"{tmp_path}/t.parquet#row=3"
    assert table.read(uri) == two_hundred[3][0]
    as_bytes(tmp_path, two_hundred[1:])
    os.utime(tmp_path / "t.parquet", ns=(1, 1))
    assert table.read(uri) == two_hundred[4][0]


def test_groups_and_splits_are_kept_as_the_columns_say(tmp_path: Path):
    splits = ["train", "VAL", "valid", "Validation", "", "test"]
    rows = [
        [f"{i}.png", "a", split, f"g{i % 2}"] for i, split in enumerate(splits[:-1])
    ]
    file = delimited(tmp_path / "t.csv", [["image", "label", "side", "who"], *rows])
    entries = listed(file, split_column="side", group_column="who")
    validation = ["validation"] * 3
    assert [entry.split for entry in entries] == ["train", *validation, None]
    assert [entry.group for entry in entries] == ["g0", "g1", "g0", "g1", "g0"]
    columns = {"image": ["x"] * 6, "label": ["a"] * 6, "side": splits, "who": [7] * 6}
    parted = parquet(tmp_path / "t.parquet", **columns)
    entries = listed(parted, split_column="side", group_column="who")
    assert [e.split for e in entries] == ["train", *validation, None, "test"]
    assert {entry.group for entry in entries} == {"7"}


def test_an_unknown_split_is_an_error_that_names_the_choices(tmp_path: Path):
    rows = [["image", "label", "split"], ["1.png", "a", "dev"], ["2.png", "a", "fit"]]
    file = delimited(tmp_path / "t.csv", rows)
    with pytest.raises(DatasetError, match=r"row 1: unknown split 'fit'.*'splits: {"):
        listed(file, split_column="split")


def test_the_entry_says_which_cells_are_splits(tmp_path: Path):
    cells = ["fit", "tune", "final", "", "spare"]
    rows = [[f"{i}.png", "a", cell] for i, cell in enumerate(cells)]
    file = delimited(tmp_path / "t.csv", [["image", "label", "split"], *rows])
    splits = {"train": ["fit", "tune"], "test": "final"}
    entries = listed(file, split_column="split", splits=splits)
    assert [(Path(e.uri).name, e.split) for e in entries] == [
        ("0.png", "train"),
        ("1.png", "train"),
        ("2.png", "test"),
        ("3.png", None),
    ]
    with pytest.raises(ValidationError, match="which cells of 'split_column'"):
        listed(file, splits=splits)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (pa.array(["a", "", None]), ["a", None, None]),
        (pa.array([3, None, 0]), ["3", None, "0"]),
        (pa.array([3.0, float("nan"), None]), ["3", None, None]),
        (pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
        (pa.array(["NA", "nan", "null"]), ["NA", "nan", "null"]),
    ],
)
def test_labels_are_text_and_a_missing_one_is_none(
    tmp_path: Path, labels: pa.Array, expected: list[str | None]
):
    file = parquet(tmp_path / "t.parquet", image=["1", "2", "3"], label=labels)
    assert [entry.label for entry in listed(file)] == expected


def test_a_csv_takes_its_cells_as_they_are_written(tmp_path: Path):
    file = tmp_path / "t.csv"
    file.write_text(
        '\ufefflabel,more,image\nNA,1,"a, b.png"\n\n,x,c.png\n007,"\n",d.png\n'
    )
    found = [(entry.uri, entry.label) for entry in listed(file)]
    assert found == [
        (f"{tmp_path}/a, b.png", "NA"),
        (f"{tmp_path}/c.png", None),
        (f"{tmp_path}/d.png", "007"),
    ]


def test_a_row_without_an_image_is_an_input_that_cannot_be_read(tmp_path: Path):
    text = delimited(tmp_path / "t.csv", [["image", "label"], ["", "a"], ["1", "b"]])
    structs = [{"bytes": None, "path": None}, None, {"bytes": None, "path": ""}]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {
        "a": pa.array([None] * 3, pa.binary()),
        "b": pa.array([None] * 3),
        "c": pa.array([None, None, ""]),
        "d": pa.array(structs, kind),
        "e": pa.array([None] * 3, pa.struct({"path": pa.string()})),
        "f": pa.array([None] * 3, pa.struct({"bytes": pa.binary()})),
    }
    for name, images in columns.items():
        file = parquet(tmp_path / f"{name}.parquet", image=images, label=["x"] * 3)
        for row, entry in enumerate(listed(file)):
            assert entry.uri == f"{file}#row={row}"
            with pytest.raises(OSError, match=f"{name}.parquet#row={row}"):
                source(file).read(entry.uri)
    first, _ = listed(text)
    with pytest.raises(FileNotFoundError, match=r"t\.csv#row=0: no such row"):
        source(text).read(first.uri)


def test_another_separator_is_said(tmp_path: Path):
    rows = [["image", "label"], ["a,b.png", "x"], ["c.png", "y"]]
    for separator in ";|\t ":
        file = delimited(tmp_path / "t.csv", rows, separator)
        found = listed(file, separator=separator)
        assert [Path(e.uri).name for e in found] == ["a,b.png", "c.png"]
    with pytest.raises(DatasetError, match="set 'separator'"):
        listed(delimited(tmp_path / "t.csv", rows, ";"))


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_weights_are_kept(tmp_path: Path, ending: str):
    weights = [0.0, 1.0, 2.5, 1e-9]
    names = [f"{n}.png" for n in range(4)]
    if ending == "csv":
        cells = [[n, "a", str(w)] for n, w in zip(names, weights, strict=True)]
        file = delimited(tmp_path / "t.csv", [["image", "label", "w"], *cells])
    else:
        columns = {"image": names, "label": ["a"] * 4, "w": weights}
        file = parquet(tmp_path / "t.parquet", **columns)
    assert [e.weight for e in listed(file, weight_column="w")] == weights
    assert {e.weight for e in listed(file)} == {None}


@pytest.mark.parametrize("weight", ["-1", "nan", "inf", "many", "", "-0.5", "1,5"])
def test_a_weight_that_is_none_is_an_error_with_file_and_row(
    tmp_path: Path, weight: str
):
    rows = [["image", "label", "w"], ["0.png", "a", "1"], ["1.png", "a", weight]]
    file = delimited(tmp_path / "t.csv", rows)
    with pytest.raises(DatasetError, match=r"t\.csv#row=1: its weight is .*>= 0"):
        listed(file, weight_column="w")


def test_a_missing_weight_in_parquet_is_an_error_too(tmp_path: Path):
    for weights in ([1.0, float("nan")], [1.0, None], [1, -1], [True, False]):
        columns = {"image": ["0", "1"], "label": ["a", "b"], "w": weights}
        file = parquet(tmp_path / "t.parquet", **columns)
        with pytest.raises(DatasetError, match=r"t\.parquet#row=[01]: its weight"):
            listed(file, weight_column="w")


# Paths


def plain(folder: Path, *paths: str, **fields: Any) -> Table:
    """A table of these paths, all labelled a."""
    rows = [["image", "label"], *([path, "a"] for path in paths)]
    return source(delimited(folder / "t.csv", rows), **fields)


def test_uris_are_absolute_and_start_at_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "1.png").write_bytes(b"one")
    plain(tmp_path, "./1.png", str(tmp_path / "root" / "1.png"), "x/../1.png")
    monkeypatch.chdir(tmp_path)
    table = source(Path("t.csv"), root=Path("root"))
    entries = list(table.entries())
    uri = f"{tmp_path}/root/1.png"
    assert [e.uri for e in entries] == [uri, f"{uri}#copy=1", f"{uri}#copy=2"]
    assert {table.read(entry.uri) for entry in entries} == {b"one"}


@pytest.mark.parametrize("hostile", ["../secret.png", "{}/secret.png", "a/../../s"])
def test_a_path_that_leaves_the_root_is_listed_and_refused(
    tmp_path: Path, hostile: str
):
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "inner").mkdir()
    path = hostile.format(tmp_path)
    table = plain(tmp_path / "inner", path)
    (entry,) = table.entries()
    assert (entry.uri, entry.version, entry.modified_ns) == (path, None, None)
    with pytest.raises(PermissionError, match=r"leaves its root .*root: /"):
        table.read(entry.uri)


def test_a_wider_root_allows_absolute_paths(tmp_path: Path):
    (tmp_path / "secret.png").write_bytes(b"mine")
    (tmp_path / "inner").mkdir()
    path = f"{tmp_path}/secret.png"
    for root in (tmp_path, Path("/")):
        table = plain(tmp_path / "inner", path, root=root)
        (entry,) = table.entries()
        assert entry.uri == path
        assert entry.version is not None
        assert table.read(entry.uri) == b"mine"


def test_links_are_resolved(tmp_path: Path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "out.png").symlink_to(tmp_path / "secret.png")
    (inner / "1.png").write_bytes(b"one")
    (inner / "in.png").symlink_to(inner / "1.png")
    (inner / "loop.png").symlink_to(inner / "loop.png")
    (tmp_path / "link").symlink_to(inner)
    table = plain(inner, "out.png", "in.png", "loop.png", f"{tmp_path}/link/1.png")
    out, within, loop, linked = (entry.uri for entry in table.entries())
    with pytest.raises(PermissionError, match="leaves its root"):
        table.read(out)
    assert table.read(within) == table.read(linked) == b"one"
    with pytest.raises(OSError, match=r"loop\.png"):
        table.read(loop)
    through = source(tmp_path / "link" / "t.csv")
    assert [entry.uri for entry in through.entries()][1] == str(inner / "in.png")


@pytest.mark.parametrize(
    "path", ["gone.png", "folder", "pipe", "a\tb", "x" * 5000, "a/../x\0y", "x\0y"]
)
def test_what_is_no_file_is_listed_and_cannot_be_read(tmp_path: Path, path: str):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    file = parquet(tmp_path / "t.parquet", image=[path], label=["a"])
    (entry,) = listed(file)
    with pytest.raises(OSError):  # noqa: PT011 - each system says it in its own words
        source(file).read(entry.uri)


def test_a_path_listed_again_has_a_uri_of_its_own(tmp_path: Path):
    """Also where names look like such uris, and in several files."""
    names = ["a", "a#copy=1", "a#row=2", "t-0.csv#row=0", "../a", "../a"]
    for name in names[:4]:
        (tmp_path / name).write_bytes(name.encode())
    rows = [["image", "label"], *([name, "a"] for name in ["a", *names])]
    delimited(tmp_path / "t-0.csv", rows)
    delimited(tmp_path / "t-1.csv", [["image", "label"], ["a", "b"]])
    table = source(tmp_path / "t-?.csv")
    uris = [entry.uri for entry in table.entries()]
    assert uris[:2] == [f"{tmp_path}/a", f"{tmp_path}/a#copy=1"]
    assert uris[-1] == f"{tmp_path}/a#copy=7"
    assert len(set(uris)) == len(uris) == 8
    expected = [b"a", b"a", b"a#copy=1", b"a#row=2", b"t-0.csv#row=0"]
    assert [table.read(uri) for uri in uris[:5]] == expected
    for uri in uris[5:7]:
        with pytest.raises(PermissionError):
            table.read(uri)


def test_a_path_listed_again_under_another_label_is_in_conflict(
    tmp_path: Path, two_hundred: Images, store: Store
):
    rows = files(tmp_path, two_hundred[:3])
    more = [rows[0], [rows[1][0], "other"]]
    file = delimited(tmp_path / "t.csv", [["image", "label"], *rows, *more])
    spec = TableSpec(name="x", type="table", path=file)
    found = scan(Table(spec), spec, Memo(store, "x"))
    assert found.inputs == 5
    assert [uri[-7:] for uri in found.duplicates["uri"].to_pylist()] == ["#copy=3"]
    assert found.quarantine["reason"].to_pylist() == ["conflicting labels"] * 2


# Tables that cannot be read


@pytest.mark.parametrize("path", ["gone.csv", "*.parquet", "folder", "t.json", ".*"])
def test_a_path_that_names_no_table_is_an_error(tmp_path: Path, path: str):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "t.json").write_text("[]")
    (tmp_path / ".csv").write_text("image,label\n")
    with pytest.raises(DatasetError, match=r"\.csv, \.tsv, \.txt, \.parquet; found: "):
        listed(tmp_path / path)


def test_a_name_that_looks_like_a_wildcard_is_taken_as_it_is(tmp_path: Path):
    rows = [["image", "label"], ["1.png", "a"]]
    file = delimited(tmp_path / "t[1].CSV", rows)
    assert len(listed(file)) == 1


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_missing_column_is_an_error_that_names_those_there(
    tmp_path: Path, ending: str
):
    file = tmp_path / f"t.{ending}"
    if ending == "csv":
        delimited(file, [["image", "class"], ["1.png", "a"]])
    else:
        parquet(file, **{"image": ["1.png"], "class": ["a"]})
    message = "one column 'label'; it has: image, class. Correct"
    with pytest.raises(DatasetError, match=message):
        listed(file)
    assert len(listed(file, label_column="class")) == 1
    with pytest.raises(DatasetError, match="one column 'who'"):
        listed(file, label_column="class", group_column="who")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.parquet", b"image,label\n1.png,a\n"),
        ("t.parquet", b""),
        ("t.csv", b"PAR1 and so on"),
        ("t.csv", b"PK\3\4\0\0\0\0"),
        ("t.csv", b"<!DOCTYPE html>\n<html>"),
        ("t.csv", b"image,label\n\0\0\xff"),
    ],
)
def test_a_file_that_is_not_what_its_ending_says_is_an_error(
    tmp_path: Path, name: str, content: bytes
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=rf"{name} is not what its ending says: .+"):
        listed(tmp_path / name)


def test_parquet_under_another_name_is_an_error(tmp_path: Path, two_hundred: Images):
    as_bytes(tmp_path, two_hundred).rename(tmp_path / "t.csv")
    with pytest.raises(DatasetError, match="is not what its ending says"):
        listed(tmp_path / "t.csv")


QUOTED = "image,label,note\n" + "".join(f"{n}.png,a,ok\n" for n in range(9))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        # A stray quote, to the next one: wherever that stands, rows would be lost.
        (['x.png,a,"blurred', "y.png,a,ok", 'z.png,a,"dark'], "11: a quote that opens"),
        (
            ['x.png,a,"', "y.png,a,ok", 'z.png,a,"'],
            "11: a quoted cell runs on to line 13",
        ),
        (['x.png,"a,ok', "y.png,a,ok"], "11: a quote .* end of data in line 12"),
        (['"x.png,a,ok', 'y.png,a,6"'], "11: 1 cells where the header has 3"),
        (["x.png,a"], "11: 2 cells where the header has 3"),
        (["x.png,a,b,c"], "11: 4 cells where the header has 3; .* ',' must .* quotes"),
    ],
)
def test_quotes_and_cells_that_would_lose_rows_are_refused_by_line(
    tmp_path: Path, rows: list[str], said: str
):
    file = tmp_path / "t.csv"
    file.write_text(QUOTED + "\n".join(rows) + "\n")
    with pytest.raises(DatasetError, match=rf"t\.csv:{said}"):
        listed(file)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_breaks_in_cells_are_kept_where_they_are_meant(tmp_path: Path, end: str):
    """One of the texts has as many separators in each line as the header."""
    texts = ['one\ntwo "three"', "four, five\nsix", "seven, eight", "nine\n\nten"]
    file = tmp_path / "t.csv"
    with file.open("w", newline="") as lines:
        rows = csv.writer(lines, lineterminator=end)
        rows.writerows([["text", "label"], *([text, "a"] for text in texts)])
    spec = TableSpec(name="x", type="table", path=file, text_column="text")
    table = Table(spec)
    read = [table.read(entry.uri).decode() for entry in table.entries()]
    assert read == texts


@pytest.mark.parametrize(
    ("encoding", "field"),
    [
        ("utf-8", None),
        ("utf-8-sig", None),
        ("utf-16", None),
        ("utf-32", None),
        ("utf-16-le", "utf-16-le"),
        ("cp1252", "cp1252"),
        ("shift_jis", "SJIS"),
    ],
)
def test_text_in_any_encoding_is_read(tmp_path: Path, encoding: str, field: str | None):
    label = "犬" if encoding == "shift_jis" else "chaté"
    file = tmp_path / "t.csv"
    file.write_bytes(f" image ,label\r\n1.png,{label}\r\n".encode(encoding))
    (entry,) = listed(file, encoding=field)
    assert (Path(entry.uri).name, entry.label) == ("1.png", label)


@pytest.mark.parametrize(
    ("encoding", "field", "said"),
    [
        ("cp1252", None, r"csv:3: not in UTF-8 \(byte 0xe9\).* '2.png,é'; .*: cp1252'"),
        ("utf-16-le", None, "csv:1: not in UTF-8; say 'encoding: utf-16-le' in its"),
        ("utf-16-be", None, "csv:1: not in UTF-8; say 'encoding: utf-16-be' in its"),
        ("utf-8", "ascii", "csv:3: not in ASCII"),
    ],
)
def test_text_in_another_encoding_is_refused_with_the_likely_one(
    tmp_path: Path, encoding: str, field: str | None, said: str
):
    file = tmp_path / "t.csv"
    file.write_bytes("image,label\n1.png,a\n2.png,é\n".encode(encoding))
    with pytest.raises(DatasetError, match=said):
        listed(file, encoding=field)


def test_an_encoding_must_be_one_of_text():
    for name in ("utf-9", "base64", "rot13"):
        with pytest.raises(ValidationError, match="such as cp1252, utf-16"):
            source(Path("t.csv"), encoding=name)


def test_a_long_cell_is_read(tmp_path: Path):
    rows = [["image", "label", "note"], ["1.png", "a", "x" * 300_000]]
    (entry,) = listed(delimited(tmp_path / "t.csv", rows))
    assert entry.label == "a"


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("IM/cat.JPG", "there is 'im/cat.jpg', which differs in case only"),
        ("im/cat.jpg ", "there is 'im/cat.jpg', which differs in spaces only"),
        ("cat.jpg", "{root}/im holds it: set 'root'"),
        ("{name}/im/cat.jpg", "{parent} holds it: set 'root'"),
        ("im/cat", "there is 'im/cat.jpg'"),
        ("im/cat.png", "there is 'im/cat.jpg'"),
        ("C:\\data\\im\\cat.jpg", "but a path of Windows: write paths that start at"),
        (
            "/home/somebody/im/cat.jpg",
            "there is {root}/im/cat.jpg: write paths that start",
        ),
        ("in/dog/2.jpg", "there is 'im/dog/2.jpg'"),
        ("im/gone.jpg", "gone.jpg: no such file$"),
    ],
)
def test_a_path_that_leads_nowhere_is_told_what_is_there(
    tmp_path: Path, cell: str, said: str
):
    root = tmp_path / "root"
    for name in ("im/cat.jpg", "im/cat/2.jpg", "im/dog/2.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    words = {"root": root, "parent": tmp_path, "name": "root"}
    rows = [["image", "label"], [cell.format(**words), "a"]]
    table = source(delimited(root / "t.csv", rows))
    (entry,) = table.entries()
    with pytest.raises(FileNotFoundError, match=said.format(**words)):
        table.read(entry.uri)


def test_backslashes_part_folders_where_no_name_holds_them(tmp_path: Path):
    (tmp_path / "im").mkdir()
    (tmp_path / "im" / "1.png").write_bytes(b"folder")
    (tmp_path / "im\\2.png").write_bytes(b"name")
    cells = ["im\\1.png", "im\\2.png", "im\\..\\im\\1.png"]
    rows = [["image", "label"], *([cell, "a"] for cell in cells)]
    table = source(delimited(tmp_path / "t.csv", rows))
    read = [table.read(entry.uri) for entry in table.entries()]
    assert read[:2] == [b"folder", b"name"]
    with pytest.raises(OSError, match=r"im\\\.\."):
        table.read(str(tmp_path / "im\\..\\im\\1.png"))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([["a", "b"]], "column 'label' holds a list of labels for each image"),
        ([{"a": 1}], "column 'label' holds struct<a: int64>; it must hold a text"),
    ],
)
def test_labels_of_a_nested_type_are_refused(
    tmp_path: Path, labels: list[Any], said: str
):
    file = parquet(tmp_path / "t.parquet", image=["1.png"], label=labels)
    with pytest.raises(DatasetError, match=said):
        listed(file)


def test_bytes_and_paths_kept_once_are_read(tmp_path: Path, two_hundred: Images):
    data, labels = zip(*two_hundred[:40], strict=True)
    images = pa.array(data, pa.binary()).dictionary_encode()
    file = parquet(tmp_path / "t.parquet", image=images, label=list(labels))
    table = source(file)
    assert [table.read(e.uri) for e in table.entries()] == list(data)


@pytest.mark.parametrize("content", ["image,label\n", ""])
def test_a_table_without_rows_is_an_error(tmp_path: Path, content: str):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(
        DatasetError, match=r"t\.csv (holds no rows|is .*: it is empty)"
    ):
        listed(tmp_path / "t.csv")


@pytest.mark.parametrize("images", [[1], [[b"x"]], [{"x": b"x"}], [True]])
def test_an_image_column_of_another_type_is_an_error(tmp_path: Path, images: list[Any]):
    file = parquet(tmp_path / "t.parquet", image=images, label=["a"])
    with pytest.raises(DatasetError, match=r"column 'image' holds .*must hold"):
        listed(file)


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary(3), pa.binary_view()], ids=str
)
def test_every_type_of_bytes_is_read(tmp_path: Path, kind: pa.DataType):
    images = pa.array([b"abc", b"def"], kind)
    file = parquet(tmp_path / "t.parquet", image=images, label=["a", "b"])
    read = [source(file).read(f"{file}#row={row}") for row in range(2)]
    assert [entry.uri for entry in listed(file)] == [f"{file}#row=0", f"{file}#row=1"]
    assert read == [b"abc", b"def"]


@pytest.mark.parametrize("uri", ["t.parquet#row=200", "o.parquet#row=0", "gone.ppm"])
def test_an_unknown_uri_is_an_os_error(tmp_path: Path, two_hundred: Images, uri: str):
    """Also a file that is not of this table, or a table that is gone."""
    table = source(as_bytes(tmp_path, two_hundred))
    (tmp_path / "o.parquet").write_bytes((tmp_path / "t.parquet").read_bytes())
    with pytest.raises(OSError, match=uri):
        table.read(f"{tmp_path}/{uri}")
    (tmp_path / "t.parquet").unlink()
    with pytest.raises(OSError, match=r"t\.parquet"):
        source(tmp_path / "t.parquet").read(f"{tmp_path}/t.parquet#row=0")


def test_a_damaged_row_group_costs_its_rows_and_not_the_run(
    tmp_path: Path, two_hundred: Images
):
    file = as_bytes(tmp_path, two_hundred)
    data = bytearray(file.read_bytes())
    data[4:40] = bytes(36)
    file.write_bytes(data)
    table = source(file)
    with pytest.raises(OSError, match="row=0"):
        table.read(f"{file}#row=0")
    assert table.read(f"{file}#row=199") == two_hundred[199][0]


@pytest.mark.parametrize(("ending", "rows"), [("csv", 20_000), ("parquet", 20_000)])
def test_a_large_table_is_listed_in_little_memory(
    tmp_path: Path, ending: str, rows: int
):
    """Python's own table of interned strings, which pathlib grows, does not count."""
    names = [f"images/of/one/large/folder/{i:012d}.jpg" for i in range(rows)]
    file = tmp_path / f"t.{ending}"
    if ending == "csv":
        delimited(file, [["image", "label"], *([name, "a"] for name in names)])
    else:
        parquet(file, rows // 2, image=names, label=["a"] * len(names))
    del names
    next(source(file).entries())  # what is imported once is not of the rows
    tracemalloc.start()
    try:
        listing = source(file).entries()
        assert sum(1 for _ in islice(listing, rows // 2)) == rows // 2
        held = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    assert sum(1 for _ in listing) == rows // 2
    held = held.filter_traces([tracemalloc.Filter(False, pathlib.__file__)])
    assert sum(trace.size for trace in held.traces) < 100 * rows


def test_class_labels_of_hugging_face_are_names(tmp_path: Path) -> None:
    label = {"_type": "ClassLabel", "names": ["dog", "cat"]}
    told = json.dumps({"info": {"features": {"label": label}}})
    images = [as_ppm(np.full((2, 2), value, np.uint8)) for value in range(4)]
    rows = pa.table({"image": images, "label": pa.array([0, 1, -1, None], pa.int64())})
    rows = rows.replace_schema_metadata({"huggingface": told})
    pq.write_table(rows, tmp_path / "pets.parquet")
    spec = TableSpec(name="pets", type="table", path=tmp_path / "pets.parquet")
    found = [entry.label for entry in Table(spec).entries()]
    assert found == ["dog", "cat", None, None]

"""Tables with one row per image: CSV, TSV and Parquet."""

import csv
import re
import threading
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tl_pipeline.datasets import TableSpec
from tl_pipeline.errors import DatasetError
from tl_pipeline.sources.entry import Entry
from tl_pipeline.sources.image_folder import SPLIT_FOLDERS

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_ENDINGS = (*_SEPARATORS, ".parquet")
_MARKED = re.compile(r"(.*)#(row|copy)=([0-9]+)", re.DOTALL)
_IMAGES = re.compile(
    r"(large_)?(string|binary)|fixed_size_binary|dictionary|null"
    r"|struct<.*\b(bytes: \w*binary|path: \w*string)"
)
_BATCH, _BUFFER, _KEPT = 128, 1 << 20, 1 << 27  # rows, bytes, bytes
# pathlib raises ValueError for a NUL and RuntimeError for links in a circle.
_ODD = (pa.ArrowException, ValueError, RuntimeError, LookupError)
# Path (None where the row holds bytes or nothing), label, split, group.
_Row = tuple[str | None, ...]


class Table:
    """Every row is an input, and its uri tells without the table what to read.

    A path is made absolute; one that leaves the root is listed as it is written and
    refused by ``read``; one that was listed before gets ``#copy=<row>``, counted
    through all files. A row with bytes, or with nothing, is ``<file>#row=<row>``,
    counted in its file. Rows count from 0.
    """

    def __init__(self, spec: TableSpec) -> None:
        self._spec, self._lock = spec, threading.Lock()
        self._found: dict[Path, Path] = {}
        self._starts: dict[Any, list[int]] = {}
        self._groups: dict[Any, pa.ChunkedArray] = {}

    def __reduce__(self) -> tuple[type["Table"], tuple[TableSpec]]:
        return Table, (self._spec,)  # neither the lock nor the cache can travel

    def entries(self) -> Iterator[Entry]:
        """One entry per row, file by file in the order of their names.

        Raises:
            DatasetError: no file matches or none has a row, a file is not what its
                ending says, a column is missing or of a wrong type, a split is unknown.
        """
        number = 0
        seen: set[int] = set()  # of hashes: a clash marks a uri without need, no more
        for file, root in self._files().items():
            stamp = _stamp(file)
            for row, (path, label, split, group) in enumerate(self._rows(file)):
                uri, (version, modified) = f"{file}#row={row}", stamp
                if path is not None:
                    uri, (version, modified) = _locate(path, root)
                    if hash(uri) in seen or _MARKED.fullmatch(uri):
                        uri += f"#copy={number}"
                    seen.add(hash(uri))
                yield Entry(uri, label, version, split, group, modified)
                number += 1
        if not number:
            raise DatasetError(f"{self._spec.path} holds no rows; check 'path'")

    def read(self, uri: str) -> bytes:
        """The bytes of the file ``uri``, or of the row that it names.

        Raises:
            PermissionError: the path leaves its root.
            OSError: there is no such file or row, or it cannot be read.
        """
        marked = _MARKED.fullmatch(uri)
        path, kind, row = marked.groups() if marked else (uri, "", "")
        try:
            tables = self._found or self._files()
            if kind != "row":
                return _read(Path(path), set(tables.values()))
            known = Path(path) in tables and Path(path).suffix.lower() == ".parquet"
            data = self._cell(Path(path), int(row)) if known else None
        except (PermissionError, FileNotFoundError):
            raise
        except (*_ODD, OSError, DatasetError) as error:
            raise OSError(f"{uri}: {error}") from None
        if not isinstance(data, bytes):
            raise FileNotFoundError(f"{uri}: no such row, or it holds no image")
        return data

    def _files(self) -> dict[Path, Path]:
        """The files of the table, each with the root of its paths."""
        path = self._spec.path.absolute()
        pattern = str(path.relative_to(path.anchor))
        found = [path] if path.exists() else sorted(Path(path.anchor).glob(pattern))
        files = [f for f in found if f.is_file() and not f.name.startswith(".")]
        if not files or not {f.suffix.lower() for f in files} <= {*_ENDINGS}:
            raise DatasetError(
                f"{path} must name files that end in {', '.join(_ENDINGS)}; found: "
                f"{', '.join(f.name for f in found[:9]) or 'nothing'}. Correct 'path'; "
                "for several files use wildcards, such as folder/*.parquet"
            )
        # Only folders are resolved: the target of a link may have another ending.
        files = [file.parent.resolve() / file.name for file in files]
        root = self._spec.root and self._spec.root.resolve()
        self._found = {file: root or file.parent for file in files}
        return self._found

    def _cell(self, file: Path, row: int) -> Any:
        state = (file, _stamp(file))
        # One thread loads at a time, or memory would hold a row group for each of them.
        with self._lock:
            starts = self._starts.get(state) or _starts(file)
            self._starts[state] = starts
            if row >= starts[-1]:
                return None
            group = bisect_right(starts, row) - 1
            images = self._groups.pop((state, group), None)
            if images is None:
                held = sum(kept.nbytes for kept in self._groups.values())
                while len(self._groups) > 1 and held > _KEPT:
                    held -= self._groups.pop(next(iter(self._groups))).nbytes
                images = _images(file, group, self._spec.image_column)
            self._groups[state, group] = images  # the last to be dropped now
        return images[row - starts[group]].as_py()

    def _rows(self, file: Path) -> Iterator[_Row]:
        spec = self._spec
        names = (spec.image_column, spec.label_column, spec.split_column)
        rows = _parquet if file.suffix.lower() == ".parquet" else _text
        try:
            for path, label, split, group in rows(file, (*names, spec.group_column)):
                yield path, label, _side(split, file), group
        except (pa.ArrowException, csv.Error, OSError, ValueError) as error:
            raise DatasetError(
                f"{file} is not what its ending says: {error}. Rename or rewrite it"
            ) from None


def _text(file: Path, names: _Row) -> Iterator[_Row]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.reader(lines, delimiter=_SEPARATORS[file.suffix.lower()])
        found = next(rows, [])
        if "\0" in "".join(found):
            raise ValueError("it is no text")
        _check(file, names, found)
        places = [None if name is None else found.index(name) for name in names]
        for cells in filter(None, rows):
            if len(cells) != len(found):
                raise ValueError(f"line {rows.line_num} has {len(cells)} columns")
            yield tuple(None if p is None else cells[p] or None for p in places)


def _parquet(file: Path, names: _Row) -> Iterator[_Row]:
    with pq.ParquetFile(file, buffer_size=_BUFFER) as table:
        image, *others = _check(file, names, table.schema_arrow.names)
        kind = str(table.schema_arrow.field(image).type)
        if not _IMAGES.match(kind):
            raise DatasetError(
                f"{file}: column {image!r} holds {kind}; 'image_column' must hold "
                "paths, bytes, or a struct of 'bytes' and 'path'"
            )
        for number in range(table.num_row_groups):
            group = table.metadata.row_group(number)
            chunks = map(group.column, range(group.num_columns))
            told = {chunk.path_in_schema: chunk.statistics for chunk in chunks}
            nulls = told.get(f"{image}.bytes")
            # Bytes are not read to list them, where nothing but bytes can be there.
            full = nulls and nulls.has_null_count and nulls.null_count == 0
            full = full or "binary" in kind.partition("<")[0]
            columns = others if full else [image, *others]
            for batch in table.iter_batches(_BATCH, [number], columns):
                texts: dict[str | None, list[str | None]] = {
                    name: _texts(batch.column(name)) for name in columns
                }
                none = [None] * batch.num_rows
                yield from zip(*(texts.get(n, none) for n in names), strict=True)


def _check(file: Path, names: _Row, found: list[str]) -> list[str]:
    """Those of ``names`` that are wanted; each must be a column."""
    wanted = [name for name in names if name is not None]
    for name in wanted:
        if found.count(name) != 1:
            raise DatasetError(
                f"{file} must have one column {name!r}; it has: {', '.join(found)}. "
                "Correct 'image_column', 'label_column' and the like, or the "
                "separators: commas in .csv, tabs in .tsv and .txt"
            )
    return wanted


def _texts(column: pa.Array) -> list[str | None]:
    """The cells as text, None for nothing; of structs the path, if without bytes."""
    if pa.types.is_struct(column.type):
        rows = (row or {} for row in column.to_pylist())
        return [r.get("path") or None if r.get("bytes") is None else None for r in rows]
    empty = ("", "nan") if pa.types.is_floating(column.type) else ("",)
    texts = column.cast(pa.string()).to_pylist()
    return [None if text in empty else text for text in texts]


def _side(split: str | None, file: Path) -> str | None:
    if split and split.strip().lower() not in SPLIT_FOLDERS:
        raise DatasetError(
            f"{file}: unknown split {split!r}; known: {', '.join(SPLIT_FOLDERS)}. "
            "Rename it, or leave out 'split_column' to have splits drawn"
        )
    return SPLIT_FOLDERS[split.strip().lower()] if split else None


def _locate(path: str, root: Path) -> tuple[str, tuple[str | None, int | None]]:
    """The uri and the stamp of a path; as it is written if it leaves the root."""
    full = root / path
    try:
        if ".." in full.parts or (path[0] == "/" and not full.is_relative_to(root)):
            full = full.resolve()
            if not full.is_relative_to(root):
                return path, (None, None)
    except _ODD:
        return path, (None, None)
    return str(full), _stamp(full)


def _read(path: Path, roots: set[Path]) -> bytes:
    target = path.resolve()
    if not path.is_absolute() or not any(map(target.is_relative_to, roots)):
        raise PermissionError(
            f"{path} leaves its root {', '.join(sorted(map(str, roots)))}; if that is "
            "meant, set 'root' to a folder above both ('root: /' allows all)"
        )
    if not target.is_file():  # as a pipe is none, on which reading would hang
        raise FileNotFoundError(f"{path}: no such file")
    return target.read_bytes()


def _stamp(file: Path) -> tuple[str | None, int | None]:
    try:
        stat = file.stat()
    except (OSError, ValueError):
        return None, None
    return f"{stat.st_size}:{stat.st_mtime_ns}", stat.st_mtime_ns


def _starts(file: Path) -> list[int]:
    """The first row of every row group, and the number of rows."""
    footer = pq.read_metadata(file)
    groups = map(footer.row_group, range(footer.num_row_groups))
    return list(accumulate((group.num_rows for group in groups), initial=0))


def _images(file: Path, group: int, column: str) -> pa.ChunkedArray:
    with pq.ParquetFile(file, buffer_size=_BUFFER) as table:
        nested = pa.types.is_struct(table.schema_arrow.field(column).type)
        wanted = [f"{column}.bytes" if nested else column]
        batches = table.iter_batches(_BATCH, [group], wanted)
        arrays = [batch.column(0) for batch in batches]
    return pa.chunked_array([a.flatten()[0] if nested else a for a in arrays])

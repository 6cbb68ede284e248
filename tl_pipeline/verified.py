"""Which part files were read through and found whole: a disposable memo of the store.

Reading all pages of an encoder costs a read of all its vectors. A file that was whole
is believed as long as its name, size and times are the same; its ids are kept here, so
that thousands of parts are asked by reading one file.
"""

import hashlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from tl_pipeline.artifacts import Store
from tl_pipeline.part_files import Damaged

# A folder that changes while it is listed is listed again, but not for ever.
_LISTINGS = 100

Version = tuple[int, int, int]


class Looked(NamedTuple):
    """The files of a folder: rows of the whole ones, what is wrong with the others."""

    whole: dict[Path, pa.Table]
    damaged: dict[Path, str]


class Verified:
    """Reads the files ``<prefix>-*.parquet`` of ``folder``, each once.

    ``read`` gives a file's rows of ``schema``, or raises ``Damaged``. With
    ``trust=False`` nothing is believed that was found by another ``Verified``.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        prefix: str,
        schema: pa.Schema,
        read: Callable[[Path], pa.Table],
        *,
        trust: bool = True,
    ) -> None:
        self._store, self._folder, self._prefix = store, folder, prefix
        self._file = memo_file(store, folder.name, prefix)
        self._schema, self._read = schema, read
        self._memo = None if trust else {}

    def look(self) -> Looked:
        """Every file, in the order of the names; files that are new are read."""
        if self._memo is None:
            self._memo = _load(self._file, self._schema)
        for _ in range(_LISTINGS):
            files = self._listed()
            try:
                found, damaged = self._examine(files, self._memo)
            except FileNotFoundError:
                continue  # merged with others meanwhile: list again
            if found.keys() != self._memo.keys():
                self._save(found)
                self._memo = found
            whole = {self._folder / key[0]: rows for key, rows in found.items()}
            return Looked(whole, damaged)
        raise FileNotFoundError(f"{self._folder}: files vanish faster than they open")

    def _examine(
        self,
        files: dict[str, Version],
        memo: dict[tuple[str, Version], pa.Table],
    ) -> tuple[dict[tuple[str, Version], pa.Table], dict[Path, str]]:
        found, damaged = {}, {}
        for key in files.items():
            file = self._folder / key[0]
            try:
                found[key] = memo[key] if key in memo else self._read(file)
            except Damaged as error:
                damaged[file] = str(error)
        return found, damaged

    def _listed(self) -> dict[str, Version]:
        """Name -> version, as of one moment.

        A folder is not listed at one moment: a name that is taken away and its
        replacement may both be missed. So it is listed until two listings agree.
        """
        before = None
        for _ in range(_LISTINGS):
            now = self._list_once()
            if now == before:
                return now
            before = now
        raise FileNotFoundError(f"{self._folder}: files vanish faster than they open")

    def _list_once(self) -> dict[str, Version]:
        found = {}
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith(f"{self._prefix}-") and name[-8:] == ".parquet":
                        try:
                            stat = entry.stat()
                        except FileNotFoundError:
                            continue
                        times = (stat.st_mtime_ns, stat.st_ctime_ns)
                        found[name] = (stat.st_size, *times)
        except FileNotFoundError:
            return {}
        return dict(sorted(found.items()))

    def _save(self, found: dict[tuple[str, Version], pa.Table]) -> None:
        if self._store.planning or not (self._store.root / "store.json").exists():
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        beside = self._file.with_name(f".{self._file.name}.{uuid.uuid4().hex}")
        columns = {
            "name": [name for name, _ in found],
            "bytes": [version[0] for _, version in found],
            "mtime_ns": [version[1] for _, version in found],
            "ctime_ns": [version[2] for _, version in found],
        }
        rows = pa.concat_tables(found.values()) if found else self._schema.empty_table()
        ends = [0]
        for table in found.values():
            ends.append(ends[-1] + len(table))
        for name in self._schema.names:
            values = rows[name].combine_chunks()
            columns[name] = pa.LargeListArray.from_arrays(ends, values)
        sink = pa.BufferOutputStream()
        schema = _memo_schema(self._schema)
        with pa.ipc.new_file(sink, schema) as writer:
            writer.write_table(pa.table(columns, schema))
        data = sink.getvalue().to_pybytes()
        beside.write_bytes(hashlib.sha256(data).digest() + data)
        beside.replace(self._file)


def memo_file(store: Store, folder: str, prefix: str) -> Path:
    """Where is remembered which files of ``folder`` are whole."""
    return store.root / "memo" / "parts" / f"{folder}-{prefix}.arrow"


def _memo_schema(schema: pa.Schema) -> pa.Schema:
    numbers = [(name, pa.int64()) for name in ("bytes", "mtime_ns", "ctime_ns")]
    lists = [(field.name, pa.large_list(field.type)) for field in schema]
    return pa.schema([("name", pa.string()), *numbers, *lists])


def _load(file: Path, schema: pa.Schema) -> dict[tuple[str, Version], pa.Table]:
    """(name, version) -> rows; nothing where the memo cannot be read."""
    try:
        said = file.read_bytes()
        if hashlib.sha256(said[32:]).digest() != said[:32]:
            return {}
        table = pa.ipc.open_file(pa.py_buffer(said)[32:]).read_all()
        table = table.cast(_memo_schema(schema)).combine_chunks()
        numbers = [table[name].to_pylist() for name in table.schema.names[:4]]
        ends, columns = [0], []
        for name in schema.names if len(table) else ():
            lists = table[name].chunk(0)
            ends = lists.offsets.to_pylist()
            columns.append(lists.values)
        rows = pa.Table.from_arrays(columns, schema=schema) if columns else None
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return {}
    return {
        (name, (size, changed, moved)): rows.slice(start, end - start)
        for name, size, changed, moved, start, end in zip(
            *numbers, ends[:-1], ends[1:], strict=True
        )
        if rows is not None
    }

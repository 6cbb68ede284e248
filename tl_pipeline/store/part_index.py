"""Which part files were read through and found whole: a disposable cache of the store.

Reading all pages of an encoder costs a read of all its vectors. A file that was whole
is believed as long as its name, size and times are the same; its ids are kept here, so
that thousands of parts are asked by reading one file. Of a part that is only in an
object store the ids alone are read, until its vectors are needed here.
"""

import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple

import pyarrow as pa

from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.part_files import DamagedPartError

# A folder that changes while it is listed is listed again, but not for ever.
_LISTINGS = 100
_AT_ONCE = 16  # at objects at a time

Version = tuple[int, int, int]
# In the place of a time: the file is not here.
_AWAY = -1


class Scan(NamedTuple):
    """The files of a folder: rows of the whole ones, what is wrong with the others."""

    whole: dict[Path, pa.Table]
    damaged: dict[Path, str]


class PartIndex:
    """Reads the files ``<prefix>-*.parquet`` of ``folder``, each once.

    ``read`` gives a file's rows of ``schema``, or raises ``DamagedPartError``; so does
    ``read_away`` of one by that name that is elsewhere, without which it is fetched.
    With ``trust=False`` nothing is believed that was found by another ``PartIndex``.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        prefix: str,
        schema: pa.Schema,
        read: Callable[[Path], pa.Table],
        *,
        read_away: Callable[[str, IO[bytes]], pa.Table] | None = None,
        trust: bool = True,
    ) -> None:
        self._store, self._folder, self._prefix = store, folder, prefix
        self._file = cache_file(store, folder.name, prefix)
        self._schema, self._read, self._read_away = schema, read, read_away
        self._cached = None if trust else {}

    def scan(self) -> Scan:
        """Every file, in the order of the names; files that are new are read."""
        if self._cached is None:
            self._cached = _load(self._file, self._schema)
        for _ in range(_LISTINGS):
            files = self._listed()
            try:
                found, damaged = self._examine(files, self._cached)
            except FileNotFoundError:
                self._store.mirror.forget(self._folder)
                continue  # merged with others meanwhile: list again
            if found.keys() != self._cached.keys():
                self._save(found)
                self._cached = found
            whole = {self._folder / key[0]: rows for key, rows in found.items()}
            return Scan(whole, damaged)
        raise FileNotFoundError(f"{self._folder}: files vanish faster than they open")

    def _examine(
        self,
        files: dict[str, Version],
        cache: dict[tuple[str, Version], pa.Table],
    ) -> tuple[dict[tuple[str, Version], pa.Table], dict[Path, str]]:
        found, damaged = {}, {}
        for key, rows in self._rows(files, cache):
            if isinstance(rows, DamagedPartError):
                damaged[self._folder / key[0]] = str(rows)
            else:
                found[key] = rows
        return found, damaged

    def _rows(
        self,
        files: dict[str, Version],
        cache: dict[tuple[str, Version], pa.Table],
    ) -> Iterator[tuple[tuple[str, Version], pa.Table | DamagedPartError]]:
        """The rows of each file, or what is wrong with it."""
        new = [key for key in files.items() if key not in cache]
        away = [key for key in new if key[1][1] == _AWAY]
        read: dict[tuple[str, Version], pa.Table | DamagedPartError] = {}
        if away:
            with ThreadPoolExecutor(_AT_ONCE) as threads:
                read = dict(zip(away, threads.map(self._read_one, away), strict=True))
        for key in files.items():
            if key in cache:
                yield key, cache[key]
            elif key in read:
                yield key, read[key]
            else:
                yield key, self._read_one(key)

    def _read_one(self, key: tuple[str, Version]) -> pa.Table | DamagedPartError:
        """Read one file; one that is damaged is fetched once more, if there is more."""
        name, version = key
        file, mirror = self._folder / name, self._store.mirror
        try:
            if self._read_away and version[1] == _AWAY:
                with mirror.open(file) as part:
                    return self._read_away(name, part)
            return self._read(file)
        except DamagedPartError as error:
            if not mirror.fetch_again(file):
                return error
        try:
            return self._read(file)
        except DamagedPartError as error:
            return error

    def _listed(self) -> dict[str, Version]:
        """Name -> version, as of one moment.

        A folder is not listed at one moment: a name that is taken away and its
        replacement may both be missed. So it is listed until two listings agree.
        """
        away = self._listed_away()
        before = None
        for _ in range(_LISTINGS):
            now = self._list_once()
            if now == before:
                return dict(sorted({**away, **now}.items()))
            before = now
        raise FileNotFoundError(f"{self._folder}: files vanish faster than they open")

    def _listed_away(self) -> dict[str, Version]:
        """What is in the object store; without ``read_away`` it comes here now."""
        there = self._store.mirror.listing(self._folder)
        names = [name for name in there if self._matches(name)]
        if self._read_away is None:
            self._store.mirror.fetch([self._folder / name for name in names])
        return {name: (there[name].size or 0, _AWAY, _AWAY) for name in names}

    def _matches(self, name: str) -> bool:
        return name.startswith(f"{self._prefix}-") and name[-8:] == ".parquet"

    def _list_once(self) -> dict[str, Version]:
        found = {}
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    name = entry.name
                    if self._matches(name):
                        try:
                            stat = entry.stat()
                        except FileNotFoundError:
                            continue
                        times = (stat.st_mtime_ns, stat.st_ctime_ns)
                        found[name] = (stat.st_size, *times)
        except FileNotFoundError:
            return {}
        return found

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
        schema = _cache_schema(self._schema)
        with pa.ipc.new_file(sink, schema) as writer:
            writer.write_table(pa.table(columns, schema))
        data = sink.getvalue().to_pybytes()
        beside.write_bytes(hashlib.sha256(data).digest() + data)
        beside.replace(self._file)


def cache_file(store: Store, folder: str, prefix: str) -> Path:
    """Where is remembered which files of ``folder`` are whole."""
    return store.root / "memo" / "parts" / f"{folder}-{prefix}.arrow"


def _cache_schema(schema: pa.Schema) -> pa.Schema:
    numbers = [(name, pa.int64()) for name in ("bytes", "mtime_ns", "ctime_ns")]
    lists = [(field.name, pa.large_list(field.type)) for field in schema]
    return pa.schema([("name", pa.string()), *numbers, *lists])


def _load(file: Path, schema: pa.Schema) -> dict[tuple[str, Version], pa.Table]:
    """(name, version) -> rows; nothing where the cache cannot be read."""
    try:
        said = file.read_bytes()
        if hashlib.sha256(said[32:]).digest() != said[:32]:
            return {}
        table = pa.ipc.open_file(pa.py_buffer(said)[32:]).read_all()
        table = table.cast(_cache_schema(schema)).combine_chunks()
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

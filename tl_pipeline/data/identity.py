"""An image's id is its content; a memo spares re-reading files that did not change."""

import hashlib
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tl_pipeline.sources.entry import TOO_YOUNG_NS, Entry
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.tables import Columns

# Large strings: the uris of many millions of images are more than 2 GB.
_COLUMNS = pa.schema(
    {
        "uri": pa.large_string(),
        "version": pa.large_string(),
        "image_id": pa.large_string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "bytes": pa.int64(),
    }
)
_STEP = 16_384
# Bump when the same bytes must give other facts, or be refused.
_RULES = {b"rules": b"2"}


def image_id(data: bytes) -> str:
    """The first 128 bits of the sha256 of the encoded bytes, in hex."""
    return hashlib.sha256(data).hexdigest()[:32]


class Facts(NamedTuple):
    """What the bytes of an accepted image said: id, size in pixels, size in bytes.

    A text or a vector has no width and height.
    """

    image_id: str
    width: int | None
    height: int | None
    bytes: int


class Memo:
    """Remembers (uri, version) -> Facts for one dataset, from one scan to the next.

    Disposable: losing it costs reading every file once. With ``trust=False`` nothing is
    remembered from before, so that every input is read again. What is known lies in
    columns sorted by a hash of the uri, about 150 bytes a file.
    """

    def __init__(self, store: Store, dataset: str, *, trust: bool = True) -> None:
        self._store = store
        self._file = store.root / "memo" / f"{dataset}.parquet"
        self._hashes, self._known = _nothing()
        if trust and self._file.exists():
            self._hashes, self._known = _load(self._file)
        self._met = np.zeros(len(self._hashes), bool)
        self._new = Columns(_COLUMNS)

    def get(self, entries: Sequence[Entry]) -> list[Facts | None]:
        """The facts of each of ``entries`` whose uri is known in this very version."""
        if not len(self._hashes):
            return [None] * len(entries)
        places = np.searchsorted(self._hashes, _hashed(entry.uri for entry in entries))
        places = places.clip(max=len(self._hashes) - 1)
        # Two uris of one hash are told apart here; the second is never found, but read.
        uris, versions, *facts = (
            column.to_pylist() for column in self._known.take(pa.array(places)).columns
        )
        found = [
            fact if (uri, version) == (entry.uri, entry.version) else None
            for entry, uri, version, fact in zip(
                entries, uris, versions, map(Facts, *facts), strict=True
            )
        ]
        self._met[places[[fact is not None for fact in found]]] = True
        return found

    def put(self, seen: Iterable[tuple[Entry, Facts]], read_ns: int) -> None:
        """Remember what the bytes of entries said that were read after ``read_ns``.

        That is the time in nanoseconds since 1970; files too young then are left out.
        """
        self._new.extend(
            (entry.uri, entry.version, *facts)
            for entry, facts in seen
            if entry.version is not None
            and read_ns - (entry.modified_ns or 0) > TOO_YOUNG_NS
        )

    def save(self) -> None:
        """Write what was seen since the start, if that differs and a store exists.

        Nothing is known any more afterwards: the memory is free.
        """
        known, met, new = self._known, self._met, self._new.table()
        (self._hashes, self._known), self._new = _nothing(), Columns(_COLUMNS)
        self._met = np.zeros(0, bool)
        if (met.all() and not new.num_rows) or self._store.planning:
            return
        if not (self._store.root / "store.json").exists():
            return
        kept = known if met.all() else known.filter(pa.array(met))
        self._file.parent.mkdir(exist_ok=True)
        beside = self._file.with_suffix(f".{uuid.uuid4().hex}")
        pq.write_table(
            pa.Table.from_batches([kept, *new.to_batches()]).replace_schema_metadata(
                _RULES
            ),
            beside,
            row_group_size=131_072,
            write_page_checksum=True,
        )
        beside.replace(self._file)


def _nothing() -> tuple[np.ndarray, pa.RecordBatch]:
    return np.empty(0, np.int64), pa.RecordBatch.from_pylist([], schema=_COLUMNS)


def _load(file: Path) -> tuple[np.ndarray, pa.RecordBatch]:
    """The sorted hashes of the uris, and the rows in their order."""
    try:
        # One open file, column by column: another process may replace it meanwhile.
        with pq.ParquetFile(file, page_checksum_verification=True) as parts:
            if parts.schema_arrow.metadata != _RULES:
                return _nothing()
            uris = parts.read(["uri"])["uri"]
            hashes = np.concatenate(
                [
                    _hashed(uris.slice(start, _STEP).to_pylist())
                    for start in range(0, max(len(uris), 1), _STEP)
                ]
            )
            del uris
            order = np.argsort(hashes, kind="stable")
            columns = [_column(parts, field, order) for field in _COLUMNS]
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return (
            _nothing()
        )  # what cannot be read is forgotten; the files are read instead
    return hashes[order], pa.RecordBatch.from_arrays(columns, schema=_COLUMNS)


def _column(parts: pq.ParquetFile, field: pa.Field, order: np.ndarray) -> pa.Array:
    column = parts.read([field.name])[field.name].cast(field.type)
    sized = field.name in {"width", "height"}
    if (column.null_count and not sized) or len(column) != len(order):
        raise ValueError(f"{field.name} is not whole")
    column.validate(full=True)
    return column.combine_chunks().take(pa.array(order))


def _hashed(uris: Iterable[str]) -> np.ndarray:
    return np.fromiter(map(hash, uris), np.int64)

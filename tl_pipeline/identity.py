"""An image's id is its content; a memo spares re-reading files that did not change."""

import hashlib
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tl_pipeline.artifacts import Store
from tl_pipeline.sources.entry import Entry

# A file changed again within the clock tick of its last change keeps its modification
# time, so a file this young is not trusted to a memo (git calls it "racily clean").
_TOO_YOUNG_NS = 2_000_000_000

_COLUMNS = pa.schema(
    {
        "uri": pa.string(),
        "version": pa.string(),
        "image_id": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "bytes": pa.int64(),
    }
)


def image_id(data: bytes) -> str:
    """The first 128 bits of the sha256 of the encoded bytes, in hex."""
    return hashlib.sha256(data).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Facts:
    """What the bytes of an accepted image said: id, size in pixels, size in bytes."""

    image_id: str
    width: int
    height: int
    bytes: int


class Memo:
    """Remembers (uri, version) -> Facts for one dataset.

    Disposable: losing it costs reading every file once. With ``trust=False`` nothing is
    remembered from before, so that every input is read again.
    """

    def __init__(self, store: Store, dataset: str, *, trust: bool = True) -> None:
        self._store = store
        self._file = store.root / "memo" / f"{dataset}.parquet"
        self._known: dict[str, tuple[str, Facts]] = {}
        self._seen: dict[str, tuple[str, Facts]] = {}
        if trust and self._file.exists():
            self._known = _load(self._file)

    def get(self, entry: Entry) -> Facts | None:
        """The facts of ``entry`` if its uri is known in this very version."""
        known = self._known.get(entry.uri)
        if known is None or entry.version is None or known[0] != entry.version:
            return None
        self._seen[entry.uri] = known
        return known[1]

    def put(self, entry: Entry, facts: Facts) -> None:
        """Remember what the bytes of ``entry`` said, unless the file is too young."""
        age = time.time_ns() - (entry.modified_ns or 0)
        if entry.version is not None and age > _TOO_YOUNG_NS:
            self._seen[entry.uri] = (entry.version, facts)

    def save(self) -> None:
        """Write what was seen since the start, if that differs and a store exists."""
        if self._seen == self._known or self._store.planning:
            return
        if not (self._store.root / "store.json").exists():
            return
        rows = [
            (uri, version, facts.image_id, facts.width, facts.height, facts.bytes)
            for uri, (version, facts) in self._seen.items()
        ]
        arrays = zip(*rows, strict=True) if rows else ([] for _ in _COLUMNS)
        table = pa.Table.from_arrays(
            [
                pa.array(values, kind)
                for values, kind in zip(arrays, _COLUMNS.types, strict=True)
            ],
            schema=_COLUMNS,
        )
        self._file.parent.mkdir(exist_ok=True)
        beside = self._file.with_suffix(f".{uuid.uuid4().hex}")
        pq.write_table(table, beside, write_page_checksum=True)
        beside.replace(self._file)


def _load(file: Path) -> dict[str, tuple[str, Facts]]:
    try:
        columns = pq.read_table(file, page_checksum_verification=True)
        columns = columns.select(_COLUMNS.names).cast(_COLUMNS)
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return {}  # a memo that cannot be read is forgotten; the files are read instead
    uri, version, *facts = (column.to_pylist() for column in columns.columns)
    return {
        u: (v, Facts(*f))
        for u, v, f in zip(uri, version, zip(*facts, strict=True), strict=True)
    }

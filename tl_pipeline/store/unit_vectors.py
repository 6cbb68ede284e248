"""The embeddings of an encoder as unit vectors in a file that is mapped, not read.

``memo/unit_vectors/<key>-*.f32`` is disposable: it is made of the parts when it is
first asked for, and the rows of new parts are appended. ``<key>.arrow`` names it, the
ids of its rows, and the parts that it was made of by name, size and times: it is
believed only where those are the parts that are there.
"""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

import contextlib
import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tl_pipeline.errors import DamagedArtifact
from tl_pipeline.store import duplicate_rows
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.files import write_atomically
from tl_pipeline.store.part_files import PART

_CELLS = 1 << 22  # of cosines at a time, and four times as many values
_QUERIES = 256  # at a time
# How far apart the rounding of sums may put equal cosines.
_ROUNDING = 1e-5
_TRIES = 20
Near = list[tuple[str, float]]


class UnitVectors:
    """The unit vectors of images, a row of ``vectors`` (n, width) each, and their ids.

    ``ids`` is null where a row does not count: its part is gone, another row has the
    image, or the embedding is zero and has no direction. ``state`` tells the parts that
    they were made of from any others.
    """

    def __init__(self, ids: pa.Array, vectors: np.ndarray, state: str = "") -> None:
        self.ids, self.vectors, self.state = ids, vectors, state

    def find(self, image_ids: Sequence[str]) -> np.ndarray:
        """The row of each of ``image_ids``, -1 where it has none: int64 (n,)."""
        place = pc.index_in(self.ids, pa.array(image_ids, pa.string()))
        rows = np.flatnonzero(place.is_valid().to_numpy(zero_copy_only=False))
        found = np.full(len(image_ids), -1)
        found[place.drop_null().to_numpy()] = rows
        return found

    def among(self, image_ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Which rows are of ``image_ids``: bool (n,)."""
        return pc.is_in(self.ids, image_ids).to_numpy(zero_copy_only=False)

    def nearest(
        self, queries: np.ndarray, k: int, among: np.ndarray | None = None
    ) -> list[Near]:
        """The ``k`` images most like each query, by exact cosine, the most alike first.

        Those that are alike to the last digit are sorted by id.

        Args:
            queries: (q, width), of any length; one without a direction is like none.
            k: how many; fewer where there are no more.
            among: the rows that may be found, bool (n,); None is all that count.

        Returns:
            (image id, cosine) of each, for each query.
        """
        if among is None and self.ids.null_count:
            among = self.ids.is_valid().to_numpy(zero_copy_only=False)
        found: list[Near] = [[] for _ in queries]
        for start in range(0, len(queries) if k > 0 else 0, _QUERIES):
            some = unit(queries[start : start + _QUERIES])
            directed = np.flatnonzero(some.any(axis=1))
            if not len(directed):
                continue
            several = self._candidates(some[directed], k, among)
            names = iter(self.ids.take(pa.array(np.concatenate(several))).to_pylist())
            for at, rows in zip(directed, several, strict=True):
                cosines = self._cosines(some[at], rows)
                pairs = zip(islice(names, len(rows)), cosines, strict=True)
                found[start + at] = sorted(pairs, key=lambda p: (-p[1], p[0]))[:k]
        return found

    def pairs(self, least: float, among: np.ndarray) -> list[tuple[str, str, float]]:
        """The ids and cosine of pairs whose cosine is at least ``least``.

        Args:
            least: -1 to 1.
            among: the rows of which pairs are made, bool (n,).

        Returns:
            The lesser id of a pair comes first.
        """
        rows = np.flatnonzero(among)
        ids = self.ids.take(pa.array(rows))
        order = pc.array_sort_indices(ids).to_numpy()
        rows, names = rows[order], ids.take(pa.array(order)).to_pylist()
        found = []
        for start in range(0, len(rows), _QUERIES):
            queries = self.vectors[rows[start : start + _QUERIES]]
            for other in range(start, len(rows), _CELLS // _QUERIES):
                block = self.vectors[rows[other : other + _CELLS // _QUERIES]]
                near = np.argwhere(queries @ block.T >= least - _ROUNDING)
                near += (start, other)
                near = near[near[:, 0] < near[:, 1]]
                for first in range(0, len(near), _QUERIES):
                    some = near[first : first + _QUERIES]
                    a, b = (self.vectors[at].astype(np.float64) for at in rows[some.T])
                    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
                    cosines = (np.einsum("ij,ij->i", a, b) / lengths).astype(np.float32)
                    close = cosines >= np.float32(least)
                    pairs = zip(
                        some[close].tolist(), cosines[close].tolist(), strict=True
                    )
                    found += [(names[i], names[j], cosine) for (i, j), cosine in pairs]
        return found

    def _candidates(
        self, queries: np.ndarray, k: int, among: np.ndarray | None
    ) -> list[np.ndarray]:
        """The rows that may be among the k nearest of each of ``queries``."""
        places = np.arange(len(queries))
        asked, rows = np.empty(0, np.int64), np.empty(0, np.int64)
        values, least = np.empty(0, np.float32), np.full(len(queries), -2, np.float32)
        width = max(1, self.vectors.shape[1])
        step = max(1, min(_CELLS // max(1, len(queries)), 4 * _CELLS // width))
        for start in range(0, len(self.vectors), step):
            block = self.vectors[start : start + step]
            # of one query as a matrix times a vector, which is faster
            one = len(queries) == 1
            cosines = (block @ queries[0])[None] if one else queries @ block.T
            if among is not None:
                cosines += np.where(among[start : start + step], 0, -np.inf).astype("f")
            if start == 0 and 0 < k <= len(block):
                least = np.maximum(least, _largest(cosines, k) - _ROUNDING)
            new = np.flatnonzero(cosines >= least[:, None])
            asked = np.concatenate([asked, new // len(block)])
            rows = np.concatenate([rows, new % len(block) + start])
            values = np.concatenate([values, cosines.reshape(-1)[new]])
            order = np.lexsort((-values, asked))
            asked, rows, values = asked[order], rows[order], values[order]
            first, end = np.searchsorted(asked, [places, places + 1])
            several = np.flatnonzero(end - first >= max(1, k))
            kth = values[first[several] + k - 1]
            least[several] = np.maximum(least[several], kth - _ROUNDING)
            keep = values >= least[asked]
            asked, rows, values = asked[keep], rows[keep], values[keep]
        return np.split(rows, np.searchsorted(asked, places[1:]))

    def _cosines(self, query: np.ndarray, rows: np.ndarray) -> list[float]:
        """Those of ``query`` and ``rows``, the same for equal vectors."""
        if not len(rows):
            return []
        found, query = self.vectors[rows].astype(np.float64), query.astype(np.float64)
        lengths = np.sqrt(np.einsum("ij,ij->i", found, found) * (query @ query))
        return (found @ query / lengths).astype(np.float32).tolist()


class SideBySide:
    """The unit vectors of the same images under several encoders, as one longer each.

    A cosine is the mean of those under each. Rows are read when they are asked for.
    """

    def __init__(self, blocks: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """``blocks`` are unit vectors, and which of their rows count."""
        self._blocks = blocks
        width = sum(vectors.shape[1] for vectors, _ in blocks)
        self.shape = (len(blocks[0][1]), width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: "slice | np.ndarray") -> np.ndarray:
        found = [vectors[which[rows]] for vectors, which in self._blocks]
        return np.hstack(found) / np.float32(np.sqrt(len(found)))


def side_by_side(every: Sequence[UnitVectors], image_ids: Sequence[str]) -> UnitVectors:
    """Those of ``image_ids`` that all of ``every`` have."""
    places = [one.find(image_ids) for one in every]
    there = np.all([place >= 0 for place in places], axis=0)
    ids = pa.array(image_ids, pa.string()).filter(pa.array(there))
    blocks = [(o.vectors, at[there]) for o, at in zip(every, places, strict=True)]
    rows = cast("np.ndarray", SideBySide(blocks))  # they are sliced and taken alike
    return UnitVectors(ids, rows)


def _largest(values: np.ndarray, k: int) -> np.ndarray:
    """The k-th largest value of each row."""
    return values.max(axis=1) if k == 1 else np.partition(values, -k, axis=1)[:, -k]


def unit(vectors: np.ndarray) -> np.ndarray:
    """``vectors`` (n, width) with the length 1 as float32; zero where none has one."""
    vectors = np.asarray(vectors, np.float32)
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    directed = np.isfinite(lengths) & (lengths > 0)
    units = vectors / np.where(directed, lengths, 1)[:, None]
    units[~directed] = 0
    return units


def opened(
    store: Store, encoder_key: str, before: UnitVectors | None = None
) -> UnitVectors:
    """The unit vectors of all that is embedded by an encoder; made if they are not.

    They are those that were opened ``before`` if the parts are still the same. Of a
    store that cannot be written to, they are made in a temporary folder.

    Raises:
        DamagedArtifact: a part cannot be read; it has been set aside.
    """
    folder = EmbeddingFolder(store, encoder_key)
    if store.mirror.url:
        folder.gather()
    with contextlib.suppress(FileNotFoundError):
        versions = _versions(folder.path)
        if before and before.state == _state(versions):
            return before
        return _mapped(_folder(store), encoder_key, versions)
    if os.access(store.root, os.W_OK):
        _folder(store).mkdir(parents=True, exist_ok=True)
        with store.lock(f"unit-vectors-{encoder_key}"):
            return _made(folder, _folder(store))
    with tempfile.TemporaryDirectory(prefix="tl-unit-vectors-") as place:
        return _made(folder, Path(place))  # what is mapped outlives its name


def remove(store: Store, encoder_key: str) -> None:
    """Delete the unit vectors of an encoder."""
    for file in _folder(store).glob(f"*{encoder_key}*"):
        file.unlink(missing_ok=True)


# Of a part: its name, size and times, which tell it from another of its name.
_Version = tuple[str, int, int, int]


@dataclass
class _Made:
    """What was written: ``values`` names the file, ``rows`` has those of each part.

    ``directionless`` are rows of the file whose embedding is zero, ``state`` tells the
    parts that were there.
    """

    values: str
    state: str = ""
    width: int = 0
    rows: dict[_Version, int] = field(default_factory=dict)
    directionless: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return sum(self.rows.values())

    @property
    def bytes(self) -> int:
        return self.length * self.width * 4


def _folder(store: Store) -> Path:
    return store.root / "memo" / "unit_vectors"


def _versions(folder: Path) -> list[_Version]:
    files = sorted(folder.glob(f"{PART}-*.parquet"))
    return [
        (f.name, (s := f.stat()).st_size, s.st_mtime_ns, s.st_ctime_ns) for f in files
    ]


def _state(versions: Sequence[_Version]) -> str:
    """What tells these parts from any others."""
    return hashlib.sha256(repr(list(versions)).encode()).hexdigest()[:32]


def _mapped(place: Path, key: str, versions: Sequence[_Version]) -> UnitVectors:
    """What was made of these very parts.

    Raises:
        FileNotFoundError: there is nothing, or it was made of others.
    """
    made, ids = _read(place, key)
    state, shape = _state(versions), (made.length, made.width)
    if made.state != state:
        raise FileNotFoundError
    if not made.length:
        return UnitVectors(ids, np.empty(shape, np.float32), state)
    values = np.memmap(place / made.values, np.float32, "r", shape=shape)
    return UnitVectors(ids, np.asarray(values), state)


def _read(place: Path, key: str) -> tuple[_Made, pa.Array]:
    """What ``_publish`` wrote, and the ids of all rows.

    Raises:
        FileNotFoundError: there is nothing, or a file is not whole.
    """
    try:
        with pa.memory_map(str(place / f"{key}.arrow")) as mapped:
            table = pa.ipc.open_file(mapped).read_all()
        told = json.loads((table.schema.metadata or {})[b"made"])
        rows = {tuple(version): count for *version, count in told.pop("rows")}
        made = _Made(rows=rows, **told)
    except (ValueError, KeyError, TypeError) as error:
        raise FileNotFoundError from error
    if (place / made.values).stat().st_size < made.bytes:
        raise FileNotFoundError
    return made, table["image_id"].combine_chunks()


def _made(folder: EmbeddingFolder, place: Path) -> UnitVectors:
    """Make the unit vectors of ``folder`` what its parts are, in ``place``."""
    key = folder.encoder_key
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):
            versions = _versions(folder.path)
            _follow(folder, place, versions)
            if _versions(folder.path) == versions:  # else parts were merged meanwhile
                return _mapped(place, key, versions)
    raise DamagedArtifact(f"{folder.path}: parts vanish while they are read")


def _follow(folder: EmbeddingFolder, place: Path, versions: Sequence[_Version]) -> None:
    """Append the rows of new parts, or begin anew where most rows would be of none.

    Raises:
        DamagedArtifact: a part cannot be read; it has been set aside.
        FileNotFoundError: a part was merged with others meanwhile.
    """
    key = folder.encoder_key
    parts = folder.parts().whole
    files = ((version, folder.path / version[0]) for version in versions)
    there = {version: parts[file] for version, file in files if file in parts}
    made = _Made(f"{key}-{uuid.uuid4().hex}.f32")
    with contextlib.suppress(FileNotFoundError):
        before, _ = _read(place, key)
        kept = sum(rows for version, rows in before.rows.items() if version in there)
        made = before if 2 * kept >= before.length else made
    with (place / made.values).open("ab") as values:
        values.truncate(made.bytes)  # of more, which a kill left
        for version in there:
            if version not in made.rows:
                _append(folder, version, made, values)
        values.flush()
        os.fsync(values.fileno())
    made.state = _state(versions)
    _publish(place / f"{key}.arrow", made, there)
    for file in place.glob(f"*{key}*"):
        if file.name not in (made.values, f"{key}.arrow"):
            file.unlink(missing_ok=True)


def _append(
    folder: EmbeddingFolder, version: _Version, made: _Made, values: IO[bytes]
) -> None:
    """Append the rows of a part."""
    start = made.length
    made.rows[version] = 0
    for vectors in folder.blocks(folder.path / version[0]):
        units = unit(vectors)
        first = start + made.rows[version]
        made.directionless += (np.flatnonzero(~units.any(axis=1)) + first).tolist()
        made.rows[version] += len(units)
        made.width = units.shape[1]
        values.write(units.data)


def _publish(file: Path, made: _Made, there: Mapping[_Version, pa.Table]) -> None:
    """Write to ``file`` what was ``made``, and the ids of all rows.

    ``there`` has the ids of each part that counts.
    """
    twice = duplicate_rows.find({Path(version[0]): there[version] for version in there})
    every = [pa.array([], pa.string())]
    for version, rows in made.rows.items():
        if version in there:
            ids = there[version]["image_id"].combine_chunks()
            every.append(_without(ids, twice.get(Path(version[0]), ())))
        else:
            every.append(pa.nulls(rows, pa.string()))
    ids = _without(pa.concat_arrays(every), made.directionless)
    rows = [[*version, rows] for version, rows in made.rows.items()]
    told = json.dumps(vars(made) | {"rows": rows})
    table = pa.table({"image_id": ids}).replace_schema_metadata({"made": told})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    write_atomically(file, sink.getvalue().to_pybytes())


def _without(ids: pa.Array, rows: Sequence[int] | np.ndarray) -> pa.Array:
    """``ids``, null in these ``rows``."""
    if not len(rows):
        return ids
    left = np.ones(len(ids), bool)
    left[rows] = False
    return pc.if_else(pa.array(left), ids, None)

"""The embeddings of an encoder as unit vectors in a file that is mapped, not read.

``memo/unit_vectors/<key>-<state>`` is disposable: it is made of the parts when it is
first asked for. The state tells the parts from any others, so that one of other parts
is not found; beside the values lie the ids of their rows.
"""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

import contextlib
import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tl_pipeline.errors import DamagedArtifact
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.files import publish
from tl_pipeline.store.part_files import PART

_CELLS = 1 << 22  # of cosines at a time
_QUERIES = 256  # at a time
# How far apart the rounding of sums may put equal cosines.
_ROUNDING = 1e-5
_TRIES = 20
Near = list[tuple[str, float]]


class UnitVectors:
    """The unit vectors of n images, ``vectors`` (n, width), and their ``ids``.

    An embedding that is zero has no direction and is left out. ``state`` tells the
    parts that they were made of from any others.
    """

    def __init__(self, ids: pa.Array, vectors: np.ndarray, state: str) -> None:
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
            among: the rows that count, bool (n,); None is all.

        Returns:
            (image id, cosine) of each, for each query.
        """
        found: list[Near] = []
        for start in range(0, len(queries), _QUERIES):
            some = unit(queries[start : start + _QUERIES])
            rows = self._candidates(some, k, among)
            found += [self._sorted(*one, k) for one in zip(some, rows, strict=True)]
        return found

    def _candidates(
        self, queries: np.ndarray, k: int, among: np.ndarray | None
    ) -> list[np.ndarray]:
        """The rows that may be among the k nearest of each of ``queries``."""
        best = [(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries]
        least = np.full(len(queries), -2, np.float32)
        step = max(1, _CELLS // max(1, len(queries)))
        for start in range(0, len(self.vectors), step):
            block = self.vectors[start : start + step]
            # of one query as a matrix times a vector, which is faster
            one = len(queries) == 1
            cosines = (block @ queries[0])[None] if one else queries @ block.T
            if among is not None:
                cosines[:, ~among[start : start + step]] = -np.inf
            for query in np.flatnonzero(cosines.max(axis=1) >= least):
                rows, values = best[query]
                here = cosines[query]
                if len(rows) < k < len(here):  # else all of the first block are new
                    kth = np.partition(here, -k)[-k] - _ROUNDING
                    least[query] = max(least[query], kth)
                new = np.flatnonzero(here >= least[query])
                rows = np.concatenate([rows, new + start])
                values = np.concatenate([values, here[new]])
                if len(values) > k:
                    least[query] = np.partition(values, -k)[-k] - _ROUNDING
                    keep = values >= least[query]
                    rows, values = rows[keep], values[keep]
                best[query] = rows, values
        return [rows for rows, _ in best]

    def _sorted(self, query: np.ndarray, rows: np.ndarray, k: int) -> Near:
        """The k of ``rows`` nearest to ``query``; equal vectors have equal cosines."""
        if not query.any() or not len(rows):
            return []
        found, query = self.vectors[rows].astype(np.float64), query.astype(np.float64)
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(query)
        cosines = (found @ query / lengths).astype(np.float32).tolist()
        ids = self.ids.take(pa.array(rows)).to_pylist()
        pairs = sorted(zip(ids, cosines, strict=True), key=lambda p: (-p[1], p[0]))
        return pairs[:k]


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

    They are those that were opened ``before`` if the parts are still the same.

    Raises:
        DamagedArtifact: a part cannot be read; it has been set aside.
    """
    folder = EmbeddingFolder(store, encoder_key)
    if store.mirror.url:
        folder.gather()
    for _ in range(_TRIES):
        state = _state(folder.path)
        if before and before.state == state:
            return before
        with _place(store) as place:
            file = place / f"{encoder_key}-{state}"
            with contextlib.suppress(FileNotFoundError):
                return _mapped(file, state)
            with contextlib.suppress(FileNotFoundError):
                _write(folder, file)
                if _state(folder.path) == state:  # else parts were merged meanwhile
                    remove(store, encoder_key, but=state)
                    return _mapped(file, state)
    raise DamagedArtifact(f"{folder.path}: parts vanish while they are read")


def remove(store: Store, encoder_key: str, but: str | None = None) -> None:
    """Delete the unit vectors of an encoder, other than those of the state ``but``."""
    for file in _folder(store).glob(f"*{encoder_key}-*"):
        if but is None or but not in file.name:
            file.unlink(missing_ok=True)


def _folder(store: Store) -> Path:
    return store.root / "memo" / "unit_vectors"


@contextlib.contextmanager
def _place(store: Store) -> Iterator[Path]:
    """Where unit vectors lie; a temporary folder if the store cannot be written to.

    What was mapped stays readable when its name is gone.
    """
    if os.access(store.root, os.W_OK):
        _folder(store).mkdir(parents=True, exist_ok=True)
        yield _folder(store)
    else:
        with tempfile.TemporaryDirectory(prefix="tl-unit-vectors-") as folder:
            yield Path(folder)


def _state(folder: Path) -> str:
    """What tells the parts in ``folder`` from any others."""
    files = sorted(folder.glob(f"{PART}-*.parquet"))
    told = [
        (f.name, (s := f.stat()).st_size, s.st_mtime_ns, s.st_ctime_ns) for f in files
    ]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:32]


def _mapped(file: Path, state: str) -> UnitVectors:
    """What ``_write`` wrote.

    Raises:
        FileNotFoundError: it is not there.
    """
    with pa.memory_map(str(file.with_suffix(".ids"))) as mapped:
        ids = pa.ipc.open_file(mapped).read_all()["image_id"].combine_chunks()
    if not len(ids):
        return UnitVectors(ids, np.empty((0, 0), np.float32), state)
    values = np.memmap(file.with_suffix(".f32"), np.float32, "r")
    return UnitVectors(ids, np.asarray(values).reshape(len(ids), -1), state)


def _write(folder: EmbeddingFolder, file: Path) -> None:
    """Write the vectors of ``folder``, row by row, and then their ids."""
    ids: list[str] = []
    with _published(file.with_suffix(".f32")) as beside, beside.open("wb") as values:
        for some, vectors in folder.blocks():
            units = unit(vectors)
            directed = units.any(axis=1)
            if not directed.all():
                units = units[directed]
                ids += [some[row] for row in np.flatnonzero(directed)]
            else:
                ids += some
            units.tofile(values)
    table = pa.table({"image_id": pa.array(ids, pa.string())})
    with (
        _published(file.with_suffix(".ids")) as beside,
        pa.ipc.new_file(str(beside), table.schema) as writer,
    ):
        writer.write_table(table)


@contextlib.contextmanager
def _published(file: Path) -> Iterator[Path]:
    """Where to write ``file``, which is there once that went well."""
    beside = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        yield beside
        publish(beside, file)
    finally:
        beside.unlink(missing_ok=True)

"""The nearest images, by unit vectors that are mapped: what SQL and Python ask.

In a connection of ours they take the place of the macros named ``_rows``, which read
the parts in any other DuckDB and give the same rows.
"""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tl_pipeline.errors import InvalidSpec, TransferLearningError, UnknownName
from tl_pipeline.query import macros
from tl_pipeline.store import unit_vectors
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.unit_vectors import Near, UnitVectors

ASKED = re.compile(
    r"\b(?:neighbours|nearest_to|classify_knn|duplicates|\w+_rows)\s*\(", re.IGNORECASE
)
_ROWS: Any = "STRUCT(image_id VARCHAR, similarity FLOAT)[]"
_PAIRS: Any = "STRUCT(image_id VARCHAR, near_id VARCHAR, {} FLOAT)[]"
_MACRO = """
CREATE TEMP MACRO {name}({what}, {number}, encoder) AS TABLE
SELECT unnest(mapped_{name}({what}::{kind}, {number}::{scalar}, encoder::VARCHAR),
    recursive := true)
"""


class Neighbours:
    """Finds the nearest of the images that a dataset of ``store`` has now."""

    def __init__(self, store: Store, connection: duckdb.DuckDBPyConnection) -> None:
        """``connection`` is one to the SQL catalogue."""
        rows = connection.sql("FROM encoders").to_arrow_table().to_pylist()
        asked = "SELECT dataset, image_id, split = 'test' AS test FROM images"
        images = connection.sql(asked).to_arrow_table()
        self.fault: TransferLearningError | None = None
        self._store, self._encoders = store, macros.named(rows)
        self._images = images.combine_chunks()
        self._opened: dict[str, tuple[UnitVectors, np.ndarray]] = {}

    def encoder(self, name: str | None) -> Mapping[str, Any]:
        """The row of the encoder that goes by ``name``; None is the only trained one.

        Raises:
            UnknownName: it has no embeddings here.
            InvalidSpec: there are several trained ones, or none.
        """
        by_key = {row["encoder_key"]: row for row in self._encoders.values()}
        if name is None:
            trained = [row for row in by_key.values() if not row["control"]]
            if len(trained) == 1:
                return trained[0]
            names = ", ".join(sorted(row["encoder"] for row in trained))
            raise InvalidSpec(
                f"which encoder? Name one of {names}"
                if names
                else "no encoder has embeddings yet; `tl run DATASET` makes them"
            )
        if name not in self._encoders:
            raise UnknownName("encoder", name, self._encoders.keys() - by_key.keys())
        return self._encoders[name]

    def vectors(self, encoder: str | None) -> tuple[UnitVectors, np.ndarray]:
        """The unit vectors of an encoder, and which of their rows count."""
        key = self.encoder(encoder)["encoder_key"]
        before, among = self._opened.get(key, (None, np.empty(0, bool)))
        found = unit_vectors.opened(self._store, key, before)
        if found is not before:
            among = found.among(self._images["image_id"])
            self._opened[key] = found, among
        return found, among

    def nearest_to(
        self,
        vectors: np.ndarray,
        k: int,
        encoder: str | None = None,
        but: Sequence[str] | None = None,
    ) -> list[Near]:
        """The ``k`` images nearest to each of ``vectors`` (n, width) by cosine.

        ``but`` has an id for each, of an image that does not count.

        Raises:
            InvalidSpec: they are not as long as embeddings; see ``encoder``.
        """
        found, among = self.vectors(encoder)
        if found.vectors.size and vectors.shape[1] != found.vectors.shape[1]:
            raise InvalidSpec(
                f"the vector has {vectors.shape[1]} values, embeddings of this encoder "
                f"have {found.vectors.shape[1]}"
            )
        if but is None:
            return found.nearest(vectors, k, among)
        near = zip(but, found.nearest(vectors, k + 1, among), strict=True)
        return [[one for one in some if one[0] != own][:k] for own, some in near]

    def neighbours(
        self, image_ids: Sequence[str], k: int, encoder: str | None = None
    ) -> list[Near]:
        """The ``k`` images nearest to each stored one, without itself.

        Raises:
            InvalidSpec: one has no embedding; see ``encoder``.
        """
        found, _ = self.vectors(encoder)
        rows = found.find(image_ids)
        for image_id, row in zip(image_ids, rows, strict=True):
            if row < 0:
                raise InvalidSpec(f"no embedding of image {image_id} by this encoder")
        return self.nearest_to(found.vectors[rows], k, encoder, image_ids)

    def knn(self, dataset: str, k: int, encoder: str | None = None) -> pa.Table:
        """The ``k`` images nearest to each of test, of train and validation.

        ``image_id, near_id, similarity`` of images of ``dataset``.
        """
        found, _ = self.vectors(encoder)
        images = self._images.filter(pc.equal(self._images["dataset"], dataset))
        test = images.filter(images["test"])["image_id"]
        among = found.among(images.filter(pc.invert(images["test"]))["image_id"])
        rows = np.flatnonzero(found.among(test))
        near = found.nearest(found.vectors[rows], k, among)
        asked = found.ids.take(pa.array(rows)).to_pylist()
        pairs = [(o, *one) for o, some in zip(asked, near, strict=True) for one in some]
        return _table(pairs, ("image_id", "near_id", "similarity"))

    def pairs(self, dataset: str, least: float, encoder: str | None = None) -> pa.Table:
        """The pairs of images of ``dataset`` whose cosine is at least ``least``.

        ``image_id, near_id, cosine``, the lesser id first.
        """
        found, _ = self.vectors(encoder)
        images = self._images.filter(pc.equal(self._images["dataset"], dataset))
        pairs = found.pairs(least, found.among(images["image_id"]))
        return _table(pairs, ("image_id", "near_id", "cosine"))

    def put_into(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Let ``connection`` find neighbours by ``self``; a fault is kept in it."""

        def to_vector(vector: Sequence[float], k: int, encoder: str) -> pa.Table:
            rows = np.array(vector, np.float32)[None]
            (near,) = self.nearest_to(rows, k, encoder)
            return _table(near, ("image_id", "similarity"))

        def to_image(image_id: str, k: int, encoder: str) -> pa.Table:
            (near,) = self.neighbours([image_id], k, encoder)
            return _table(near, ("image_id", "similarity"))

        names, k = ("dataset", "VARCHAR"), ("k", "BIGINT")
        for name, function, (what, kind), (number, scalar), rows in (
            ("nearest_rows", to_vector, ("vector", "FLOAT[]"), k, _ROWS),
            ("neighbour_rows", to_image, ("image_id", "VARCHAR"), k, _ROWS),
            ("knn_rows", self.knn, names, k, _PAIRS.format("similarity")),
            (
                "pair_rows",
                self.pairs,
                names,
                ("similarity", "DOUBLE"),
                _PAIRS.format("cosine"),
            ),
        ):
            taken: Any = [kind, scalar, "VARCHAR"]
            by_column: Any = "arrow"
            mapped = self._by_column(function)
            connection.create_function(
                f"mapped_{name}", mapped, taken, rows, type=by_column
            )
            told = {"what": what, "kind": kind, "number": number, "scalar": scalar}
            connection.execute(_MACRO.format(name=name, **told))

    def _by_column(self, find: Callable[..., pa.Table]) -> Callable[..., pa.Array]:
        """``find`` for columns of its arguments: the rows of each as a list."""

        def found(
            what: pa.ChunkedArray, number: pa.ChunkedArray, encoder: pa.ChunkedArray
        ) -> pa.Array:
            asked = (column.to_pylist() for column in (what, number, encoder))
            try:
                tables = [find(*one) for one in zip(*asked, strict=True)]
            except TransferLearningError as fault:
                self.fault = fault
                raise
            ends = np.cumsum([0, *map(len, tables)])
            rows = pa.concat_tables(tables)
            columns = [column.combine_chunks() for column in rows.columns]
            structs = pa.StructArray.from_arrays(columns, rows.column_names)
            return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), structs)

        return found


def _table(rows: Sequence[tuple[Any, ...]], names: Sequence[str]) -> pa.Table:
    """``rows`` of image ids, and of a cosine, which is the last."""
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    kinds = [pa.string()] * (len(names) - 1) + [pa.float32()]
    arrays = [pa.array(c, kind) for c, kind in zip(columns, kinds, strict=True)]
    return pa.table(arrays, names)

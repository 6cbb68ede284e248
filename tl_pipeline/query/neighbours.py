"""The nearest images, by unit vectors that are mapped: what SQL and Python ask.

In a connection of ours they take the place of the macros ``neighbours`` and
``nearest_to``, which read the parts in any other DuckDB and give the same rows.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import duckdb
import numpy as np

from tl_pipeline.errors import InvalidSpec, TransferLearningError, UnknownName
from tl_pipeline.query import macros
from tl_pipeline.store import unit_vectors
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.unit_vectors import Near, UnitVectors

ASKED = re.compile(r"\b(?:neighbours|nearest_to)\s*\(", re.IGNORECASE)
_ROWS: Any = "STRUCT(image_id VARCHAR, similarity FLOAT)[]"
_MACRO = """
CREATE TEMP MACRO {name}({what}, k, encoder) AS TABLE
SELECT i.dataset, n.near.image_id, i.uri, i.label, i.split, n.near.similarity
FROM (
    SELECT unnest({name}_rows({what}::{kind}, k::BIGINT, encoder::VARCHAR)) AS near
) AS n
JOIN images AS i ON i.image_id = n.near.image_id
ORDER BY n.near.similarity DESC, n.near.image_id, i.dataset
"""


class Neighbours:
    """Finds the nearest of the images that a dataset of ``store`` has now."""

    def __init__(self, store: Store, connection: duckdb.DuckDBPyConnection) -> None:
        """``connection`` is one to the SQL catalogue."""
        rows = connection.sql("FROM encoders").to_arrow_table().to_pylist()
        images = connection.sql("SELECT image_id FROM images").to_arrow_table()
        self.fault: TransferLearningError | None = None
        self._store, self._encoders = store, macros.named(rows)
        self._images = images["image_id"].combine_chunks()
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
            among = found.among(self._images)
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

    def put_into(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Let ``connection`` find neighbours by ``self``; a fault is kept in it."""

        def to_vector(vector: Sequence[float], k: int, encoder: str) -> Any:
            rows = np.array(vector, np.float32)[None]
            return self._rows(lambda: self.nearest_to(rows, k, encoder))

        def to_image(image_id: str, k: int, encoder: str) -> Any:
            return self._rows(lambda: self.neighbours([image_id], k, encoder))

        for name, what, kind, function in (
            ("nearest_to", "vector", "FLOAT[]", to_vector),
            ("neighbours", "image_id", "VARCHAR", to_image),
        ):
            taken: Any = [kind, "BIGINT", "VARCHAR"]
            connection.create_function(f"{name}_rows", function, taken, _ROWS)
            connection.execute(_MACRO.format(name=name, what=what, kind=kind))

    def _rows(self, find: Callable[[], list[Near]]) -> list[dict[str, Any]]:
        try:
            (near,) = find()
        except TransferLearningError as fault:
            self.fault = fault
            raise
        return [dict(zip(("image_id", "similarity"), one, strict=True)) for one in near]

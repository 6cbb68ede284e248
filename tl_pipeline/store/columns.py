"""Rows that come one by one, as columns in bounded memory."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

# Rows that are Python objects at one time.
_STEP = 32_768


class Columns:
    """Rows of ``schema`` that come one by one and are kept as columns.

    They are converted ``_STEP`` at a time: buffers of a few kilobytes would cost twice
    their size, as the memory between them is never whole enough to be given back.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._rows: list[tuple[Any, ...]] = []
        self._batches: list[pa.RecordBatch] = []

    def extend(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Add ``rows``, tuples in the order of the schema."""
        self._rows.extend(rows)
        if len(self._rows) >= _STEP:
            self._convert()

    def table(self) -> pa.Table:
        """All rows, in the order in which they came."""
        self._convert()
        return pa.Table.from_batches(self._batches, self._schema)

    def _convert(self) -> None:
        if not self._rows:
            return
        columns = zip(*self._rows, strict=True)
        arrays = [
            pa.array(column, kind)
            for column, kind in zip(columns, self._schema.types, strict=True)
        ]
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._rows = []

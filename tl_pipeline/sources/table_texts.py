"""The cells of a table's column of texts, by their row."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa

from tl_pipeline.config.datasets import TableSpec
from tl_pipeline.sources.csv_rows import text_rows
from tl_pipeline.sources.parquet_rows import row_images, row_starts
from tl_pipeline.storage import Place, Storage
from tl_pipeline.storage.stamps import Stamp

_STEP = 16_384  # cells that are Python objects at one time


class Texts:
    """Cells as UTF-8; of the file that was read last, the whole column stays in memory.

    ``mark`` tells what parts the cells of a file, None where it is Parquet.
    """

    def __init__(
        self, spec: TableSpec, storage: Storage, mark: Callable[[Place], str | None]
    ) -> None:
        self._column, self._encoding = str(spec.text_column), spec.encoding
        self._storage, self._mark = storage, mark
        self._lock = threading.Lock()
        self._known: Any = None
        self._cells = pa.chunked_array([], pa.string())

    def listed(self, stamp: Stamp) -> Stamp:
        """``stamp`` of a file for its rows: another column has other texts.

        What is in memory is forgotten: a stamp may not tell that a file changed.
        """
        with self._lock:
            self._known = None
        version = stamp.version and f"{stamp.version}:text:{self._column}"
        return replace(stamp, version=version)

    def read(self, file: Place, row: int, stamp: Stamp) -> bytes:
        """The text of ``row`` in ``file``, which looks like ``stamp``; b"" for none.

        Raises:
            OSError: there is no such row, or the file cannot be read.
        """
        with self._lock:  # one thread loads at a time
            if self._known != (file, stamp):
                self._known = None
                self._cells = self._load(file)
                self._known = (file, stamp)
            cells = self._cells
        if row >= len(cells):
            raise FileNotFoundError(f"{file}#row={row}: no such row")
        return (cells[row].as_py() or "").encode()

    def _load(self, file: Place) -> pa.ChunkedArray:
        mark = self._mark(file)
        if mark is None:
            groups = range(len(row_starts(self._storage.arrow(file))) - 1)
            return pa.chunked_array(
                [
                    chunk.cast(pa.large_string())
                    for group in groups
                    for chunk in self._group(file, group).chunks
                ],
                pa.large_string(),
            )
        source = self._storage.stream(file)
        rows = text_rows(file, source, (self._column,), mark, self._encoding)
        chunks, cells = [], []
        for (cell,) in rows:
            cells.append(cell)
            if len(cells) == _STEP:
                chunks.append(pa.array(cells, pa.large_string()))
                cells = []
        chunks.append(pa.array(cells, pa.large_string()))
        return pa.chunked_array(chunks, pa.large_string())

    def _group(self, file: Place, group: int) -> pa.ChunkedArray:
        return row_images(self._storage.arrow(file), group, self._column)

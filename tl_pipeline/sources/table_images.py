"""The bytes in a table's column of images, by their row."""

import threading
from bisect import bisect_right
from typing import Any

import pyarrow as pa

from tl_pipeline.sources.parquet_rows import row_images, row_starts
from tl_pipeline.storage import Place, Storage
from tl_pipeline.storage.stamps import Stamp

_KEPT = 1 << 27  # bytes


class ImageCells:
    """Cells of Parquet files; some row groups of ``column`` stay in memory."""

    def __init__(self, column: str, storage: Storage) -> None:
        self._column, self._storage = column, storage
        self._lock = threading.Lock()
        self._starts: dict[Any, list[int]] = {}
        self._groups: dict[Any, pa.ChunkedArray] = {}

    def read(self, file: Place, row: int, stamp: Stamp) -> Any:
        """The cell of ``row`` in ``file``, which looks like ``stamp``; None for none.

        Raises:
            OSError, pyarrow.ArrowException: it cannot be read.
        """
        state = (file, stamp)
        # One thread loads at a time, or memory would hold a row group for each of them.
        with self._lock:
            starts = self._starts.get(state) or row_starts(self._storage.arrow(file))
            self._starts[state] = starts
            if row >= starts[-1]:
                return None
            group = bisect_right(starts, row) - 1
            images = self._groups.pop((state, group), None)
            if images is None:
                self._make_room()
                source = self._storage.arrow(file)
                images = row_images(source, group, self._column)
            self._groups[state, group] = images  # the last to be dropped now
        return images[row - starts[group]].as_py()

    def _make_room(self) -> None:
        held = sum(kept.nbytes for kept in self._groups.values())
        while len(self._groups) > 1 and held > _KEPT:
            held -= self._groups.pop(next(iter(self._groups))).nbytes

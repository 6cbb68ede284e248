"""Files whose rows are inputs, each given with the split that it declares.

Listing needs the labels, so whole files are read; what is in them stays in memory,
once, until they change.
"""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tl_pipeline.errors import DatasetError
from tl_pipeline.sources.entry import Entry, printable, state_of
from tl_pipeline.storage.stamps import Stamp

Paths = tuple[Path, ...]  # of the rows, and perhaps of their labels
Read = Callable[[Paths, str], tuple[np.ndarray, Sequence[str | None]]]


class Rows(NamedTuple):
    """What is in a file: ``values`` (n, ...), and a label, or None, for each row."""

    stamp: Stamp
    values: np.ndarray
    labels: Sequence[str | None]


class RowFiles:
    """The files of the dataset ``name``; row 3 of one is the input ``<file>#3``.

    Where only train is given no split is declared.

    ``read`` is handed the paths of a file and its name for messages, and gives the
    values and the labels of its rows. ``marked`` tells, in versions, what else they
    depend on.
    """

    def __init__(
        self,
        name: str,
        train: Sequence[Path | None],
        validation: Sequence[Path | None],
        test: Sequence[Path | None],
        *,
        read: Read,
        marked: str = "",
    ) -> None:
        self._name, self._read, self._marked = name, read, marked
        self._lock = threading.Lock()
        self._loaded: dict[str, Rows] = {}
        by_split = [(train, "train"), (validation, "validation"), (test, "test")]
        files = [
            (tuple(path.resolve() for path in paths if path), split)
            for paths, split in by_split
            if paths[0]
        ]
        # A name that is no UTF-8 fits no table: in a uri it is escaped.
        names = [printable(str(paths[0])) for paths, _ in files]
        self._files = dict(zip(names, files, strict=True))
        self._repeated = len(self._files) < len(files)

    def each(self) -> Iterator[tuple[str, Rows]]:
        """Every file by its name.

        Raises:
            DatasetError: a file is given twice, or cannot be read.
        """
        if self._repeated:
            raise DatasetError(f"{self._name}: one file is given for two splits")
        for file in self._files:
            yield file, self._load(file)

    def state(self) -> str | None:
        """See ``Source.state``."""
        files = self._files.items()
        return state_of((file, self._stamp(paths)) for file, (paths, _) in files)

    def entries(self, file: str, rows: Rows) -> Iterator[Entry]:
        """One entry per row of ``file``."""
        declared = self._files[file][1] if len(self._files) > 1 else None
        about = (rows.stamp.version, declared, None, rows.stamp.modified_ns)
        for index, label in enumerate(rows.labels):
            yield Entry(f"{file}#{index}", label, *about)

    def row(self, uri: str, kind: str) -> np.ndarray:
        """The values of the row ``uri``; ``kind`` is what rows are called.

        Raises:
            OSError: there is no such row.
            DatasetError: its file as a whole cannot be read.
        """
        file, _, index = uri.rpartition("#")
        values = self._load(file).values if file in self._files else []
        if not re.fullmatch(r"[0-9]{1,12}", index) or int(index) >= len(values):
            raise FileNotFoundError(f"{uri}: there are {len(values)} such {kind}")
        return values[int(index)]

    def _load(self, file: str) -> Rows:
        paths, _ = self._files[file]
        with self._lock:
            known = self._loaded.get(file)
            try:
                stamp = self._stamp(paths)
                if known is None or known.stamp != stamp:
                    self._loaded.pop(file, None)  # never two copies in memory
                    known = Rows(stamp, *self._read(paths, file))
            except OSError as error:
                raise DatasetError(f"{file} cannot be read: {error}") from None
            return self._loaded.setdefault(file, known)

    def _stamp(self, paths: Paths) -> Stamp:
        """What changes when one of ``paths`` does, and when the last of them did."""
        stats = [path.stat() for path in paths]
        version = ":".join(f"{s.st_size}:{s.st_mtime_ns}" for s in stats)
        youngest = max(stat.st_mtime_ns for stat in stats)
        return Stamp(None, version + self._marked, youngest)

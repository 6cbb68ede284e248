"""Tables with one row per image: CSV, TSV and Parquet."""

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pyarrow as pa

from tl_pipeline.config.datasets import TableSpec
from tl_pipeline.config.locations import is_url
from tl_pipeline.errors import DatasetError
from tl_pipeline.sources.csv_rows import Row, text_rows
from tl_pipeline.sources.entry import Entry, Source
from tl_pipeline.sources.layout import split_named
from tl_pipeline.sources.parquet_rows import parquet_rows
from tl_pipeline.sources.table_files import PARQUET, SEPARATORS, TableFiles, ending
from tl_pipeline.sources.table_images import ImageCells
from tl_pipeline.sources.table_links import ODD_PATHS, Links
from tl_pipeline.sources.table_texts import Texts
from tl_pipeline.storage import Place
from tl_pipeline.storage.stamps import Stamp

_MARKED = re.compile(r"(.*)#(row|copy)=([0-9]+)", re.DOTALL)
_LEFT_OUT = "left out"  # the split of rows that the entry's splits do not name
_TOGETHER = 256  # rows whose files are looked at together


class Table(Source):
    """Every row is an input, and its uri tells without the table what to read.

    A path is made absolute; one that leaves the root is listed as it is written and
    refused by ``read``, as are URLs that neither the root nor ``allowed_urls`` covers,
    and such as hold credentials, which are cut off. A path that was listed before gets
    ``#copy=<row>``, counted through all files. A row with bytes, or with nothing, is
    ``<file>#row=<row>``, counted in its file, and so is every row of a table of texts.
    Rows count from 0.
    """

    def __init__(self, spec: TableSpec) -> None:
        self._spec = spec
        self._files = TableFiles(spec)
        self._links = Links(spec, self._files)
        self._images = ImageCells(spec.image_column, self._files.storage)
        self._texts = None
        if spec.text_column is not None:
            self._texts = Texts(spec, self._files.storage, self._mark)

    def __reduce__(self) -> tuple[type["Table"], tuple[TableSpec]]:
        return Table, (self._spec,)  # neither locks nor what is in memory can travel

    def entries(self) -> Iterator[Entry]:
        """One entry per row, file by file in the order of their names.

        Raises:
            DatasetError: no file matches or none has a row, a file is not what its
                ending says, a column is missing or of a wrong type, a split is unknown,
                a weight is no number >= 0, or a remote folder cannot be listed.
        """
        number = 0
        seen: set[int] = set()  # of hashes: a clash marks a uri without need, no more
        listings: dict[str, dict[str, Stamp]] = {}
        for file, root in self._files.look().items():
            for entry, linked in self._listed(file, root, listings):
                listed = entry
                if linked:
                    if hash(entry.uri) in seen or _MARKED.fullmatch(entry.uri):
                        listed = replace(entry, uri=f"{entry.uri}#copy={number}")
                    seen.add(hash(listed.uri))
                yield listed
                number += 1
        if not number:
            raise DatasetError(f"{self._spec.path} holds no rows; check 'path'")

    def read(self, uri: str) -> bytes:
        """The bytes of the file ``uri``, or of the row that it names.

        Raises:
            PermissionError: the path leaves its root.
            OSError: there is no such file or row, or it cannot be read.
        """
        marked = _MARKED.fullmatch(uri)
        path, kind, row = marked.groups() if marked else (uri, "", "")
        place = path if is_url(path) else Path(path)
        try:
            known = place in self._files.known()
            if kind != "row":
                return self._links.read(place)
            data = self._cell(place, int(row)) if known else None
        except (PermissionError, FileNotFoundError):
            raise
        except (pa.ArrowException, OSError, DatasetError, *ODD_PATHS) as error:
            if self._files.storage.lost or self._links.storage.lost:
                raise
            fault = str(error).removeprefix(f"{place}: ")
            raise OSError(f"{uri}: {fault}") from None
        if data is None:
            raise FileNotFoundError(f"{uri}: no such row, or it holds no image")
        return data

    def _listed(
        self, file: Place, root: Place, listings: dict[str, dict[str, Stamp]]
    ) -> Iterator[tuple[Entry, bool]]:
        """The rows of one file, and of each whether it names another file."""
        weighed = self._spec.weight_column is not None
        whole = self._files.stamp(file)
        if self._texts:
            whole = self._texts.listed(whole)
        rows = self._rows(file)
        while some := list(islice(rows, _TOGETHER)):
            located = [self._locate(cells[0], root) for _, cells in some]
            stamps = self._links.stamps([place for _, place in located], listings)
            for (row, cells), (at, _), stamp in zip(some, located, stamps, strict=True):
                _, label, split, group, weight = cells
                here = f"{file}#row={row}"
                known = whole if at is None else stamp
                entry = Entry(
                    here if at is None else at,
                    label,
                    known.version,
                    split,
                    group,
                    known.modified_ns,
                    _weight(weight, here) if weighed else None,
                )
                yield entry, at is not None

    def _locate(self, cell: str | None, root: Place) -> tuple[str | None, Place | None]:
        """As ``Links.locate``; nothing where the row itself is the input."""
        if cell is None or self._texts:
            return None, None
        return self._links.locate(cell, root)

    def _cell(self, file: Place, row: int) -> bytes | None:
        stamp = self._files.stamp(file)
        if self._texts:
            return self._texts.read(file, row, stamp)
        if self._mark(file) is not None:
            return None
        data = self._images.read(file, row, stamp)
        return data if isinstance(data, bytes) else None

    def _rows(self, file: Place) -> Iterator[tuple[int, Row]]:
        """The rows to list, with their numbers; other splits are left out."""
        spec, storage = self._spec, self._files.storage
        inputs = spec.text_column or spec.image_column
        label = spec.label_column if spec.labelled else None
        names = (inputs, label, spec.split_column)
        names = (*names, spec.group_column, spec.weight_column)
        try:
            mark = self._mark(file)
            if mark is None:
                source = storage.arrow(file)
                texts = self._texts is not None
                rows = parquet_rows(file, source, names, of_texts=texts)
            else:
                source = storage.stream(file)
                rows = text_rows(file, source, names, mark, spec.encoding)
            known = dict[str | None, str | None]()
            for row, (path, label, cell, *others) in enumerate(rows):
                if cell not in known:
                    known[cell] = self._split(cell, f"{file}: row {row}")
                if (split := known[cell]) != _LEFT_OUT:
                    yield row, (path, label, split, *others)
        except (pa.ArrowException, OSError, ValueError) as error:
            if is_url(file) and isinstance(error, OSError):
                raise DatasetError(f"{error}; check 'path'") from None
            raise DatasetError(
                f"{file} is not what its ending says: {error}. Rename or rewrite it"
            ) from None

    def _split(self, cell: str | None, where: str) -> str | None:
        """The split that a cell names, or ``_LEFT_OUT``.

        Raises:
            DatasetError: it is no usual name of a split.
        """
        name = (cell or "").strip()
        if not name:
            return None
        if self._spec.splits is not None:
            declared = self._spec.splits.items()
            return next((s for s, names in declared if name in names), _LEFT_OUT)
        if found := split_named(name):
            return found
        raise DatasetError(
            f"{where}: unknown split {name!r}. Say in its entry in data_catalog.yaml "
            "which names are which splits, such as 'splits: {train: [fit, tune], test: "
            "final}', or leave out 'split_column' to have splits drawn"
        )

    def _mark(self, file: Place) -> str | None:
        """What parts the cells of a text file; None for Parquet."""
        kind = ending(file)
        return None if kind == PARQUET else self._spec.separator or SEPARATORS[kind]


def _weight(text: str | None, where: str) -> float:
    """The weight that a cell holds.

    Raises:
        DatasetError: it is empty, negative, infinite, or no number.
    """
    with contextlib.suppress(ValueError):
        if 0 <= (weight := float(text or "")) < math.inf:
            return weight
    raise DatasetError(
        f"{where}: its weight is {text or 'missing'}, not a number >= 0; write 1 for "
        "an image that counts once, or leave out 'weight_column'"
    )

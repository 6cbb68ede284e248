"""Tables with one row per image: CSV, TSV and Parquet."""

import csv
import re
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, TypeVar

import pyarrow as pa

from tl_pipeline.datasets import TableSpec
from tl_pipeline.errors import DatasetError
from tl_pipeline.locations import (
    below,
    covers,
    folder_of,
    is_url,
    name_of,
    on_web,
    redacted,
)
from tl_pipeline.sources.entry import Entry
from tl_pipeline.sources.table_rows import (
    Row,
    parquet_rows,
    row_images,
    row_starts,
    split_of,
    text_rows,
    weight_of,
)
from tl_pipeline.sources.table_texts import Texts
from tl_pipeline.storage import Place, Storage
from tl_pipeline.storage.stamps import UNKNOWN, Stamp

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_ENDINGS = (*_SEPARATORS, ".parquet")
_MARKED = re.compile(r"(.*)#(row|copy)=([0-9]+)", re.DOTALL)
_KEPT = 1 << 27  # bytes
# pathlib raises ValueError for a NUL and RuntimeError for links in a circle.
_ODD = (pa.ArrowException, ValueError, RuntimeError, LookupError)
_Answer = TypeVar("_Answer")
_TOGETHER = 256  # rows whose files are looked at together
_FRESH = 10.0  # seconds that the stamp of a table behind a URL is believed


class Table:
    """Every row is an input, and its uri tells without the table what to read.

    A path is made absolute; one that leaves the root is listed as it is written and
    refused by ``read``, as are URLs that neither the root nor ``allowed_urls`` covers,
    and such as hold credentials, which are cut off. A path that was listed before gets
    ``#copy=<row>``, counted through all files. A row with bytes, or with nothing, is
    ``<file>#row=<row>``, counted in its file, and so is every row of a table of texts.
    Rows count from 0.
    """

    def __init__(self, spec: TableSpec) -> None:
        self._spec, self._lock = spec, threading.Lock()
        self._found: dict[Place, Place] = {}
        self._starts: dict[Any, list[int]] = {}
        self._groups: dict[Any, pa.ChunkedArray] = {}
        homes = (spec.path, spec.root)
        self._storage = Storage(spec.storage, *homes)
        self._texts = None
        if spec.text_column is not None:
            self._texts = Texts(spec.text_column, self._storage, self._mark)
        # Of what rows name, a redirect must not lead elsewhere.
        self._images = Storage(spec.storage, *homes, allowed=self._allows)

    def __reduce__(self) -> tuple[type["Table"], tuple[TableSpec]]:
        return Table, (self._spec,)  # neither the lock nor the cache can travel

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
        weighed = self._spec.weight_column is not None
        for file, root in self._files().items():
            whole = self._stamp(file)
            if self._texts:
                whole = self._texts.listed(whole)
            rows = enumerate(self._rows(file))
            while some := list(islice(rows, _TOGETHER)):
                located = [self._locate(cells[0], root) for _, cells in some]
                stamps = self._stamps([place for _, place in located], listings)
                for (row, cells), (at, _), stamp in zip(
                    some, located, stamps, strict=True
                ):
                    _, label, split, group, weight = cells
                    here = f"{file}#row={row}"
                    uri, known = here, whole
                    if at is not None:
                        uri, known = at, stamp
                        if hash(uri) in seen or _MARKED.fullmatch(uri):
                            uri += f"#copy={number}"
                        seen.add(hash(uri))
                    yield Entry(
                        uri,
                        label,
                        known.version,
                        split,
                        group,
                        known.modified_ns,
                        weight_of(weight, here) if weighed else None,
                    )
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
            tables = self._found or self._files()
            if kind != "row":
                return self._image(place)
            if self._texts and place in tables:
                return self._texts.read(place, int(row), self._stamp(place))
            known = place in tables and _ending(place) == ".parquet"
            data = self._cell(place, int(row)) if known else None
        except (PermissionError, FileNotFoundError):
            raise
        except (*_ODD, OSError, DatasetError) as error:
            if self._storage.lost or self._images.lost:
                raise
            fault = str(error).removeprefix(f"{place}: ")
            raise OSError(f"{uri}: {fault}") from None
        if not isinstance(data, bytes):
            raise FileNotFoundError(f"{uri}: no such row, or it holds no image")
        return data

    def _files(self) -> dict[Place, Place]:
        """The files of the table, each with the root of its paths."""
        path, root = self._spec.path, self._spec.root
        local = isinstance(path, Path)
        found = _matches(path) if local else self._remote(path, self._storage.matches)
        names = [name_of(file) for file in found]
        if not found or not {*map(_ending, found)} <= {*_ENDINGS}:
            raise DatasetError(
                f"{path} must name files that end in {', '.join(_ENDINGS)}; found: "
                f"{', '.join(names[:9]) or 'nothing'}. Correct 'path'; "
                "for several files use wildcards, such as folder/*.parquet"
            )
        if isinstance(root, Path):
            root = root.resolve()
        elif root and not on_web(root):
            self._remote(root, self._images.find_folder)
        self._found = {file: root or _folder(file) for file in found}
        return self._found

    def _remote(self, place: str, look: Callable[[str], _Answer]) -> _Answer:
        try:
            return look(place)
        except OSError as error:
            raise DatasetError(f"{error}; check 'path' and 'root'") from None

    def _stamp(self, file: Place) -> Stamp:
        try:
            return self._storage.stamp(file, seconds=_FRESH)
        except (OSError, ValueError):
            return UNKNOWN

    def _stamps(self, places: list[Place | None], listings: Any) -> list[Stamp]:
        try:
            return self._images.stamps(places, listings)
        except OSError as error:
            raise DatasetError(f"{error}; check 'root'") from None

    def _allows(self, url: str) -> bool:
        tables = self._found or self._files()
        roots = filter(is_url, tables.values())
        return any(covers(r, url) for r in (*roots, *self._spec.allowed_urls))

    def _locate(self, cell: str | None, root: Place) -> tuple[str | None, Place | None]:
        """The uri of what a row names, and where it is, if it may be read at all."""
        if cell is None or self._texts:
            return None, None
        if is_url(cell):
            uri = redacted(cell)
            return uri, (cell if uri == cell and self._allows(cell) else None)
        if isinstance(root, str):
            url = below(root, cell)
            return url or cell, url
        full = _absolute(cell, root)
        return (cell, None) if full is None else (str(full), full)

    def _image(self, place: Place) -> bytes:
        roots = set((self._found or self._files()).values())
        if isinstance(place, Path):
            return _read(place, {root for root in roots if isinstance(root, Path)})
        if redacted(f"{place}") != place or place.endswith("?..."):
            raise PermissionError(
                f"{place}: the row's URL holds credentials, which this table would "
                "spread; name them under 'storage.credentials'"
            )
        if not self._allows(place):
            raise PermissionError(
                f"{place} leaves its root {', '.join(sorted(map(str, roots)))}; if "
                "that is meant, put what it begins with into 'allowed_urls'"
            )
        return self._images.read(place)

    def _cell(self, file: Place, row: int) -> Any:
        state = (file, self._stamp(file))
        # One thread loads at a time, or memory would hold a row group for each of them.
        with self._lock:
            starts = self._starts.get(state) or row_starts(self._storage.arrow(file))
            self._starts[state] = starts
            if row >= starts[-1]:
                return None
            group = bisect_right(starts, row) - 1
            images = self._groups.pop((state, group), None)
            if images is None:
                held = sum(kept.nbytes for kept in self._groups.values())
                while len(self._groups) > 1 and held > _KEPT:
                    held -= self._groups.pop(next(iter(self._groups))).nbytes
                source = self._storage.arrow(file)
                images = row_images(source, group, self._spec.image_column)
            self._groups[state, group] = images  # the last to be dropped now
        return images[row - starts[group]].as_py()

    def _rows(self, file: Place) -> Iterator[Row]:
        spec = self._spec
        names = (self._inputs, spec.label_column, spec.split_column)
        names = (*names, spec.group_column, spec.weight_column)
        try:
            if _ending(file) == ".parquet":
                source = self._storage.arrow(file)
                texts = self._texts is not None
                rows = parquet_rows(file, source, names, of_texts=texts)
            else:
                mark = spec.separator or _SEPARATORS[_ending(file)]
                rows = text_rows(file, self._storage.stream(file), names, mark)
            for path, label, split, *others in rows:
                yield path, label, split_of(split, file), *others
        except (pa.ArrowException, csv.Error, OSError, ValueError) as error:
            if is_url(file) and isinstance(error, OSError):
                raise DatasetError(f"{error}; check 'path'") from None
            raise DatasetError(
                f"{file} is not what its ending says: {error}. Rename or rewrite it"
            ) from None

    @property
    def _inputs(self) -> str:
        return self._spec.text_column or self._spec.image_column

    def _mark(self, file: Place) -> str | None:
        """What parts the cells of a text file; None for Parquet."""
        return self._spec.separator or _SEPARATORS.get(_ending(file))


def _matches(path: Path) -> list[Path]:
    """The files that a local path means, by itself or as a pattern."""
    path = path.absolute()
    pattern = str(path.relative_to(path.anchor))
    found = [path] if path.exists() else sorted(Path(path.anchor).glob(pattern))
    files = [f for f in found if f.is_file() and not f.name.startswith(".")]
    # Only folders are resolved: the target of a link may have another ending.
    return [file.parent.resolve() / file.name for file in files]


def _ending(place: Place) -> str:
    return PurePath(name_of(place)).suffix.lower()


def _folder(place: Place) -> Place:
    return place.parent if isinstance(place, Path) else folder_of(place)


def _absolute(path: str, root: Path) -> Path | None:
    """The file of a row; None if it leaves the root."""
    full = root / path
    try:
        if ".." in full.parts or (path[0] == "/" and not full.is_relative_to(root)):
            full = full.resolve()
            return full if full.is_relative_to(root) else None
    except _ODD:
        return None
    return full


def _read(path: Path, roots: set[Path]) -> bytes:
    target = path.resolve()
    if not path.is_absolute() or not any(map(target.is_relative_to, roots)):
        raise PermissionError(
            f"{path} leaves its root {', '.join(sorted(map(str, roots)))}; if that is "
            "meant, set 'root' to a folder above both ('root: /' allows all)"
        )
    if not target.is_file():  # as a pipe is none, on which reading would hang
        raise FileNotFoundError(f"{path}: no such file")
    return target.read_bytes()

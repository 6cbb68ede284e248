"""Datasets of Hugging Face's library ``datasets``: saved to disk, or from the hub."""

import hashlib
import importlib
import importlib.util
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from tl_pipeline.config.datasets import HuggingFaceSpec
from tl_pipeline.errors import DatasetError, InvalidSpec
from tl_pipeline.sources.entry import SEVERAL_LABELS, Entry, Source
from tl_pipeline.sources.huggingface_load import load
from tl_pipeline.sources.layout import Holds, split_folders

_ROWS = 1000  # listed at once
_LABELS = re.compile(r"u?int(8|16|32|64)|bool|(large_)?string")
_BYTES = ("binary", "large_binary")


class _Part(NamedTuple):
    """A split: its rows as tables of Arrow, and what changes when its files do."""

    split: str | None
    rows: Any
    names: list[str] | None
    version: str | None
    modified_ns: int | None


class HuggingFace(Source):
    """Every row is an input: the bytes in its ``Image`` column, not decoded there.

    A uri is ``<folder or hub name>#<their split>:<row>``. A label is the name that
    ``ClassLabel`` has for it, else the text or whole number itself; -1, the hub's word
    for "unknown", is none. Splits of the usual names are kept (``layout``); one alone
    that is not train is undeclared. Rows stay in files that are mapped to memory.
    """

    def __init__(self, spec: HuggingFaceSpec) -> None:
        if importlib.util.find_spec("datasets") is None:
            raise InvalidSpec(
                f"{spec.name}: 'type: huggingface' needs the package 'datasets': "
                "pip install 'tl-pipeline[huggingface]'"
            )
        self._spec, self._lock = spec, threading.Lock()
        root = spec.path.expanduser().resolve() if spec.path else None
        self._base = str(root or spec.dataset)
        self._parts: dict[str, _Part] = {}
        self._roots: list[Path] = []

    def __reduce__(self) -> tuple[type["HuggingFace"], tuple[HuggingFaceSpec]]:
        return HuggingFace, (self._spec,)  # a copy elsewhere maps the files itself

    def entries(self) -> Iterator[Entry]:
        """One entry per row, split by split.

        Raises:
            DatasetError: it is not there, damaged or empty, a column is missing or of a
                wrong type, or a split has an unknown name.
        """
        number = 0
        for name, part in self._opened().items():
            for row, (stored, label, group) in enumerate(self._listed(part)):
                uri = f"{self._base}#{name}:{row}"
                # A file that a row only names may change while the table does not.
                version = part.version if stored else None
                at = part.modified_ns
                yield Entry(uri, label, version, part.split, group, at)
                number += 1
        if not number:
            raise DatasetError(f"{self._base} holds no rows")

    def read(self, uri: str) -> bytes:
        """The bytes in the row ``uri``, or of the file that it names.

        Raises:
            PermissionError: that file is outside the dataset.
            OSError: there is no such row, or no image in it.
            DatasetError: the dataset as a whole cannot be opened.
        """
        base, _, place = uri.rpartition("#")
        asked = re.fullmatch(r"(.*):([0-9]{1,12})", place, re.DOTALL)
        part = self._opened().get(asked[1]) if asked and base == self._base else None
        if asked is None or part is None or int(asked[2]) >= len(part.rows):
            raise FileNotFoundError(f"{uri}: no such row in {self._base}")
        try:
            found = part.rows[int(asked[2])]
            found.validate(full=True)
            image = found.column(self._spec.image_column)[0].as_py()
        except (ValueError, pa.ArrowException) as error:
            raise OSError(f"{uri}: {error}") from None
        if isinstance(image, dict):
            path = image.get("path")
            image = image.get("bytes")
            if image is None and path:
                return self._file(path)
        if not isinstance(image, bytes):
            raise FileNotFoundError(f"{uri}: the row holds no image")
        return image

    def _opened(self) -> dict[str, _Part]:
        with self._lock:
            if not self._parts:
                found, self._roots = load(self._spec)
                splits = self._splits(list(found))
                self._parts = {n: self._part(found[n], s) for n, s in splits.items()}
            return self._parts

    def _splits(self, names: list[str]) -> dict[str, str | None]:
        """Their names of the splits to read, each with ours."""
        declared = self._spec.splits
        found = split_folders(
            self._base,
            names,
            lambda _: Holds.FOLDERS,
            declared,
            or_else="rows of no split",
        )
        if not found and declared is None and len(names) > 1:
            raise DatasetError(
                f"{self._base} has the splits {', '.join(names)}; say which to use as "
                f"what, such as 'splits: {{train: {names[0]}, test: {names[1]}}}'"
            )
        return found or dict.fromkeys(names)

    def _part(self, dataset: Any, split: str | None) -> _Part:
        spec, features = self._spec, dataset.features
        kinds = {name: getattr(kind, "dtype", kind) for name, kind in features.items()}
        wanted = [spec.image_column, spec.label_column, spec.group_column]
        columns = [name for name in wanted if name is not None]
        library = importlib.import_module("datasets")
        image, label = (features.get(name) for name in columns[:2])
        names = label.names if isinstance(label, library.ClassLabel) else None
        if isinstance(label, library.List | library.LargeList | list):
            raise DatasetError(
                f"{self._base}: column {spec.label_column!r} {SEVERAL_LABELS}"
            )
        if (
            not set(columns) <= set(features)
            or not (isinstance(image, library.Image) or kinds[columns[0]] in _BYTES)
            or not (names or _LABELS.fullmatch(str(kinds[columns[1]])))
        ):
            held = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
            raise DatasetError(
                f"{self._base} has the columns {held[:500]}; 'image_column' must name "
                "one of Image or binary, 'label_column' one of ClassLabel, text or "
                "whole numbers, 'group_column' any"
            )
        rows = dataset.with_format("arrow", columns=columns)
        return _Part(split, rows, names, *_stamp(dataset))

    def _listed(self, part: _Part) -> Iterator[tuple[bool, str | None, str | None]]:
        """Of every row: whether it holds the bytes itself, its label and its group."""
        spec = self._spec
        for batch in part.rows.iter(_ROWS):
            try:  # a damaged file must not make Arrow read past its end
                batch.validate(full=True)
            except pa.ArrowException as error:
                raise DatasetError(f"{self._base} is damaged: {error}") from None
            images = batch.column(spec.image_column)
            if pa.types.is_struct(images.type):
                images = images.flatten()[images.type.get_field_index("bytes")]
            stored = images.is_valid().to_pylist()
            labels = batch.column(spec.label_column).to_pylist()
            groups = [None] * len(labels)
            if spec.group_column:
                groups = batch.column(spec.group_column).to_pylist()
            for here, label, group in zip(stored, labels, groups, strict=True):
                whose = None if group in (None, "") else str(group)
                yield here, _label(label, part.names), whose

    def _file(self, path: str) -> bytes:
        try:
            target = (self._roots[0] / path).resolve()
        except (ValueError, RuntimeError) as error:  # a NUL; links in a circle
            raise OSError(f"{path!r}: {error}") from None
        if not any(map(target.is_relative_to, self._roots)):
            inside = " or ".join(map(str, self._roots))
            raise PermissionError(f"{path}: an image outside {inside}")
        if not target.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        return target.read_bytes()


def _label(value: Any, names: list[str] | None) -> str | None:
    if names is None:
        return None if value in (None, "") else str(value)
    return names[value] if value is not None and 0 <= value < len(names) else None


def _stamp(dataset: Any) -> tuple[str | None, int | None]:
    """What changes with the files of ``dataset``, and the last time one did."""
    digest, latest = hashlib.sha256(), 0
    for file in dataset.cache_files:
        stat = Path(file["filename"]).stat()
        digest.update(f"{file['filename']}:{stat.st_size}:{stat.st_mtime_ns};".encode())
        latest = max(latest, stat.st_mtime_ns)
    return (digest.hexdigest()[:32], latest) if latest else (None, None)

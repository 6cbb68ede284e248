"""Vectors that were computed elsewhere, each row an input."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tl_pipeline.config.datasets import FeaturesSpec
from tl_pipeline.errors import DatasetError
from tl_pipeline.inputs.vectors import as_npy
from tl_pipeline.sources.array_pickles import PickledArray, load_arrays
from tl_pipeline.sources.entry import Entry, Source
from tl_pipeline.sources.row_files import Paths, RowFiles

_PICKLES = (".p", ".pkl", ".pickle")
_ENDINGS = (".npy", ".npz", ".parquet", *_PICKLES)


class Features(Source):
    """Each row is an input, ``<file>#<row>``, given as an .npy file of float32.

    Splits are declared and files are kept as ``RowFiles`` says.
    """

    def __init__(self, spec: FeaturesSpec) -> None:
        self._spec = spec
        self._files = RowFiles(
            spec.name,
            (spec.train, spec.train_labels),
            (spec.validation, spec.validation_labels),
            (spec.test, spec.test_labels),
            read=self._load,
            marked=f":{spec.features}",
        )

    def __reduce__(self) -> tuple[type["Features"], tuple[FeaturesSpec]]:
        """A copy in another process reads the files itself."""
        return Features, (self._spec,)

    def entries(self) -> Iterator[Entry]:
        """One entry per row, file by file.

        Raises:
            DatasetError: a file is missing, damaged, given twice, would run code, or
                holds no vectors with labels; or the files' vectors differ in length.
        """
        widths: dict[int, str] = {}
        for name, rows in self._files.each():
            widths.setdefault(rows.values.shape[1], name)
            if len(widths) > 1:
                lengths = ", ".join(
                    f"{width} in {file}" for width, file in widths.items()
                )
                raise DatasetError(f"vectors must be of one length, but have {lengths}")
            yield from self._files.entries(name, rows)

    def state(self) -> str | None:
        """See ``Source``: of the files as a whole."""
        return self._files.state()

    def read(self, uri: str) -> bytes:
        """The row ``uri`` as an .npy file.

        Raises:
            OSError: there is no such row.
            DatasetError: its file as a whole cannot be read.
        """
        vector = self._files.row(uri, "vectors")
        with np.errstate(over="ignore"):  # an infinite value is refused by name
            return as_npy(vector.astype(np.float32))

    def _load(self, paths: Paths, name: str) -> tuple[np.ndarray, list[str | None]]:
        return _checked(*_arrays(paths, name, self._spec), name)


def _arrays(
    paths: Paths, name: str, spec: FeaturesSpec
) -> tuple[np.ndarray, np.ndarray]:
    """The features and the labels in the file ``name``, whatever they are.

    Raises:
        DatasetError: they are not there, or no arrays.
        OSError: they cannot be read.
    """
    vectors, *labels = paths
    ending = vectors.suffix.lower()
    wanted = (spec.features, spec.labels)
    if ending not in _ENDINGS:
        raise DatasetError(
            f"{name}: features are read from files that end in {', '.join(_ENDINGS)}"
        )
    if ending in _PICKLES:
        return _named(_unpickled(vectors, name), name, wanted)
    try:
        if ending == ".parquet":
            return _columns(vectors, name, wanted)
        with vectors.open("rb") as opened:
            found = np.load(opened, allow_pickle=False)
            if isinstance(found, np.lib.npyio.NpzFile):
                held = {key: found[key] for key in wanted if key in found.files}
                others = {key: None for key in found.files if key not in held}
                return _named({**held, **others}, name, wanted)
        if not labels:
            raise DatasetError(f"{name} is no .npz file, but an .npy file")
        with labels[0].open("rb") as opened:
            return found, np.load(opened, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile, pa.ArrowException) as error:
        said = f"{error}"[:200]
        raise DatasetError(f"{name} is damaged or of another kind: {said}") from None


def _unpickled(file: Path, name: str) -> dict[str, np.ndarray | None]:
    with file.open("rb") as opened:
        found = load_arrays(opened, name)
    if not isinstance(found, dict):
        raise DatasetError(f"{name}: expected a dictionary, not {type(found).__name__}")
    return {
        str(key): value.values if isinstance(value, PickledArray) else None
        for key, value in found.items()
    }


def _named(
    found: dict[str, np.ndarray | None], name: str, wanted: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    vectors, labels = map(found.get, wanted)
    if vectors is None or labels is None:
        raise DatasetError(
            f"{name}: expected arrays {wanted[0]!r} and {wanted[1]!r}, found "
            f"{', '.join(found) or 'nothing'}; see 'features' and 'labels' of the "
            "dataset entry"[:500]
        )
    return vectors, labels


def _columns(
    file: Path, name: str, wanted: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    with pq.ParquetFile(file) as parts:
        there = parts.schema_arrow.names
        if not {*wanted} <= {*there}:
            raise DatasetError(
                f"{name}: expected columns {wanted[0]!r} and {wanted[1]!r}, found "
                f"{', '.join(there)}; see 'features' and 'labels' of the dataset entry"
            )
        table = parts.read(list(wanted))
    column = table[wanted[0]].combine_chunks()
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not (lists or pa.types.is_fixed_size_list(kind)) or column.null_count:
        raise DatasetError(
            f"{name}: column {wanted[0]!r} holds {kind} with {column.null_count} "
            "nulls; expected a list of numbers in each row"
        )
    lengths = np.unique([len(row) for row in column])
    if len(lengths) > 1:
        raise DatasetError(
            f"{name}: the lists of {wanted[0]!r} have {lengths[0]} to {lengths[-1]} "
            "values; expected one length"
        )
    flat = column.flatten().to_numpy(zero_copy_only=False)
    labels = table[wanted[1]].to_numpy()
    return flat.reshape(len(column), -1 if len(flat) else 0), labels


def _checked(
    vectors: np.ndarray, labels: np.ndarray, name: str
) -> tuple[np.ndarray, list[str | None]]:
    """Vectors of shape (n, width) and their labels as text, None for no label.

    Raises:
        DatasetError: they are no numbers, or not as many as there are labels.
    """
    if vectors.dtype.kind not in "fiu" or vectors.ndim < 2 or 0 in vectors.shape[1:]:
        raise DatasetError(
            f"{name}: the features are {vectors.dtype} of shape {vectors.shape}; "
            "expected numbers of shape (n, width)"
        )
    if labels.size != len(vectors) or labels.dtype.kind not in "iuUOb":
        raise DatasetError(
            f"{name}: {len(vectors)} vectors, but labels of shape {labels.shape} and "
            f"type {labels.dtype}; expected a whole number or a text for each"
        )
    values = labels.reshape(-1).tolist()
    texts = [None if label in (None, "") else str(label) for label in values]
    try:
        "".join(text or "" for text in texts).encode()
    except ValueError as error:
        raise DatasetError(f"{name}: a label is no valid text: {error}") from None
    return vectors.reshape(len(vectors), -1), texts

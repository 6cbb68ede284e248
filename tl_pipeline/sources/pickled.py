"""Pickled dictionaries of arrays, as the German-traffic-sign notebooks keep them."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from tl_pipeline.config.datasets import PickleSpec
from tl_pipeline.errors import DatasetError
from tl_pipeline.inputs.images import as_ppm
from tl_pipeline.sources.array_pickles import PickledArray, load_arrays
from tl_pipeline.sources.entry import Entry, Source
from tl_pipeline.sources.row_files import Paths, RowFiles


class Pickled(Source):
    """Each row of ``features`` is an input, given as a binary PGM or PPM.

    Splits are declared and files are kept as ``RowFiles`` says.
    """

    def __init__(self, spec: PickleSpec) -> None:
        self._spec = spec
        files = ((spec.train,), (spec.validation,), (spec.test,))
        self._files = RowFiles(spec.name, *files, read=self._load)

    def __reduce__(self) -> tuple[type["Pickled"], tuple[PickleSpec]]:
        """A copy in another process reads the files itself."""
        return Pickled, (self._spec,)

    def entries(self) -> Iterator[Entry]:
        """One entry per row, file by file.

        Raises:
            DatasetError: a file is missing, damaged, given twice, would run code, or
                holds no images with labels.
        """
        for file, rows in self._files.each():
            yield from self._files.entries(file, rows)

    def state(self) -> str | None:
        """See ``Source``: of the files as a whole."""
        return self._files.state()

    def read(self, uri: str) -> bytes:
        """The row ``uri`` as PGM or PPM.

        Raises:
            OSError: there is no such row.
            DatasetError: its file as a whole cannot be read.
        """
        return as_ppm(self._files.row(uri, "images"))

    def _load(self, paths: Paths, name: str) -> tuple[np.ndarray, list[str]]:
        with paths[0].open("rb") as file:
            found = load_arrays(file, name)
        return _checked(found, name, self._spec)


def _checked(found: Any, name: str, spec: PickleSpec) -> tuple[np.ndarray, list[str]]:
    arrays = found if isinstance(found, dict) else {}
    features, labels = (arrays.get(key) for key in (spec.features, spec.labels))
    if not isinstance(features, PickledArray) or not isinstance(labels, PickledArray):
        held = f"the keys {list(arrays)}" if arrays else f"a {type(found).__name__}"
        raise DatasetError(
            f"{name}: expected arrays {spec.features!r} and {spec.labels!r}, found "
            f"{held}; see 'features' and 'labels' of the dataset entry"[:500]
        )
    images, classes = features.values, labels.values
    said = f"{name}: {spec.features!r} is {images.dtype} of shape {images.shape}"
    grey_or_rgb = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3)
    if not grey_or_rgb and (images.ndim == 2 or images.dtype.kind == "f"):
        raise DatasetError(
            f"{said}: precomputed features; say 'type: features' in the dataset entry"
        )
    if not grey_or_rgb or 0 in images.shape[1:]:
        raise DatasetError(f"{said}; expected (n, height, width) or (n, h, w, 3)")
    whole = images.dtype.kind in "iu"
    if not whole or (images.size and (images.min() < 0 or images.max() > 255)):
        raise DatasetError(f"{said}; expected whole numbers 0..255, not normalised")
    if classes.ndim != 1 or classes.dtype.kind not in "iuU":
        raise DatasetError(
            f"{name}: {spec.labels!r} is {classes.dtype} of shape {classes.shape}; "
            "expected (n,) whole numbers or text"
        )
    if len(images) != len(classes):
        raise DatasetError(f"{name}: {len(images)} images, but {len(classes)} labels")
    try:
        texts = [str(label) for label in classes.tolist()]
        "".join(texts).encode()
    except (ValueError, SystemError) as error:
        raise DatasetError(f"{name}: a label is no valid text: {error}") from None
    return images.astype(np.uint8, copy=False), texts

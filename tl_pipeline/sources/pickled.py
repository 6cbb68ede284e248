"""Pickled dictionaries of arrays, as the German-traffic-sign notebooks keep them."""

import re
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from tl_pipeline.datasets import PickleSpec
from tl_pipeline.errors import DatasetError
from tl_pipeline.images import as_ppm
from tl_pipeline.sources.array_pickles import PickledArray, load_arrays
from tl_pipeline.sources.entry import Entry


class _Loaded(NamedTuple):
    version: str
    modified_ns: int
    features: np.ndarray
    labels: list[str]


class Pickled:
    """Each row of ``features`` is an input, given as a binary PGM or PPM.

    Splits follow ``image_folder``: where only train and validation are given, the
    declared validation is what others report as their test set and becomes the test
    split; where only train is given, none is declared. Listing needs the labels, so it
    reads whole files; their arrays stay in memory, once, until the file changes.
    """

    def __init__(self, spec: PickleSpec) -> None:
        self._spec, self._lock = spec, threading.Lock()
        self._loaded: dict[str, _Loaded] = {}
        held_out = "validation" if spec.test else "test"
        paths = [(spec.train, "train"), (spec.validation, held_out)]
        paths = [
            (path.resolve(), s) for path, s in [*paths, (spec.test, "test")] if path
        ]
        # A name that is no UTF-8 fits no table: in a uri it is escaped.
        names = [str(p).encode(errors="backslashreplace").decode() for p, _ in paths]
        self._files = dict(zip(names, paths, strict=True))
        self._repeated = len(self._files) < len(paths)

    def __reduce__(self) -> tuple[type["Pickled"], tuple[PickleSpec]]:
        """A copy in another process reads the files itself."""
        return Pickled, (self._spec,)

    def entries(self) -> Iterator[Entry]:
        """One entry per row, file by file.

        Raises:
            DatasetError: a file is missing, damaged, given twice, would run code, or
                holds no images with labels.
        """
        if self._repeated:
            raise DatasetError(f"{self._spec.name}: one file is given for two splits")
        for name, (_, split) in self._files.items():
            version, modified_ns, _, labels = self._load(name)
            declared = split if len(self._files) > 1 else None
            for index, label in enumerate(labels):
                uri = f"{name}#{index}"
                yield Entry(uri, label, version, declared, modified_ns=modified_ns)

    def read(self, uri: str) -> bytes:
        """The row ``uri`` as PGM or PPM.

        Raises:
            OSError: there is no such row.
            DatasetError: its file as a whole cannot be read.
        """
        name, _, index = uri.rpartition("#")
        features = self._load(name).features if name in self._files else []
        if not re.fullmatch(r"[0-9]{1,12}", index) or int(index) >= len(features):
            raise FileNotFoundError(f"{uri}: there are {len(features)} such images")
        return as_ppm(features[int(index)])

    def _load(self, name: str) -> _Loaded:
        with self._lock:
            known = self._loaded.get(name)
            try:
                stat = self._files[name][0].stat()
                version = f"{stat.st_size}:{stat.st_mtime_ns}"
                if known is None or known.version != version:
                    self._loaded.pop(name, None)  # never two copies in memory
                    with self._files[name][0].open("rb") as file:
                        found = load_arrays(file, name)
                    features, labels = _checked(found, name, self._spec)
                    known = _Loaded(version, stat.st_mtime_ns, features, labels)
            except OSError as error:
                raise DatasetError(f"{name} cannot be read: {error}") from None
            return self._loaded.setdefault(name, known)


def _checked(found: Any, name: str, spec: PickleSpec) -> tuple[np.ndarray, list[str]]:
    arrays = found if isinstance(found, dict) else {}
    features, labels = (arrays.get(key) for key in (spec.features, spec.labels))
    if not isinstance(features, PickledArray) or not isinstance(labels, PickledArray):
        held = f"the keys {list(arrays)}" if arrays else f"a {type(found).__name__}"
        raise DatasetError(
            f"{name}: expected arrays {spec.features!r} and {spec.labels!r}, found "
            f"{held}; see 'features' and 'labels' of the catalogue"[:500]
        )
    images, classes = features.values, labels.values
    said = f"{name}: {spec.features!r} is {images.dtype} of shape {images.shape}"
    grey_or_rgb = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3)
    if not grey_or_rgb and (images.ndim == 2 or images.dtype.kind == "f"):
        raise DatasetError(
            f"{said}: precomputed features; say 'type: features' in the catalogue"
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

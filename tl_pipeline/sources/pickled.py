"""Pickled dictionaries of arrays, as the German-traffic-sign notebooks keep them."""

import functools
import os
import pickle
import re
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, BinaryIO, ClassVar, NamedTuple

import numpy as np

from tl_pipeline.datasets import PickleSpec
from tl_pipeline.errors import DatasetError
from tl_pipeline.images import as_ppm
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
                        found = _unpickled(file, name)
                    features, labels = _checked(found, name, self._spec)
                    known = _Loaded(version, stat.st_mtime_ns, features, labels)
            except OSError as error:
                raise DatasetError(f"{name} cannot be read: {error}") from None
            return self._loaded.setdefault(name, known)


def _checked(found: Any, name: str, spec: PickleSpec) -> tuple[np.ndarray, list[str]]:
    arrays = found if isinstance(found, dict) else {}
    features, labels = (arrays.get(key) for key in (spec.features, spec.labels))
    if not isinstance(features, _Array) or not isinstance(labels, _Array):
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
            f"{said}: precomputed features, which cannot be used yet; give the images"
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


def _unpickled(file: BinaryIO, name: str) -> Any:
    try:
        return _ArraysOnly(file).load()
    except OSError:
        raise
    except _Refused as fault:
        raise DatasetError(f"{name} refused: {fault}. Nothing in it was run") from None
    # Damaged pickles raise what they please.
    except Exception as fault:  # noqa: BLE001
        said = f"{type(fault).__name__}: {fault}"[:200]
        raise DatasetError(f"{name} is damaged or no pickle: {said}") from None


class _Refused(Exception):
    """The pickle asks for more than arrays and plain values."""


class _DType:
    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch(r"[biufSU][1-9][0-9]{0,6}", code):
            raise _Refused(f"it holds an array or value of type {code[:20]!a}")
        self.made = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.made = self.made.newbyteorder(state[1])


class _Array:
    values = np.empty(0)

    def __init__(self, as_bytes: Callable[[Any], bytes]) -> None:
        self._as_bytes = as_bytes

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_column, data = state
        self.fill(data, dtype, shape, "F" if by_column else "C")

    def fill(
        self, data: Any, dtype: _DType, shape: Any, order: str, axes: Any = None
    ) -> "_Array":
        flat = np.frombuffer(self._as_bytes(data), dtype.made)
        self.values = flat.reshape(shape, order="F" if order == "F" else "C")
        if order == "K":
            self.values = self.values.transpose(axes)
        return self


# The unpickler written in Python. Data alone bring the one written in C down: a deep
# tuple as a key overflows its stack, a large number in its memo takes all memory.
_Unpickler: Any = vars(pickle)["_Unpickler"]
_NEVER = (
    *(pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4),
    *(pickle.EMPTY_SET, pickle.FROZENSET, pickle.ADDITEMS),
)


def _with_checked_keys(load: Callable[[Any], None], keys: slice) -> Callable[..., None]:
    # Hashing nested tuples may take for ever, and many large numbers share one hash.
    def checked(self: Any) -> None:
        for key in self.stack[keys]:
            small = isinstance(key, int) and abs(key) < 2**31
            if not small and not isinstance(key, str | bytes):
                raise _Refused(f"a dictionary has a {type(key).__name__} as a key")
        load(self)

    return checked


def _load_build(self: Any) -> None:
    if not isinstance(self.stack[-2], _Array | _DType):
        raise _Refused("it would change what is no array")
    _Unpickler.load_build(self)


class _ArraysOnly(_Unpickler):
    """Builds arrays and plain values with functions of its own, and nothing else."""

    dispatch: ClassVar = {
        opcode: load
        for opcode, load in _Unpickler.dispatch.items()
        if bytes([opcode]) not in _NEVER
    } | {
        pickle.BUILD[0]: _load_build,
        pickle.SETITEM[0]: _with_checked_keys(_Unpickler.load_setitem, slice(-2, -1)),
        pickle.SETITEMS[0]: _with_checked_keys(
            _Unpickler.load_setitems, slice(0, None, 2)
        ),
        pickle.DICT[0]: _with_checked_keys(_Unpickler.load_dict, slice(0, None, 2)),
        # Its own would allocate what the file declares before looking for it.
        pickle.BYTEARRAY8[0]: _Unpickler.load_binbytes8,
    }

    def __init__(self, file: BinaryIO) -> None:
        size = os.fstat(file.fileno()).st_size
        bounded = SimpleNamespace(
            read=lambda n: file.read(min(n, size)), readline=file.readline
        )
        super().__init__(bounded, encoding="latin1")  # for files of Python 2
        # Cached, so that naming one string a thousand times copies it once.
        latin1 = functools.cache(lambda text: text.encode("latin1"))

        def as_bytes(data: Any) -> bytes:
            return latin1(data) if isinstance(data, str) else data

        self._allowed = {
            "_codecs.encode": lambda text, _: as_bytes(text),
            "builtins.bytes": lambda: b"",  # how protocols 0 to 2 write it
            "numpy.ndarray": "an argument of _reconstruct",
            "numpy.dtype": _DType,
            "numpy.core.multiarray._reconstruct": lambda *_: _Array(as_bytes),
            "numpy.core.multiarray.scalar": lambda dtype, data: (
                _Array(as_bytes).fill(data, dtype, (), "C").values.item()
            ),
            "numpy.core.numeric._frombuffer": lambda *args: _Array(as_bytes).fill(
                *args
            ),
        }

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for what arrays need."""
        asked = f"{module}.{name}"
        renamed = re.sub(r"^numpy\._core\.", "numpy.core.", asked)
        renamed = re.sub(r"^__builtin__\.", "builtins.", renamed)
        if renamed not in self._allowed:
            raise _Refused(f"it would import {asked[:100]!a}")
        return self._allowed[renamed]

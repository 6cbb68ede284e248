"""An unpickler that admits numpy arrays and plain values, and nothing else.

Its globals are inert functions of its own: neither numpy nor any codec is handed what a
file says. Instructions that make other objects are taken out of it.
"""

import functools
import os
import pickle
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, BinaryIO, ClassVar

import numpy as np

from tl_pipeline.errors import DatasetError


def load_arrays(file: BinaryIO, name: str) -> Any:
    """What the pickle ``file``, called ``name`` in errors, holds.

    Arrays come as ``PickledArray``; the rest are plain Python values.

    Raises:
        DatasetError: it is damaged, or asks for anything but arrays and plain values.
        OSError: it cannot be read.
    """
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


class PickledArray:
    """An array as it is being rebuilt; ``values`` is what it became."""

    values = np.empty(0)

    def __init__(self, as_bytes: Callable[[Any], bytes]) -> None:
        self._as_bytes = as_bytes

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_column, data = state
        self.fill(data, dtype, shape, "F" if by_column else "C")

    def fill(
        self, data: Any, dtype: _DType, shape: Any, order: str, axes: Any = None
    ) -> "PickledArray":
        """Take the values from raw ``data``; ``order`` as numpy has it."""
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
    if not isinstance(self.stack[-2], PickledArray | _DType):
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
            "numpy.core.multiarray._reconstruct": lambda *_: PickledArray(as_bytes),
            "numpy.core.multiarray.scalar": lambda dtype, data: (
                PickledArray(as_bytes).fill(data, dtype, (), "C").values.item()
            ),
            "numpy.core.numeric._frombuffer": lambda *args: PickledArray(as_bytes).fill(
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

"""Pickles of numpy arrays and plain values: no other global is admitted."""

import pickle
import re
from typing import Any, BinaryIO

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
        return _ArraysOnly(file, encoding="latin1").load()  # for files of Python 2
    except OSError:
        raise
    except _RefusedError as fault:
        raise DatasetError(f"{name} refused: {fault}. Nothing in it was run") from None
    # Damaged pickles raise what they please.
    except Exception as fault:  # noqa: BLE001
        reason = f"{type(fault).__name__}: {fault}"[:200]
        raise DatasetError(f"{name} is damaged or no pickle: {reason}") from None


class _RefusedError(Exception):
    """The pickle asks for more than arrays and plain values."""


class _DType:
    """A type of numbers or texts. numpy's own would believe any flag of a file."""

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch(r"[biufSU][1-9][0-9]{0,6}", code):
            raise _RefusedError(f"it holds an array or value of type {code[:20]!a}")
        self.made = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.made = self.made.newbyteorder(state[1])


class PickledArray:
    """An array as it is being rebuilt; ``values`` is what it became."""

    values = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_column, data = state
        self.fill(data, dtype, shape, "F" if by_column else "C")

    def fill(
        self, data: Any, dtype: _DType, shape: Any, order: str, axes: Any = None
    ) -> "PickledArray":
        """Take the values from raw ``data``; ``order`` as numpy has it."""
        flat = np.frombuffer(_bytes(data), dtype.made)
        self.values = flat.reshape(shape, order="F" if order == "F" else "C")
        if order == "K":
            self.values = self.values.transpose(axes)
        return self


def _bytes(data: Any) -> bytes:
    return data.encode("latin1") if isinstance(data, str) else data


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for what arrays need, by any name that numpy or Python had for it.

        Each is made anew, since a file may change what it is given.
        """
        asked = f"{module}.{name}"
        allowed = {
            "_codecs.encode": lambda text, _: _bytes(text),
            "builtins.bytes": lambda: b"",  # how protocols 0 to 2 write it
            "numpy.ndarray": "an argument of _reconstruct",
            "numpy.dtype": lambda code, *_: _DType(code),
            "numpy.core.multiarray._reconstruct": lambda *_: PickledArray(),
            "numpy.core.multiarray.scalar": lambda dtype, data: (
                PickledArray().fill(data, dtype, (), "C").values.item()
            ),
            "numpy.core.numeric._frombuffer": lambda *args: PickledArray().fill(*args),
        }
        renamed = re.sub(r"^numpy\._core\.", "numpy.core.", asked)
        renamed = re.sub(r"^__builtin__\.", "builtins.", renamed)
        if renamed not in allowed:
            raise _RefusedError(f"it would import {asked[:100]!a}")
        return allowed[renamed]

"""Precomputed vectors as bytes: an .npy file of float32, written by our own hand.

The bytes are the identity of a vector, so they must not depend on a version of numpy,
whose headers have changed.
"""

import io
from functools import lru_cache
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from tl_pipeline.inputs.images import RefusedImage

_MAGIC = 10  # bytes of magic, version and length
_HEADER = 118  # bytes that are ended by a line feed
_VALUE = 4  # bytes of float32


class VectorInput(BaseModel):
    """Vectors are taken as they are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["vector"] = "vector"


def as_npy(vector: np.ndarray) -> bytes:
    """``vector``, of shape (width,), as an .npy file (format 1.0) of float32."""
    return _start(len(vector)) + np.ascontiguousarray(vector, "<f4").tobytes()


@lru_cache
def _start(width: int) -> bytes:
    """What comes before the values of a vector."""
    about = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({width},), }}"
    header = about.ljust(_HEADER - 1).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + _HEADER.to_bytes(2, "little") + header


def probe(data: bytes) -> tuple[None, None]:
    """Check ``data``; a vector has no size in pixels.

    Raises:
        RefusedImage: see ``vector``.
    """
    vector(data)
    return None, None


def vector(data: bytes) -> np.ndarray:
    """The vector in an .npy file: float32 of shape (width,).

    An array of more axes is laid out row by row. Nothing is ever unpickled.

    Raises:
        RefusedImage: it is no .npy file of numbers, is empty, or holds what is not
            finite in float32.
    """
    values = _ours(data)
    if values is None:
        values = _read(data)
    if values.dtype.kind not in "fiub" or not values.size:
        told = f"{values.dtype} of shape {values.shape}"
        raise RefusedImage("not a vector", f"it holds {told}")
    with np.errstate(over="ignore"):
        found = values.astype(np.float32).reshape(-1)
    if not np.isfinite(found).all():
        lost = int((~np.isfinite(found)).sum())
        raise RefusedImage("not finite", f"{lost} of {len(found)} values")
    return found


def _ours(data: bytes) -> np.ndarray | None:
    """The values of what ``as_npy`` wrote, None for other files.

    numpy parses a header as Python, which takes five times as long as all the rest.
    """
    width, rest = divmod(len(data) - _MAGIC - _HEADER, _VALUE)
    if rest or width < 1 or not data.startswith(_start(width)):
        return None
    return np.frombuffer(data, "<f4", offset=_MAGIC + _HEADER)


def _read(data: bytes) -> np.ndarray:
    try:
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    # Damaged headers raise what they please.
    except Exception as error:  # noqa: BLE001
        raise RefusedImage("not a vector", f"{error}"[:200]) from None

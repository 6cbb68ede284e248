"""Precomputed vectors as bytes: an .npy file of float32, written by our own hand.

The bytes are the identity of a vector, so they must not depend on a version of numpy,
whose headers have changed.
"""

import io
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from tl_pipeline.inputs.images import RefusedImage

# 10 bytes of magic, version and length, and these, ended by a line feed.
_HEADER = 118


class VectorInput(BaseModel):
    """Vectors are taken as they are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["vector"] = "vector"


def as_npy(vector: np.ndarray) -> bytes:
    """``vector``, of shape (width,), as an .npy file (format 1.0) of float32."""
    about = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({len(vector)},), }}"
    header = about.ljust(_HEADER - 1).encode() + b"\n"
    start = b"\x93NUMPY\x01\x00" + _HEADER.to_bytes(2, "little")
    return start + header + np.ascontiguousarray(vector, "<f4").tobytes()


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
    try:
        values = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    # Damaged headers raise what they please.
    except Exception as error:  # noqa: BLE001
        raise RefusedImage("not a vector", f"{error}"[:200]) from None
    if values.dtype.kind not in "fiub" or not values.size:
        told = f"{values.dtype} of shape {values.shape}"
        raise RefusedImage("not a vector", f"it holds {told}")
    with np.errstate(over="ignore"):
        found = values.astype(np.float32).reshape(-1)
    if not np.isfinite(found).all():
        lost = int((~np.isfinite(found)).sum())
        raise RefusedImage("not finite", f"{lost} of {len(found)} values")
    return found

"""Values as they are kept: float16 takes half the bytes and keeps three digits.

Networks give float32. What is kept in float16 is rounded once, here, whether it goes
into the store or to a head at once, so that a head is given the same either way. It is
read as float32 again.
"""

from typing import NamedTuple

import numpy as np

from tl_pipeline.encoders.encoder import Encoder

GREATEST = float(np.finfo(np.float16).max)  # 65,504
BEYOND = "beyond float16"


class Rounded(NamedTuple):
    """Embeddings as they are kept.

    ``vectors`` (n, width) are float32, or float16. ``fits`` (n,) is False for rows with
    a value that float16 cannot hold, which are worthless. ``error`` is the greatest
    length of what a row lost, as a share of its own length.
    """

    vectors: np.ndarray
    fits: np.ndarray
    error: float = 0.0


def rounded(encoder: Encoder, vectors: np.ndarray) -> Rounded:
    """``vectors``, float32 of shape (n, width), as those of ``encoder`` are kept."""
    if encoder.store is None:
        return Rounded(vectors, np.ones(len(vectors), bool))
    with np.errstate(over="ignore"):  # such rows are told of
        kept = vectors.astype(np.float16)
    fits = np.asarray(np.isfinite(kept).all(axis=1))
    lost = np.linalg.norm(vectors[fits] - kept[fits], axis=1)
    lengths = np.linalg.norm(vectors[fits], axis=1)
    shares = np.divide(lost, lengths, where=lengths > 0, out=np.zeros_like(lost))
    return Rounded(kept, fits, float(shares.max(initial=0.0)))


def beyond(row: np.ndarray) -> str:
    """Why ``row`` (width,) cannot be kept, and what to do about it."""
    return (
        f"a value of its embedding is {np.abs(row).max():,.0f}, and float16 ends at "
        f"{GREATEST:,.0f}; leave store=float16 out"
    )

"""Bytes to what a network takes: pixels, tokens, vectors.

In: the bytes of one input and a ``Preprocess``. Out: arrays, or ``RefusedImage`` with
the reason.
"""

__all__ = [
    "images",
    "modalities",
    "nvjpeg_support",
    "pixels",
    "refusals",
    "resizing",
    "texts",
    "vectors",
]

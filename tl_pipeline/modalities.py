"""What an input may be (an image, a text, a vector), and all that depends on it.

The entry of a dataset decides it (``DatasetSpec.modality``), and so does the input of
an encoder (``of``). To add one: its ways to probe and to prepare, and a row in
``MODALITIES``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tl_pipeline import images, texts, vectors
from tl_pipeline.catalog_entry import Modality
from tl_pipeline.images import Preprocess
from tl_pipeline.texts import TextInput
from tl_pipeline.vectors import VectorInput

Input = Preprocess | TextInput | VectorInput


@dataclass(frozen=True)
class ModalityRow:
    """One modality.

    ``probe`` checks bytes and tells width and height in pixels, or None twice;
    ``decode`` makes of them what all encoders share, ``prepare`` of that what one of
    them is fed with, and ``collate`` a batch of it. The first three raise RefusedImage
    for what is none. ``file`` is what `tl predict` reads.
    """

    probe: Callable[[bytes], tuple[int | None, int | None]]
    decode: Callable[[bytes], Any]
    prepare: Callable[[Any, Any], Any]
    collate: Callable[[Sequence[Any]], Any]
    file: str


def _decode(data: bytes) -> Any:
    from tl_pipeline import pixels  # noqa: PLC0415 - torch

    return pixels.decode(data)


def _preprocess(image: Any, how: Preprocess) -> np.ndarray:
    from tl_pipeline import pixels  # noqa: PLC0415 - torch

    return pixels.preprocess(image, how)


def _stack(rows: Sequence[np.ndarray]) -> np.ndarray:
    from tl_pipeline import pixels  # noqa: PLC0415 - torch

    return pixels.stack(rows)


def _as_it_is(decoded: Any, how: Input) -> Any:  # noqa: ARG001 - one of several
    return decoded


MODALITIES: dict[Modality, ModalityRow] = {
    "image": ModalityRow(images.probe, _decode, _preprocess, _stack, "an image"),
    "text": ModalityRow(texts.probe, texts.text, _as_it_is, list, "one text, in UTF-8"),
    "vector": ModalityRow(
        vectors.probe, vectors.vector, _as_it_is, np.stack, "one .npy vector"
    ),
}

_OF: dict[type[Input], Modality] = {
    Preprocess: "image",
    TextInput: "text",
    VectorInput: "vector",
}


def of(how: Input) -> ModalityRow:
    """The modality of what an encoder is fed with."""
    return MODALITIES[_OF[type(how)]]

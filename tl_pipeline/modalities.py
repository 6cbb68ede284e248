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
from tl_pipeline.datasets import Modality
from tl_pipeline.images import Preprocess
from tl_pipeline.texts import TextInput
from tl_pipeline.vectors import VectorInput

Input = Preprocess | TextInput | VectorInput


@dataclass(frozen=True)
class ModalityRow:
    """One modality.

    ``probe`` checks bytes and tells width and height in pixels, or None twice;
    ``prepare`` makes of them what ``collate`` puts into one batch for the network. Both
    raise RefusedImage for what is none. ``file`` is what `tl predict` reads.
    """

    probe: Callable[[bytes], tuple[int | None, int | None]]
    prepare: Callable[[bytes, Any], Any]
    collate: Callable[[Sequence[Any]], Any]
    file: str


MODALITIES: dict[Modality, ModalityRow] = {
    "image": ModalityRow(images.probe, images.pixels, np.stack, "an image"),
    "text": ModalityRow(
        texts.probe, lambda data, _: texts.text(data), list, "one text, in UTF-8"
    ),
    "vector": ModalityRow(
        vectors.probe, lambda data, _: vectors.vector(data), np.stack, "one .npy vector"
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

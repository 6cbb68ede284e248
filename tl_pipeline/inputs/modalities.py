"""What an input may be (an image, a text, a vector), and all that depends on it.

The entry of a dataset decides it (``DatasetSpec.modality``), and so does the input of
an encoder (``of``). To add one: its ways to probe and to prepare, and a row in
``MODALITIES``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tl_pipeline.config.dataset_entry import Modality, PixelSpec
from tl_pipeline.inputs import images, texts, vectors
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.inputs.texts import TextInput
from tl_pipeline.inputs.vectors import VectorInput

Input = Preprocess | TextInput | VectorInput


class Batch(Protocol):
    """Gathers what an encoder is fed with at once."""

    def add(self, row: Any) -> None:
        """Take the next row."""
        ...

    def whole(self) -> Any:
        """What the encoder is fed with; there has to be a row."""
        ...


@dataclass(frozen=True)
class ModalityRow:
    """One modality.

    ``probe`` checks bytes and tells width and height in pixels, or None twice;
    ``decode`` makes of them what all encoders of a dataset share, one of whose inputs
    it is given, and ``prepare`` of that a row for one of them: these raise RefusedImage
    for what is none. ``batch`` gathers so many rows or fewer. ``file`` is what
    `tl predict` reads.
    """

    probe: Callable[[bytes, PixelSpec], tuple[int | None, int | None]]
    decode: Callable[[bytes, Any], Any]
    prepare: Callable[[Any, Any], Any]
    batch: Callable[[int], Batch]
    file: str


def _decode(data: bytes, how: Preprocess) -> Any:
    from tl_pipeline.inputs import pixels  # noqa: PLC0415 - torch

    return pixels.decode(data, how.pixels)


def _preprocess(image: Any, how: Preprocess) -> np.ndarray:
    from tl_pipeline.inputs import pixels  # noqa: PLC0415 - torch

    return pixels.preprocess(image, how)


def _pixels(most: int) -> Batch:
    from tl_pipeline.inputs import pixels  # noqa: PLC0415 - torch

    return pixels.PixelBatch(most)


class _Texts:
    def __init__(self, most: int) -> None:
        del most
        self._rows: list[Any] = []

    def add(self, row: Any) -> None:
        self._rows.append(row)

    def whole(self) -> Any:
        return self._rows


class _Vectors(_Texts):
    def whole(self) -> np.ndarray:
        return np.stack(self._rows)


def _as_it_is(decoded: Any, how: Input) -> Any:  # noqa: ARG001 - one of several
    return decoded


MODALITIES: dict[Modality, ModalityRow] = {
    "image": ModalityRow(images.probe, _decode, _preprocess, _pixels, "an image"),
    "text": ModalityRow(
        lambda data, _: texts.probe(data),
        lambda data, _: texts.text(data),
        _as_it_is,
        _Texts,
        "one text, in UTF-8",
    ),
    "vector": ModalityRow(
        lambda data, _: vectors.probe(data),
        lambda data, _: vectors.vector(data),
        _as_it_is,
        _Vectors,
        "one .npy vector",
    ),
}

_OF: dict[type[Input], Modality] = {
    Preprocess: "image",
    TextInput: "text",
    VectorInput: "vector",
}


def of(how: Input) -> ModalityRow:
    """The modality of what an encoder is fed with."""
    return MODALITIES[named(how)]


def named(how: Input) -> Modality:
    """The name of that modality."""
    return _OF[type(how)]


def collate(rows: Sequence[Any], how: Input) -> Any:
    """A batch of ``rows``, of which there has to be one."""
    batch = of(how).batch(len(rows))
    for row in rows:
        batch.add(row)
    return batch.whole()

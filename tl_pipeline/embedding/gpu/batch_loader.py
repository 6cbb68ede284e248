"""Batches for a GPU that decodes JPEGs by hardware of its own. Imports torch.

Decoding threads only read: they hand on the bytes of what that hardware takes, and
decode the rest on the processor. The thread that drives the network lets its GPU
decode and resize. Work per image holds up all other threads, so it is kept small.
"""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch

from tl_pipeline.data.reading import ImageRef, Read
from tl_pipeline.embedding.batch_loader import (
    BatchBuilder,
    BatchLoader,
    DecodedBatch,
    Prepared,
)
from tl_pipeline.embedding.gpu.nvjpeg import NvjpegDecoder
from tl_pipeline.inputs import nvjpeg_support, pixels
from tl_pipeline.inputs.images import Preprocess, RefusedImage
from tl_pipeline.inputs.modalities import Input
from tl_pipeline.inputs.nvjpeg_support import Sampling, Size
from tl_pipeline.inputs.resizing import Resizer, can_resize
from tl_pipeline.store.timings import Clock

# What is decoded at once: images, and pixels of all.
_MOST_IMAGES, _MOST_PIXELS = 128, 32_000_000
# Images whose sides differ by less are decoded together, into memory for the largest.
_ALIKE = 128
# Bytes that may wait for the hardware; when there are more, processors decode as well.
_WAITING = 1 << 30


class _Encoded(NamedTuple):
    """A JPEG for the hardware."""

    data: bytes
    size: Size


# Places in a batch, and what the hardware is given there.
_Chunk = list[tuple[int, _Encoded]]
# A batch for each input; None where the hardware does not take the images.
_Batches = dict[Input, torch.Tensor] | None


class NvjpegBatchLoader(BatchLoader):
    """See ``BatchLoader``; ``finish`` is for threads that drive a GPU, on their stream.

    ``samplings`` are what its hardware may be given (``nvjpeg.judge``).
    """

    def __init__(
        self,
        inputs: Sequence[Input],
        read: Read,
        reading: ThreadPoolExecutor,
        clock: Clock,
        samplings: frozenset[Sampling],
    ) -> None:
        super().__init__(inputs, read, reading, clock)
        self._samplings = samplings
        self._ways = [how for how in inputs if isinstance(how, Preprocess)]
        self._thread = threading.local()
        self._lock, self._waiting = threading.Lock(), 0

    def begin(self, images: Sequence[ImageRef]) -> Any:
        """``images`` read; what the hardware does not take is decoded."""
        with self._clock.time("read"):
            read = [self._read(image) for image in images]
        with self._clock.time("decode"):
            return [
                (image_id, self._encoded(data) or self._prepared(data))
                for (image_id, _), data in zip(images, read, strict=True)
            ]

    def finish(self, begun: Any) -> dict[Input, DecodedBatch]:
        """Decode the others; batches are uint8 tensors (n, channels, crop, crop)."""
        encoded = [(at, x) for at, (_, x) in enumerate(begun) if type(x) is _Encoded]
        with self._clock.time("decode"):
            chunks = list(_chunks(encoded))
            made = [self._decoded([one for _, one in some]) for some in chunks]
            with self._lock:
                self._waiting -= sum(len(one.data) for _, one in encoded)
            if len(made) == 1 and made[0] and len(encoded) == len(begun):
                ids = [image_id for image_id, _ in begun]
                return {how: DecodedBatch(list(ids), b) for how, b in made[0].items()}
            return self._mixed(begun, chunks, made)

    def _mixed(
        self, begun: Any, chunks: Sequence[_Chunk], made: Sequence[_Batches]
    ) -> dict[Input, DecodedBatch]:
        """Batches of what the hardware decoded and of what it did not."""
        prepared: list[tuple[str, Prepared]] = list(begun)
        for some, batches in zip(chunks, made, strict=True):
            for row, (at, one) in enumerate(some):
                found = (
                    {how: batch[row] for how, batch in batches.items()}
                    if batches
                    else self._prepared(one.data)
                )
                prepared[at] = begun[at][0], found
        batch = self._on_gpu if chunks else pixels.PixelBatch
        builder = BatchBuilder(self._inputs, batch, len(begun))
        for image_id, found in prepared:
            builder.add(image_id, found)
        return builder.build()

    def _encoded(self, data: bytes | RefusedImage) -> _Encoded | None:
        """What the hardware is to be given, if it is to be given ``data``."""
        if isinstance(data, RefusedImage):
            return None
        size = nvjpeg_support.size(data, self._samplings)
        if size is None:
            return None
        if not all(can_resize(size, how) for how in self._ways):
            return None
        with self._lock:
            if self._waiting + len(data) > _WAITING:
                return None
            self._waiting += len(data)
        return _Encoded(data, size)

    def _decoded(self, some: Sequence[_Encoded]) -> _Batches:
        """What the hardware and the resizers make of ``some``."""
        decode, resizers = self._tools()
        sizes = [one.size for one in some]
        images = decode([one.data for one in some], sizes)
        if images is None:
            return None
        batches = [resize(images, sizes) for resize in resizers]
        return dict(zip(self._ways, batches, strict=True))

    def _tools(self) -> tuple[NvjpegDecoder, list[Resizer]]:
        """What the calling thread decodes and resizes with."""
        if not hasattr(self._thread, "own"):
            device = torch.device("cuda", torch.cuda.current_device())
            resizers = [Resizer(how, device) for how in self._ways]
            self._thread.own = NvjpegDecoder(device), resizers
        return self._thread.own

    def _on_gpu(self, most: int) -> "_OnGpu":
        del most
        return _OnGpu(self._tools()[0].device)


class _OnGpu:
    """A ``Batch`` of rows that are on a GPU and others that are not."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._rows: list[torch.Tensor] = []

    def add(self, row: torch.Tensor | np.ndarray) -> None:
        there = isinstance(row, torch.Tensor)
        self._rows.append(row if there else torch.tensor(row).to(self._device))

    def whole(self) -> torch.Tensor:
        return torch.stack(self._rows)


def _chunks(encoded: _Chunk) -> Iterator[_Chunk]:
    """What may be decoded at once, of about one size."""
    alike: dict[Size, _Chunk] = {}
    for at, one in encoded:
        height, width = one.size
        alike.setdefault((height // _ALIKE, width // _ALIKE), []).append((at, one))
    for some in alike.values():
        height, width = (max(one.size[axis] for _, one in some) for axis in (0, 1))
        most = max(1, min(_MOST_IMAGES, _MOST_PIXELS // (height * width)))
        for start in range(0, len(some), most):
            yield some[start : start + most]

"""Batches for a GPU that decodes JPEGs by hardware of its own. Imports torch.

Threads that would decode only read: they hand on the bytes of what that hardware takes,
and decode the rest as ever. Who drives the network has its GPU decode and resize. All
that is done per image holds up every other thread, so there is as little as possible.
"""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch

from tl_pipeline import hardware_jpegs, pixels
from tl_pipeline.feeding import AT_A_TIME, Fed, Feeder, Image, Prepared, Read
from tl_pipeline.hardware_jpegs import HardwareJpegs, Sampling, Size
from tl_pipeline.images import Preprocess, RefusedImage
from tl_pipeline.modalities import Input
from tl_pipeline.resizing import Resizer, can_resize
from tl_pipeline.timings import Clock

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


class HardwareFeeder(Feeder):
    """See ``Feeder``; ``finish`` is for threads that drive a GPU, on their stream.

    ``samplings`` are what its hardware may be given (``hardware_jpegs.judge``).
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

    def begin(self, images: Sequence[Image]) -> Any:
        """``images`` read; what the hardware does not take is decoded."""
        read = list(self._bytes(images))
        with self._clock.time("decode"):
            return [
                (e, self._encoded(data) or self._prepared(data)) for e, data in read
            ]

    def finish(self, begun: Any) -> dict[Input, Fed]:
        """Decode the others; batches are uint8 tensors (n, channels, crop, crop)."""
        encoded = [(at, x) for at, (_, x) in enumerate(begun) if type(x) is _Encoded]
        with self._clock.time("decode"):
            prepared: list[tuple[str, Prepared]] = list(begun)
            for some in _chunks(encoded):
                for (at, _), found in zip(some, self._decoded(some), strict=True):
                    prepared[at] = begun[at][0], found
            with self._lock:
                self._waiting -= sum(len(one.data) for _, one in encoded)
            return self._fed(prepared, self._gathered if encoded else pixels.stack)

    def _bytes(
        self, images: Sequence[Image]
    ) -> Iterator[tuple[str, bytes | RefusedImage]]:
        """These threads do little else, so they read themselves."""
        starts = range(0, len(images), AT_A_TIME)
        return chain.from_iterable(
            self._read(images[start : start + AT_A_TIME]) for start in starts
        )

    def _encoded(self, data: bytes | RefusedImage) -> _Encoded | None:
        """``data`` for the hardware, if it is to be given it."""
        if isinstance(data, RefusedImage):
            return None
        size = hardware_jpegs.size(data, self._samplings)
        if size is None or not all(can_resize(size, how) for how in self._ways):
            return None
        with self._lock:
            if self._waiting + len(data) > _WAITING:
                return None
            self._waiting += len(data)
        return _Encoded(data, size)

    def _decoded(self, some: Sequence[tuple[int, _Encoded]]) -> list[Prepared]:
        decode, resizers = self._mine()
        sizes = [one.size for _, one in some]
        images = decode([one.data for _, one in some], sizes)
        if images is None:
            return [self._prepared(one.data) for _, one in some]
        batches = [resize(images, sizes).unbind() for resize in resizers]
        return [
            dict(zip(self._ways, rows, strict=True))
            for rows in zip(*batches, strict=True)
        ]

    def _mine(self) -> tuple[HardwareJpegs, list[Resizer]]:
        """What the calling thread decodes and resizes with."""
        if not hasattr(self._thread, "own"):
            device = torch.device("cuda", torch.cuda.current_device())
            resizers = [Resizer(how, device) for how in self._ways]
            self._thread.own = HardwareJpegs(device), resizers
        return self._thread.own

    def _gathered(self, rows: Sequence[torch.Tensor | np.ndarray]) -> torch.Tensor:
        """A batch on the GPU of rows that are there and others that are not."""
        device = self._mine()[0].device
        return torch.stack(
            [
                row if isinstance(row, torch.Tensor) else torch.tensor(row).to(device)
                for row in rows
            ]
        )


def _chunks(
    encoded: Sequence[tuple[int, _Encoded]],
) -> Iterator[list[tuple[int, _Encoded]]]:
    """What may be decoded at once, of about one size."""
    alike: dict[Size, list[tuple[int, _Encoded]]] = {}
    for at, one in encoded:
        height, width = one.size
        alike.setdefault((height // _ALIKE, width // _ALIKE), []).append((at, one))
    for some in alike.values():
        height, width = (max(one.size[axis] for _, one in some) for axis in (0, 1))
        most = max(1, min(_MOST_IMAGES, _MOST_PIXELS // (height * width)))
        for start in range(0, len(some), most):
            yield some[start : start + most]

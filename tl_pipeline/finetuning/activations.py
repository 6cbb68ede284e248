"""What frozen blocks give for images, computed once into a file that is mapped.

Imports torch. The file is no part of the store's artifacts: it is whole or absent, and
can be computed again.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from tl_pipeline.data.reading import ImageRef
from tl_pipeline.embedding.devices import devices
from tl_pipeline.finetuning import pixels
from tl_pipeline.finetuning.computing import autocast, sharing
from tl_pipeline.progress import notice
from tl_pipeline.store.files import publish

_BATCH, _DECODED = 64, 512  # images at a time


class Activations(NamedTuple):
    """A file of what frozen blocks gave, as it lies there: channels last."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    def opened(self) -> torch.Tensor:
        """What they gave for each image, (n, ...), channels first; it is mapped."""
        size = math.prod(self.shape)
        mapped = torch.from_file(str(self.file), size=size, dtype=self.dtype)
        values = mapped.view(self.shape)
        return values.permute(0, 3, 1, 2) if values.ndim == 4 else values


def keep(
    folder: Path,
    images: Sequence[ImageRef],
    decode: Callable[[Sequence[ImageRef]], np.ndarray],
    image: tuple[int, ...],
    prefix: nn.Module,
    kind: torch.dtype,
    done: Callable[[int], None] = lambda number: None,  # noqa: ARG005
) -> Activations:
    """Keep in ``folder`` what ``prefix`` gives for ``images``, unless it is there.

    In their order, computed in ``kind`` and kept as it comes. A file in ``folder`` that
    is there is taken to be of these images. ``decode`` gives the pixels of images,
    uint8 (n, *``image``); ``done`` is told of images that were computed.

    Raises:
        MachineError: the disk has no room for it.
        DatasetError: see ``pixels.decoded``.
    """
    device = devices()[0]
    prefix = prefix.to(device)

    def forward(batch: torch.Tensor) -> torch.Tensor:
        values = batch.to(device).to(torch.float32) / 255
        with torch.inference_mode(), autocast(device, kind):
            return _channels_last(prefix(values)).cpu().contiguous()

    sample = forward(torch.zeros(1, *image, dtype=torch.uint8))
    shape = (len(images), *sample.shape[1:])
    file = folder / f"{str(sample.dtype).removeprefix('torch.')}.bin"
    size = len(images) * sample.nbytes
    if not file.exists() or file.stat().st_size != size:
        what = f"what the frozen blocks give for {len(images):,} images"
        pixels.check_room(folder, size, what)
        notice(
            f"keeping {what} until they have been learned from: {size / 1e6:,.1f} MB"
        )
        beside = file.with_name(f".{file.name}")
        with ExitStack() as stack:
            threads, _ = stack.enter_context(sharing(device))
            handle = stack.enter_context(beside.open("wb"))
            for first in range(0, len(images), _DECODED):
                some = images[first : first + _DECODED]
                batches = torch.from_numpy(decode(some)).split(_BATCH)
                for values in threads.map(forward, batches):
                    handle.write(values.view(torch.uint8).numpy().data)
                    done(len(values))
        publish(beside, file)
    return Activations(file, shape, sample.dtype)


def _channels_last(values: torch.Tensor) -> torch.Tensor:
    """Maps as convolutions read them fastest."""
    return values.permute(0, 2, 3, 1) if values.ndim == 4 else values

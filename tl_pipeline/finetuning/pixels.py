"""The pixels of images to learn from: uint8, in one file that is mapped. No torch.

An epoch then reads pixels, not files. The file is no part of the store's artifacts.
"""

import math
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tl_pipeline.data.reading import ImageRef, Read, checked
from tl_pipeline.embedding.process import cores
from tl_pipeline.errors import DatasetError, MachineError
from tl_pipeline.inputs import modalities
from tl_pipeline.inputs.images import Preprocess, RefusedImage
from tl_pipeline.store.files import publish

_AT_A_TIME = 64


def keep(file: Path, images: Sequence[ImageRef], read: Read, how: Preprocess) -> None:
    """Put the pixels of ``images`` into ``file``, for ``opened``, unless it is there.

    It is whole or absent; if it is there it is taken to be of ``images``.

    Raises:
        DatasetError: see ``decoded``.
        MachineError: the disk has no room for it.
    """
    if file.exists():
        return
    shape = _shape(len(images), how)
    check_room(file.parent, math.prod(shape), f"the pixels of {len(images):,} images")
    beside = file.with_name(f".{file.name}")
    rows = np.lib.format.open_memmap(beside, "w+", np.uint8, shape)
    _fill(rows, images, read, how)
    rows.flush()
    publish(beside, file)


def opened(file: Path) -> np.ndarray:
    """As ``decoded``, of the images of a ``file`` that ``keep`` wrote; it is mapped."""
    return np.load(file, mmap_mode="c").transpose(0, 3, 1, 2)


def decoded(images: Sequence[ImageRef], read: Read, how: Preprocess) -> np.ndarray:
    """The pixels of ``images`` as a network is fed: uint8 (n, channels, crop, crop).

    In memory channels are last.

    Raises:
        DatasetError: one cannot be read any more, or has changed since it was embedded.
    """
    rows = np.empty(_shape(len(images), how), np.uint8)
    _fill(rows, images, read, how)
    return rows.transpose(0, 3, 1, 2)


def _shape(number: int, how: Preprocess) -> tuple[int, ...]:
    return (number, how.crop, how.crop, 1 if how.grey else len(how.mean))


def _fill(
    rows: np.ndarray, images: Sequence[ImageRef], read: Read, how: Preprocess
) -> None:
    image = modalities.of(how)

    def fill(first: int) -> None:
        some = images[first : first + _AT_A_TIME]
        for at, one in enumerate(some, first):
            try:
                row = image.prepare(image.decode(checked(one, read), how), how)
            except RefusedImage as fault:
                raise DatasetError(
                    f"{one[1]} was embedded and cannot be read now: {fault}. Run again "
                    "once it is as it was, or ingest it as it is"
                ) from None
            rows[at] = row.transpose(1, 2, 0)

    with ThreadPoolExecutor(cores()) as threads:
        list(threads.map(fill, range(0, len(images), _AT_A_TIME)))


def check_room(folder: Path, size: int, what: str) -> None:
    """See that ``folder`` takes ``size`` more bytes.

    Raises:
        MachineError: it does not; a file that is mapped would end the process.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        raise MachineError(
            f"{what} take {size / 1e9:,.1f} GB and {folder} has {free / 1e9:,.1f} GB "
            "left: free some space, put --store on another disk, or fine-tune at a "
            "smaller side=N"
        )

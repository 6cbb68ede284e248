"""All images of a training, decoded once: uint8 in one file that is mapped. No torch.

An epoch then reads pixels, not files. The file is no part of the store's artifacts.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tl_pipeline.data.reading import ImageRef, Read, checked
from tl_pipeline.embedding.process import cores
from tl_pipeline.errors import DatasetError
from tl_pipeline.inputs import modalities
from tl_pipeline.inputs.images import Preprocess, RefusedImage

_AT_A_TIME = 64


def decoded(
    images: Sequence[ImageRef],
    read: Read,
    how: Preprocess,
    file: Path,
) -> np.ndarray:
    """The pixels of ``images`` as a network is fed: uint8 (n, channels, crop, crop).

    They lie in ``file``, channels last in memory.

    Raises:
        DatasetError: one cannot be read any more, or has changed since it was embedded.
    """
    channels = 1 if how.grey else len(how.mean)
    shape = (len(images), how.crop, how.crop, channels)
    rows = np.lib.format.open_memmap(file, "w+", np.uint8, shape)
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
    return rows.transpose(0, 3, 1, 2)

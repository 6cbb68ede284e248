"""Encoded bytes to the pixels that a network is fed, several times as fast as PIL.

JPEGs are decoded by libjpeg-turbo itself, whatever it is not sure of by PIL
(``images.decode``), which alone decides what is refused. Resizing is torch's
antialiased one of uint8. Both release Python's lock, so threads work side by side.
Imports torch.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.nn import functional

from tl_pipeline.config.dataset_entry import PixelSpec
from tl_pipeline.inputs import images
from tl_pipeline.inputs.images import AS_IS, MOST_PIXELS, Preprocess, RefusedImage

_JPEG = b"\xff\xd8\xff"
_SPACES = ("Gray", "YCbCr")  # what decodes alike everywhere; CMYK does not
# By EXIF orientation, as PIL.ImageOps.exif_transpose turns.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: image.transpose(1, 0, 2)[:, ::-1],
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: image.transpose(1, 0, 2)[::-1],
}
# PIL keeps a pixel in four bytes and torch copies what it resizes: so that memory does
# not grow with the number of threads, images of more pixels are worked on one by one.
LARGE = 32_000_000
_STRIP = 1 << 20  # pixels
_one_large = threading.Lock()
# ITU-R 601-2 luma in 1/65536 and rounded, as PIL has it.
LUMA = torch.tensor([19595, 38470, 7471], dtype=torch.int32)


def decode(data: bytes, how: PixelSpec = AS_IS) -> torch.Tensor:
    """The upright image in 8-bit RGB: uint8 of shape (3, height, width).

    Its values are those of ``images.decode``.

    Raises:
        RefusedImage: see there.
    """
    found = _jpeg(data) if data.startswith(_JPEG) else None
    image = _copied(images.decode(data, how)) if found is None else found
    return torch.from_numpy(image).permute(2, 0, 1)


def preprocess(image: torch.Tensor, how: Preprocess) -> np.ndarray:
    """``image`` resized and cropped: uint8 of shape (channels, crop, crop).

    Without ``squash`` and ``pad`` it is what torchvision's ``ImageClassification``
    preset computes of a PIL image before it scales and normalises, to within 1/255: two
    in a thousand values are rounded the other way, and of bicubic ones two in a million
    are 2/255 off.

    Raises:
        RefusedImage: it is so narrow that its other side would pass the pixel limit.
    """
    with _one_large if image[0].numel() > LARGE else nullcontext():
        if how.grey:
            image = _grey(image)
        return _cropped(_resized(image, how), how).numpy()


def pixels(data: bytes, how: Preprocess) -> np.ndarray:
    """``decode`` and ``preprocess`` in one: uint8 of shape (channels, crop, crop).

    Raises:
        RefusedImage: see there.
    """
    return preprocess(decode(data, how.pixels), how)


class PixelBatch:
    """Gathers at most ``most`` rows of one shape, (channels, side, side).

    They are copied at once, while they are in the cache of the processor. The memory
    of the batch has the channels last: so pixels come, and so convolutions like them.
    """

    def __init__(self, most: int) -> None:
        self._most, self._there = most, 0
        self._rows = np.empty(0, np.uint8)

    def add(self, row: np.ndarray) -> None:
        """Copy the next row."""
        channels, height, width = row.shape
        if not self._there:
            self._rows = np.empty((self._most, height, width, channels), np.uint8)
        self._rows[self._there] = row.transpose(1, 2, 0)
        self._there += 1

    def whole(self) -> np.ndarray:
        """All of them: uint8 of shape (n, channels, side, side), n not 0."""
        return self._rows[: self._there].transpose(0, 3, 1, 2)


def stack(rows: Sequence[np.ndarray]) -> np.ndarray:
    """A ``PixelBatch`` of ``rows``."""
    batch = PixelBatch(len(rows))
    for row in rows:
        batch.add(row)
    return batch.whole()


def _jpeg(data: bytes) -> np.ndarray | None:
    """The pixels (height, width, 3) of a whole JPEG of colour or grey, else None.

    Raises:
        RefusedImage: it is over the pixel limit.
    """
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if space not in _SPACES:
            return None
        images.check_size(int(width), int(height))
        turned = images.orientation(data)
        # strict: PIL has its own opinion of damaged ones
        found = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError:
        return None
    return found if turned is None else np.ascontiguousarray(_UPRIGHT[turned](found))


def _copied(image: Image.Image) -> np.ndarray:
    """The pixels of ``image``, strip by strip: as a whole PIL would copy them twice."""
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        box = (0, top, width, min(top + rows, height))
        pixels[top : box[3]] = np.asarray(image.crop(box))
    return pixels


def _grey(image: torch.Tensor) -> torch.Tensor:
    red, green, blue = (
        channel.to(torch.int32) * factor
        for channel, factor in zip(image, LUMA, strict=True)
    )
    return ((red + green + blue + 0x8000) >> 16).to(torch.uint8)[None]


def size_of(size: tuple[int, int], how: Preprocess) -> tuple[int, int]:
    """What ``size``, (height, width), becomes before the crop.

    Raises:
        RefusedImage: it is so narrow that its other side would pass the pixel limit.
    """
    height, width = size
    if how.squash:
        return how.resize, how.resize
    if how.pad:
        scale = how.resize / max(size)
        return max(1, round(height * scale)), max(1, round(width * scale))
    # As torchvision: the longer side is truncated, not rounded.
    stretched = int(how.resize * max(height, width) / min(height, width))
    if how.resize * stretched > MOST_PIXELS:
        raise RefusedImage(
            "too many pixels",
            f"{width}x{height} would become {how.resize}x{stretched}",
        )
    return (how.resize, stretched) if height <= width else (stretched, how.resize)


def place_of_crop(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Top and left of the centre crop of ``size``, halves rounded to even."""
    top, left = (round((length - side) / 2.0) for length in size)
    return top, left


def _resized(image: torch.Tensor, how: Preprocess) -> torch.Tensor:
    height, width = image.shape[1:]
    size = size_of((height, width), how)
    if size == (height, width):
        return image
    if how.interpolation == "nearest":  # which of two is nearest is PIL's own opinion
        return _nearest(image, size)
    # As a batch whose memory tells that the channels are last, so that they stay there.
    batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    mode = how.interpolation
    return functional.interpolate(batch, size=size, mode=mode, antialias=True)[0]


def _nearest(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    channels = [Image.fromarray(channel.numpy()) for channel in image]
    nearest = Image.Resampling.NEAREST
    resized = [np.asarray(c.resize((size[1], size[0]), nearest)) for c in channels]
    return torch.from_numpy(np.stack(resized))


def _cropped(image: torch.Tensor, how: Preprocess) -> torch.Tensor:
    side = how.crop
    height, width = image.shape[1:]
    if how.pad:
        return _letterboxed(image, how)
    if min(height, width) < side:
        # torchvision pads with zeros, the odd pixel at the right and the bottom.
        left, top = (max(0, side - length) // 2 for length in (width, height))
        right, bottom = (
            max(0, side - length) - before
            for length, before in ((width, left), (height, top))
        )
        image = functional.pad(image, (left, right, top, bottom))
        height, width = image.shape[1:]
    top, left = place_of_crop((height, width), side)
    return image[:, top : top + side, left : left + side]


def _letterboxed(image: torch.Tensor, how: Preprocess) -> torch.Tensor:
    """``image`` in the middle of a square of the mean: nearly 0 once normalised."""
    mean = torch.tensor(how.mean[: image.shape[0]]).mul(255).round().to(torch.uint8)
    square = mean[:, None, None].repeat(1, how.crop, how.crop)
    height, width = image.shape[1:]
    top, left = (how.crop - height) // 2, (how.crop - width) // 2
    square[:, top : top + height, left : left + width] = image
    return square

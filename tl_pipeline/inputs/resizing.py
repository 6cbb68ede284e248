"""Resizing and cropping many images at once, with the pixels of ``pixels.preprocess``.

torch resizes uint8 on a processor in integers: along each row first and then along each
column, each time rounded to uint8, with weights of 16 bits. Here the same weights are
matrices, and a pass is a product of float32, in which such integers are exact. Of
photos that shrink to a tenth they are not quite: one value in many thousands is 1/255
off. Made for GPUs, where such products cost next to nothing. Imports torch.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from tl_pipeline.inputs.images import Preprocess, RefusedImage
from tl_pipeline.inputs.pixels import LUMA, place_of_crop, size_of

Size = tuple[int, int]  # height, width

_KEPT = 64  # matrices of sizes
_MOST_BITS = 22  # of a weight, before it is told that it has 16


def _triangle(distance: torch.Tensor) -> torch.Tensor:
    return (1 - distance).clamp_(min=0)


def _cubic(distance: torch.Tensor) -> torch.Tensor:
    """Keys' cubic convolution with a = -1/2, as of PIL and of torch's antialiasing."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0))


# By interpolation: the weight by distance in pixels, and how far it reaches.
_FILTERS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], int]] = {
    "bilinear": (_triangle, 1),
    "bicubic": (_cubic, 2),
}


def can_resize(size: Size, how: Preprocess) -> bool:
    """Whether this is for an image of ``size``; else ``pixels.preprocess`` is."""
    if how.interpolation not in _FILTERS:
        return False
    try:
        return min(size_of(size, how)) >= how.crop
    except RefusedImage:
        return False


class Resizer:
    """Resizes and crops as ``how`` says, on ``device``, in any thread.

    Called with uint8 images (n, 3, height, width), each in the upper left of what all
    share and of its own size in ``sizes``, it gives uint8 (n, channels, crop, crop).
    """

    def __init__(self, how: Preprocess, device: torch.device) -> None:
        self._how, self._device = how, device
        # Of many sizes at once they would take more memory than they save time.
        self._of_one_size = lru_cache(_KEPT)(self._both)

    def __call__(self, images: torch.Tensor, sizes: Sequence[Size]) -> torch.Tensor:
        """Resize a batch."""
        room = (images.shape[2], images.shape[3])
        every = tuple(dict.fromkeys(sizes))
        if len(every) == 1:
            rows, columns = self._of_one_size(every, room)
        else:
            at = torch.tensor([every.index(size) for size in sizes]).to(self._device)
            rows, columns = (axis.of(at) for axis in self._both(every, room))
        values = (_grey(images) if self._how.grey else images).float()
        along = columns.rounded(values @ columns.weights[:, None].mT)
        return rows.rounded(rows.weights[:, None] @ along).to(torch.uint8)

    def _both(self, sizes: Sequence[Size], room: Size) -> tuple["_Pass", "_Pass"]:
        """The passes along columns and along rows, for each of ``sizes``."""
        resized = [size_of(size, self._how) for size in sizes]
        begins = [place_of_crop(size, self._how.crop) for size in resized]
        rows, columns = (
            self._pass(
                [size[axis] for size in sizes],
                [size[axis] for size in resized],
                [begin[axis] for begin in begins],
                room[axis],
            )
            for axis in (0, 1)
        )
        return rows, columns

    def _pass(
        self, lengths: list[int], resized: list[int], begins: list[int], room: int
    ) -> "_Pass":
        """From so many pixels to so many, of which the crop begins at ``begins``.

        Weights are made for the whole image, since the largest of all sets the unit.
        """
        shares, first = self._shares(lengths, resized)
        bits = _bits(shares.amax(dim=(1, 2)))
        units = (shares * (1 << bits)[:, None, None]).abs_().add_(0.5).floor_()
        units = units.copysign_(shares).float()
        crop = torch.tensor(begins).to(self._device)[:, None]
        crop = crop + torch.arange(self._how.crop, device=self._device)
        every = crop[..., None].expand(-1, -1, units.shape[2])
        place = torch.arange(units.shape[2], device=self._device)
        place = first.gather(1, crop)[..., None] + place
        shape = (len(lengths), self._how.crop, room)
        weights = torch.zeros(shape, device=self._device)
        # Where an output reaches beyond the image its weight is 0.
        weights.scatter_add_(2, place.clamp_(max=room - 1), units.gather(1, every))
        return _Pass(weights, 1 / (1 << bits).float()[:, None, None, None])

    def _shares(
        self, lengths: list[int], resized: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (n, outputs, reach), and the input that each output begins with.

        As PIL and torch: in float64, the sum of those of an output is 1.
        """
        around, reach = _FILTERS[self._how.interpolation]
        whole, wanted = torch.tensor([lengths, resized]).to(self._device)[..., None]
        scale = whole.double() / wanted.double()
        stretch = scale.clamp(min=1.0)
        support = reach * stretch
        output = torch.arange(max(resized), device=self._device)[None]
        centre = scale * (output + 0.5)
        first = (centre - support + 0.5).long().clamp_(min=0)
        last = torch.minimum((centre + support + 0.5).long(), whole)
        shrunk = max(a / b for a, b in zip(lengths, resized, strict=True))
        most = math.ceil(reach * max(shrunk, 1.0)) * 2 + 1
        place = first[..., None] + torch.arange(most, device=self._device)
        inside = (place < last[..., None]) & (output < wanted)[..., None]
        distance = (place - centre[..., None] + 0.5).abs_() / stretch[..., None]
        shares = around(distance).mul_(inside)
        total = shares.sum(dim=2, keepdim=True)
        return shares.div_(total.where(total != 0, 1)), first


class _Pass(NamedTuple):
    """``weights`` (n, crop, inputs) in units of ``unit`` (n, 1, 1, 1)."""

    weights: torch.Tensor
    unit: torch.Tensor

    def of(self, at: torch.Tensor) -> "_Pass":
        """Those of images, by their positions."""
        return _Pass(self.weights[at], self.unit[at])

    def rounded(self, sums: torch.Tensor) -> torch.Tensor:
        """``sums`` in the unit to whole numbers of 0 to 255, halves up."""
        return sums.mul_(self.unit).add_(0.5).floor_().clamp_(0, 255)


def _bits(largest: torch.Tensor) -> torch.Tensor:
    """The most bits with which the largest weight (n,) still fits into 16, signed."""
    powers = 2 << torch.arange(_MOST_BITS, device=largest.device)
    fits = (largest[:, None] * powers + 0.5).floor() < 1 << 15
    return fits.sum(dim=1)


def _grey(pixels: torch.Tensor) -> torch.Tensor:
    luma = LUMA.to(pixels.device)[:, None, None]
    total = (pixels.to(torch.int32) * luma).sum(dim=1, keepdim=True, dtype=torch.int32)
    return (total + 0x8000) >> 16

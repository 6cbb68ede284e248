"""Random changes of training images, a whole batch at a time. Imports torch.

Every image is changed by draws of its own, which are made for a whole batch, so that it
does not matter in how many parts a batch is computed. The geometry (rotation, scale,
place, mirror) is one bilinear sampling of the batch, the colours are a few products, so
that it costs little beside a step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from tl_pipeline.config.finetune_specs import Augmentation

_DEGREES = 10.0
_SHIFT = 0.08  # of a side
_SCALES = (0.9, 1.1)
_JITTER = 0.25  # of brightness, contrast and saturation
# Of random resized crops (Szegedy et al. 2015): less of an image is another image.
_AREA = (0.35, 1.0)
_ASPECTS = (3 / 4, 4 / 3)
_LUMA = (0.299, 0.587, 0.114)
# Classes of torchvision.transforms.v2.
_POLICIES = {"randaugment": "RandAugment", "trivialaugment": "TrivialAugmentWide"}


@dataclass(frozen=True)
class Draws:
    """What happens to each of n images.

    ``matrices`` (n, 2, 3) give the place in the image that each place of the output
    shows, ``factors`` (n, 3) those of brightness, contrast and saturation; None where
    nothing is changed.
    """

    matrices: torch.Tensor | None
    factors: torch.Tensor | None

    def part(self, some: slice) -> "Draws":
        """Of some of the images."""
        both = (self.matrices, self.factors)
        return Draws(*(None if one is None else one[some] for one in both))

    def chunk(self, number: int) -> "list[Draws]":
        """Of the images in ``number`` parts, as torch divides them."""
        return [
            Draws(matrices, factors)
            for matrices, factors in zip(
                _chunks(self.matrices, number),
                _chunks(self.factors, number),
                strict=True,
            )
        ]


def _chunks(values: torch.Tensor | None, number: int) -> Sequence[torch.Tensor | None]:
    return [None] * number if values is None else values.chunk(number)


def drawn(
    number: int, how: Augmentation, *, mirror: bool, chance: torch.Generator
) -> Draws:
    """Draws for ``number`` images; with ``mirror`` half of them are mirrored."""
    moved, recoloured = how in {"affine", "crop"} or mirror, how in {"affine", "crop"}
    return Draws(
        _matrices(number, how, mirror, chance) if moved else None,
        _between(3 * number, 1 - _JITTER, 1 + _JITTER, chance).view(number, 3)
        if recoloured
        else None,
    )


def applied(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """``images``, uint8 (n, channels, side, side), changed: float32 in [0, 1].

    Values that are no pixels stay as they are.
    """
    if images.dtype != torch.uint8:
        return images
    values = images.to(torch.float32) / 255
    if draws.matrices is not None:
        values = _sampled(values, draws.matrices)
    return values if draws.factors is None else _recoloured(values, draws.factors)


def by_policy(
    images: torch.Tensor, how: Augmentation, chance: torch.Generator
) -> torch.Tensor:
    """``images`` by a policy of torchvision, one after another; uint8 as they came.

    Its policies draw once for all images that they are given, from torch's own
    generator.
    """
    if how not in _POLICIES:
        return images
    from torchvision.transforms import v2  # noqa: PLC0415 - where it is asked for

    policy = getattr(v2, _POLICIES[how])()
    seed = int(torch.randint(0, 2**62, (1,), generator=chance))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.stack([policy(image) for image in images])


def _matrices(
    number: int, how: Augmentation, mirror: bool, chance: torch.Generator
) -> torch.Tensor:
    """The place in the image that each place of the output shows: (n, 2, 3)."""
    if how == "affine":
        angle = _between(number, -_DEGREES, _DEGREES, chance) * (math.pi / 180)
        width = height = 1 / _between(number, *_SCALES, chance)
        left, top = (2 * _between(number, -_SHIFT, _SHIFT, chance) for _ in range(2))
    else:
        angle = torch.zeros(number)
        width = height = torch.ones(number)
        left = top = torch.zeros(number)
    if how == "crop":
        area = _between(number, *_AREA, chance)
        narrow, wide = map(math.log, _ASPECTS)
        aspect = _between(number, narrow, wide, chance).exp()
        width = (area * aspect).sqrt().clamp(max=1)
        height = (area / aspect).sqrt().clamp(max=1)
        left, top = (
            _between(number, -1, 1, chance) * (1 - shown) for shown in (width, height)
        )
    side = torch.ones(number)
    if mirror:
        side = 1 - 2 * (torch.rand(number, generator=chance) < 0.5).float()
    cosine, sine = angle.cos(), angle.sin()
    rows = [
        torch.stack([side * cosine * width, -sine * height, left], dim=1),
        torch.stack([side * sine * width, cosine * height, top], dim=1),
    ]
    return torch.stack(rows, dim=1)


def _sampled(values: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    size = list(values.shape)
    grid = functional.affine_grid(matrices.to(values.device), size, align_corners=False)
    return functional.grid_sample(
        values, grid, padding_mode="reflection", align_corners=False
    )


def _recoloured(values: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Brightness, then contrast, then saturation."""
    brightness, contrast, saturation = (
        factor.view(-1, 1, 1, 1) for factor in factors.to(values.device).unbind(dim=1)
    )
    values = values * brightness
    mean = values.mean(dim=(1, 2, 3), keepdim=True)
    values = mean + (values - mean) * contrast
    if values.shape[1] == 3:
        luma = torch.tensor(_LUMA, device=values.device).view(1, 3, 1, 1)
        grey = (values * luma).sum(dim=1, keepdim=True)
        values = grey + (values - grey) * saturation
    return values.clamp_(0, 1)


def _between(
    number: int, low: float, high: float, chance: torch.Generator
) -> torch.Tensor:
    return low + (high - low) * torch.rand(number, generator=chance)

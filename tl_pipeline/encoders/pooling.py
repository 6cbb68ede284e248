"""How the output of a layer becomes one vector an image. Imports torch."""

from math import isqrt

import torch
from torch.nn import functional

from tl_pipeline.encoders.backbones import CELLS, Backbone, Layer, Pooling
from tl_pipeline.errors import InvalidSpec

Shape = tuple[int, ...]

_GEM_POWER, _GEM_FLOOR = 3.0, 1e-6


class PooledLayer:
    """The pooling of one layer, whose output for one image has ``shape``.

    ``grown`` is that for a larger image: the axis of a map that does not grow with its
    input is that of the channels, the last one in Swin and the first elsewhere. Where
    the network takes one size only, it is the axis whose length the others do not have.
    Tokens after ``backbone.prefix`` are the places of a square map, row by row.
    ``tokens`` is how many the pooling of that name keeps: class tokens, without
    registers, then the places; of a map its places. Channels vary fastest.

    Raises:
        InvalidSpec: it does not suit the layer; says which poolings do.
    """

    def __init__(
        self, backbone: Backbone, layer: Layer, shape: Shape, grown: Shape
    ) -> None:
        self._pooling: Pooling = layer.pooling
        self._prefix = backbone.prefix
        self._channels_last = _channels_last(shape, grown)
        height, width = self._size(shape)
        self.tokens = height * width
        if len(shape) == 2:
            self.tokens = shape[0] - self._prefix.count + self._prefix.classes
        fits = _fitting(len(shape), backbone.prefix.classes, min(height, width))
        if layer.pooling not in fits:
            raise InvalidSpec(_unfit(backbone, layer, shape, fits))
        if height != width and layer.pooling != "flatten":
            raise InvalidSpec(
                f"{backbone.name} layer {layer.node!r} gives {_told(shape)} "
                "for a square image, which is no map of it"
            )

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """(n, ...) to (n, width)."""
        match self._pooling:
            case "none" | "flatten":
                return self._without_registers(values).flatten(1)
            case "cls":
                return values[:, : self._prefix.classes].flatten(1)
            case "cls+mean":
                classes = values[:, : self._prefix.classes].flatten(1)
                mean = values[:, self._prefix.count :].mean(dim=1)
                return torch.cat([classes, mean], dim=1)
            case "tokens":
                places = self._places(values).flatten(2).transpose(1, 2)
                if values.ndim == 3 and self._prefix.classes:
                    classes = values[:, : self._prefix.classes]
                    places = torch.cat([classes, places], dim=1)
                return places.flatten(1)
        return _over_places(self._places(values), self._pooling)

    def _without_registers(self, values: torch.Tensor) -> torch.Tensor:
        """Registers are no part of a layer without class tokens."""
        alone = self._prefix.count > 0 and not self._prefix.classes
        return values[:, self._prefix.count :] if alone else values

    def _places(self, values: torch.Tensor) -> torch.Tensor:
        """(n, channels, height, width) of a map, (n, channels, tokens) of tokens."""
        if values.ndim == 3:
            return values[:, self._prefix.count :].transpose(1, 2)
        return values.permute(0, 3, 1, 2) if self._channels_last else values

    def _size(self, shape: Shape) -> tuple[int, int]:
        """Height and width of the map; zeros where the places form none."""
        if len(shape) == 3:
            first = 0 if self._channels_last else 1
            return shape[first], shape[first + 1]
        tokens = shape[0] - self._prefix.count if len(shape) == 2 else 0
        side = isqrt(max(tokens, 0))
        return (side, side) if side**2 == tokens else (0, 0)


def usual_pooling(backbone: Backbone, layer: str, shape: Shape | None) -> Pooling:
    """What is right for a layer whose output for one image has that ``shape``.

    Raises:
        InvalidSpec: nothing is.
    """
    match len(shape or ()):
        case 1:
            return "none"
        case 2:
            return "cls" if backbone.prefix.classes else "mean"
        case 3:
            return "mean"
    raise InvalidSpec(
        f"{backbone.name} layer {layer!r} gives {_told(shape)} for an image, which no "
        f"pooling makes a vector; `tl backbones show {backbone.name}` lists layers"
    )


def _over_places(places: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """(n, channels, height, width) or (n, channels, tokens) to (n, width).

    Of a grid come all cells of the first channel, row by row, then those of the next.
    Neighbouring cells share a row where their number does not divide the height, as
    torch's adaptive average has it, and so with columns.
    """
    axes = tuple(range(2, places.ndim))
    match pooling:
        case "mean":
            return places.mean(dim=axes)
        case "gem":
            return gem(places, axes)
        case "avg+max":
            return torch.cat([places.mean(dim=axes), places.amax(dim=axes)], dim=1)
    if places.ndim == 3:
        side = isqrt(places.shape[2])
        places = places.unflatten(2, (side, side))
    return functional.adaptive_avg_pool2d(places, CELLS[pooling]).flatten(1)


def gem(values: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """Generalised mean over ``axes`` with p = 3; negative values count as none.

    Source: Radenović, Tolias and Chum, "Fine-tuning CNN Image Retrieval with No Human
    Annotation", IEEE TPAMI 41(7), 2019, section 3.2, equation 3.
    """
    powers = values.clamp(min=_GEM_FLOOR).pow(_GEM_POWER)
    return powers.mean(dim=axes).pow(1 / _GEM_POWER)


def _channels_last(shape: Shape, grown: Shape) -> bool:
    """Whether the last axis of a map is that of the channels."""
    if len(shape) != 3:
        return False
    if len(grown) == len(shape):
        moved = [length != now for length, now in zip(grown, shape, strict=True)]
        return moved == [True, True, False]
    return shape[0] == shape[1] != shape[2]


def _fitting(axes: int, class_tokens: int, side: int) -> tuple[Pooling, ...]:
    """The poolings of an output that has so many axes for one image.

    ``side`` is the shorter one of its map: no cell of a grid may be without a place.
    """
    grids: list[Pooling] = [grid for grid, cells in CELLS.items() if cells <= side]
    maps: tuple[Pooling, ...] = ("mean", "avg+max", *grids, "gem", "flatten", "tokens")
    classed: tuple[Pooling, ...] = ("cls", "cls+mean") if class_tokens else ()
    return {1: ("none", "flatten"), 2: (*maps, *classed), 3: maps}.get(axes, ())


def _unfit(
    backbone: Backbone, layer: Layer, shape: Shape, fits: tuple[Pooling, ...]
) -> str:
    """That the pooling of ``layer`` does not suit it, and which ones do."""
    classed = layer.pooling in {"cls", "cls+mean"} and not backbone.prefix.classes
    said = (
        f"{_spelt(layer.pooling)} does not fit layer {layer.node!r} of "
        f"{backbone.name}, which gives {_told(shape)} for an image"
        f"{' and has no class token' * classed}. Fits: {', '.join(map(_spelt, fits))}"
    )
    if len(shape) > 1 or classed:
        return said
    return (
        f"{said}. A layer that gives a map takes others; "
        f"`tl backbones show {backbone.name}` lists layers"
    )


def _spelt(pooling: Pooling) -> str:
    """A pooling as a wish has it."""
    named = {"none": "no pool at all", "mean": "pool=gap"}
    return named.get(pooling, f"pool={pooling}")


def _told(shape: Shape | None) -> str:
    if not shape:
        return "nothing"
    return f"({', '.join(map(str, shape))})"

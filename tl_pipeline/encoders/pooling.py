"""How the output of a layer becomes one vector an image. Imports torch."""

from functools import partial

import torch

from tl_pipeline.encoders.backbones import Backbone, Layer, Pooling
from tl_pipeline.errors import InvalidSpec

Shape = tuple[int, ...]

_GEM_POWER, _GEM_FLOOR = 3.0, 1e-6


class PooledLayer:
    """The pooling of one layer, whose output for one image has ``shape``.

    ``grown`` is that for a larger image: the axis of a map that does not grow with its
    input is that of the channels, the last one in Swin and the first elsewhere.

    Raises:
        InvalidSpec: it does not suit the layer; says which poolings do.
    """

    def __init__(
        self, backbone: Backbone, layer: Layer, shape: Shape, grown: Shape
    ) -> None:
        self._pooling, self._tokens = layer.pooling, backbone.class_tokens
        fits = _fitting(len(shape), backbone.class_tokens)
        if layer.pooling not in fits:
            unclassed = "" if backbone.class_tokens else " and has no class token"
            raise InvalidSpec(
                f"{_spelt(layer.pooling)} does not fit layer {layer.node!r} of "
                f"{backbone.name}, which gives {_told(shape)} for an "
                f"image{unclassed}. Fits: {', '.join(map(_spelt, fits))}"
            )
        self._axes: tuple[int, ...] = (1,)
        if len(shape) == 3 and layer.pooling != "flatten":
            moved = [axis for axis in (0, 1, 2) if grown and grown[axis] != shape[axis]]
            self._axes = (1, 2) if moved == [0, 1] else (2, 3)  # those of a batch
            height, width = (shape[axis - 1] for axis in self._axes)
            if height != width:
                raise InvalidSpec(
                    f"{backbone.name} layer {layer.node!r} gives {_told(shape)} "
                    "for a square image, which is no map of it"
                )

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """(n, ...) to (n, width)."""
        match self._pooling:
            case "none":
                return values
            case "flatten":
                return values.flatten(1)
            case "cls":
                return values[:, 0]
            case "cls+mean":
                mean = values[:, self._tokens :].mean(dim=1)
                return torch.cat([values[:, 0], mean], dim=1)
        if values.ndim == 3:
            values = values[:, self._tokens :]
        average = (
            partial(gem, axes=self._axes) if self._pooling == "gem" else self._mean
        )
        return average(values)

    def _mean(self, values: torch.Tensor) -> torch.Tensor:
        return values.mean(dim=self._axes)


def usual_pooling(backbone: Backbone, layer: str, shape: Shape | None) -> Pooling:
    """What is right for a layer whose output for one image has that ``shape``.

    Raises:
        InvalidSpec: nothing is.
    """
    match len(shape or ()):
        case 1:
            return "none"
        case 2:
            return "cls" if backbone.class_tokens else "mean"
        case 3:
            return "mean"
    raise InvalidSpec(
        f"{backbone.name} layer {layer!r} gives {_told(shape)} for an image, which no "
        f"pooling makes a vector; `tl backbones show {backbone.name}` lists layers"
    )


def gem(values: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """Generalised mean over ``axes`` with p = 3; negative values count as none.

    Source: Radenović, Tolias and Chum, "Fine-tuning CNN Image Retrieval with No Human
    Annotation", IEEE TPAMI 41(7), 2019, section 3.2, equation 3.
    """
    powers = values.clamp(min=_GEM_FLOOR).pow(_GEM_POWER)
    return powers.mean(dim=axes).pow(1 / _GEM_POWER)


def _fitting(axes: int, class_tokens: int) -> tuple[Pooling, ...]:
    """The poolings of an output that has so many axes for one image."""
    maps: tuple[Pooling, ...] = ("mean", "gem", "flatten")
    classed: tuple[Pooling, ...] = ("cls", "cls+mean") if class_tokens else ()
    return {1: ("none", "flatten"), 2: (*maps, *classed), 3: maps}.get(axes, ())


def _spelt(pooling: Pooling) -> str:
    """A pooling as a wish has it."""
    named = {"none": "no pool at all", "mean": "pool=gap"}
    return named.get(pooling, f"pool={pooling}")


def _told(shape: Shape | None) -> str:
    if not shape:
        return "nothing"
    return f"({', '.join(map(str, shape))})"

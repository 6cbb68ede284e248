"""Layers that multiply integers by oneDNN, and what lies between them. Imports torch.

A tensor in uint8 stands for values by its ``Codes``; weights are int8, with a step for
each output channel.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from tl_pipeline.embedding.onednn_fusion import Fused

STEPS = 255  # between the lowest and the highest code
_SIGNED = 127
_OPS = torch.ops.onednn
_AFTER = {
    "none": lambda values: values,
    "relu": functional.relu,
    "hardtanh": functional.relu6,
    "hardswish": functional.hardswish,
    "swish": functional.silu,
}


class Codes(NamedTuple):
    """What uint8 stands for: (code - zero) * step."""

    step: float
    zero: int


def pool(
    codes: torch.Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    size: tuple[int, int],
) -> torch.Tensor:
    """The largest of each window of uint8 (n, channels, height, width), to ``size``."""
    for axis in (0, 1):
        there, before = codes.shape[2 + axis], padding[axis]
        reach = (size[axis] - 1) * stride[axis] + 1  # from the first window to the last
        after = max(0, reach + kernel[axis] - 1 - there - before)
        if before or after:
            sides = (0, 0, before, after) if axis == 0 else (before, after)
            codes = functional.pad(codes, sides)
        every = (slice(None),) * (2 + axis)
        views = [
            codes[(*every, slice(at, at + reach, stride[axis]))]
            for at in range(kernel[axis])
        ]
        codes = views[0]
        for view in views[1:]:
            codes = torch.maximum(codes, view)
    return codes


def encode(values: torch.Tensor, step: float, zero: int) -> torch.Tensor:
    """float32 to uint8, rounded to the nearest."""
    return values.mul(1 / step).round_().add_(zero).clamp_(0, STEPS).to(torch.uint8)


def decode(codes: torch.Tensor, step: float, zero: int) -> torch.Tensor:
    """uint8 to float32."""
    return codes.to(torch.float32).sub_(zero).mul_(step)


class IntegerLayer(Fused):
    """Float until ``pack``; then from uint8 to uint8, or to float32 without ``gives``.

    ``adds`` is what the codes of the other tensor stand for, None if it is float32.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        self.given = Codes(1.0, 0)
        self.gives: Codes | None = None
        self.adds: Codes | None = None
        self.spoils = False  # whether nobody needs the other tensor afterwards
        self._weight: torch.Tensor | None = None

    def pack(self, shape: torch.Size) -> None:
        """Keep the weights as integers, in oneDNN's order for inputs of ``shape``."""
        weight = self.layer.weight.detach()
        most = weight.flatten(1).abs().amax(dim=1).clamp_min(1e-12)
        self._steps = most / _SIGNED
        each = self._steps.view(-1, *[1] * (weight.ndim - 1))
        integers = (weight / each).round_().clamp_(-_SIGNED, _SIGNED).to(torch.int8)
        self._weight = self._ordered(integers, shape)
        self._zeros = torch.zeros(len(weight), dtype=torch.int64)
        bias = self.layer.bias
        self._bias = None if bias is None else bias.detach()
        self._where = self._geometry()
        del self.layer

    def _geometry(self) -> tuple[Any, ...]:
        return ()

    def _ordered(self, weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        raise NotImplementedError

    def _product(self, values: torch.Tensor, gives: Codes | None, after: Any) -> Any:
        raise NotImplementedError

    def forward(
        self, values: torch.Tensor, other: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The layer, ``other`` added, the activation."""
        if self._weight is None:
            values = self.layer(values)
            values = values if other is None else values + other
            return _AFTER[self.activation[0]](values)
        if other is None:
            return self._product(values, self.gives, self.activation)
        if self.adds and self.gives:
            spoilt = other if self.spoils else other.clone()
            return self._sum(values, spoilt, self.adds, self.gives)
        found = self._product(values, None, ("none", []))
        found += decode(other, *self.adds) if self.adds else other
        found = _AFTER[self.activation[0]](found)
        return encode(found, *self.gives) if self.gives else found

    def _sum(
        self, values: torch.Tensor, other: torch.Tensor, adds: Codes, gives: Codes
    ) -> torch.Tensor:
        raise NotImplementedError


class _Convolution(IntegerLayer):
    sums = True

    def _geometry(self) -> tuple[Any, ...]:
        layer = self.layer
        where = (list(layer.stride), list(layer.padding), list(layer.dilation))
        return (*where, layer.groups)

    def _ordered(self, weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        given = (*self.given, *self._geometry())
        return _OPS.qconv_prepack(weight, self._steps, *given, list(shape))

    def _product(self, values: torch.Tensor, gives: Codes | None, after: Any) -> Any:
        weight = (self._weight, self._steps, self._zeros, self._bias)
        return _OPS.qconv_pointwise(
            values, *self.given, *weight, *self._where, *_target(gives), *after, ""
        )

    def _sum(
        self, values: torch.Tensor, other: torch.Tensor, adds: Codes, gives: Codes
    ) -> torch.Tensor:
        weight = (self._weight, self._steps, self._zeros)
        name, scalars = self.activation
        return _OPS.qconv2d_pointwise.binary(
            *(values, *self.given, *weight, other, self._bias, *self._where),
            *(*_target(gives), *adds, "sum", 1.0),
            *(name, scalars, ""),
        )


class _Linear(IntegerLayer):
    takes = ("relu",)

    def _ordered(self, weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        return _OPS.qlinear_prepack(weight, list(shape))

    def _product(self, values: torch.Tensor, gives: Codes | None, after: Any) -> Any:
        weight = (self._weight, self._steps, self._zeros, self._bias)
        return _OPS.qlinear_pointwise(
            values, *self.given, *weight, *_target(gives), *after, ""
        )


def _target(gives: Codes | None) -> tuple[float, int, torch.dtype]:
    """What oneDNN is to give: codes, or float32."""
    if gives is None:
        return 1.0, 0, torch.float32
    return gives.step, gives.zero, torch.uint8


def kind_of(layer: Any) -> type[IntegerLayer] | None:
    """What computes ``layer`` in integers, None where nothing does."""
    if type(layer) is nn.Linear:
        return _Linear
    plain = type(layer) is nn.Conv2d and layer.padding_mode == "zeros"
    return _Convolution if plain and not isinstance(layer.padding, str) else None

"""A traced network computed in 8-bit integers on a processor. Imports torch.

Post-training static quantisation (Jacob et al. 2018, arXiv:1712.05877, section 3): a
tensor is 256 steps between the extremes that it had over some images, and weights are
127 steps to either side of zero, for each output channel apart. Convolutions and linear
layers multiply integers by oneDNN, with the activation and the sum that follow them.
What only picks or joins values passes integers on; all else computes in float32.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional

from tl_pipeline.packing import Fused, calls, fuse, module_of, shape_of

_OPS = torch.ops.onednn
_STEPS, _SIGNED = 255, 127
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


def can_quantise() -> bool:
    """Whether this torch has what ``quantise`` needs for this processor."""
    names = ("qconv_prepack", "qconv_pointwise", "qlinear_prepack", "qlinear_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(_OPS, n) for n in names)


@torch.inference_mode()
def quantise(graph: fx.GraphModule, batches: Sequence[torch.Tensor]) -> int:
    """Let ``graph`` compute in integers; how many of its layers do.

    ``batches`` are float32 on the processor; extremes are the means of those of their
    images.
    """
    ShapeProp(graph).propagate(batches[0])
    layers: dict[str, _Layer] = {}
    for node in list(graph.graph.nodes):
        kind = _kind(module_of(graph, node))
        if kind is not None and calls(graph, node.target) == 1:
            layers[node.target] = kind(module_of(graph, node))
            graph.set_submodule(node.target, layers[node.target])
    fuse(graph, layers)
    graph.recompile()
    ranges = _Ranges(graph)
    for batch in batches:
        ranges.run(batch)
    _Plan(graph, layers, ranges.found()).carry_out()
    graph.recompile()
    return len(layers)


class _Layer(Fused):
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


class _Convolution(_Layer):
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


class _Linear(_Layer):
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


def _kind(layer: Any) -> type[_Layer] | None:
    if type(layer) is nn.Linear:
        return _Linear
    plain = type(layer) is nn.Conv2d and layer.padding_mode == "zeros"
    return _Convolution if plain and not isinstance(layer.padding, str) else None


class _Ranges(fx.Interpreter):
    """Sees the extremes of every tensor."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self._sums: dict[fx.Node, Any] = {}
        self._images: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        """At once, because what follows may overwrite the tensor."""
        values = super().run_node(n)
        if isinstance(values, torch.Tensor) and values.ndim > 1:
            extremes = torch.stack(values.flatten(1).aminmax(dim=1))
            self._sums[n] = self._sums.get(n, 0) + extremes.sum(dim=1)
            self._images[n] = self._images.get(n, 0) + len(values)
        return values

    def found(self) -> dict[fx.Node, tuple[float, float]]:
        """(lowest, highest) of every node that gives a tensor."""
        found = {n: (each / self._images[n]).tolist() for n, each in self._sums.items()}
        return {n: (low, high) for n, (low, high) in found.items()}


class _Plan:
    """Which tensors of a graph are integers, and what they stand for.

    Tensors that a pooling or a joining connects have the same codes; they are integers
    if layers make all of them and a layer takes one.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        layers: dict[str, _Layer],
        ranges: dict[fx.Node, tuple[float, float]],
    ) -> None:
        self._graph, self._ranges = graph, ranges
        nodes = list(graph.graph.nodes)
        self._layers = {
            node: layers[node.target]
            for node in nodes
            if node.op == "call_module" and node.target in layers
        }
        self._passing = {node for node in nodes if _passes(graph, node)}
        self._group: dict[fx.Node, set[fx.Node]] = {n: {n} for n in nodes}
        for node in self._passing:
            for other in node.all_input_nodes:
                joined = self._group[node] | self._group[other]
                self._group.update(dict.fromkeys(joined, joined))
        self._codes = {
            node: _codes([ranges[n] for n in self._group[node]])
            for node in nodes
            if node in ranges and self._is_integer(node)
        }

    def _is_integer(self, node: fx.Node) -> bool:
        group = self._group[node]
        made = all(n in self._layers or n in self._passing for n in group)
        taken = any(user in self._layers for n in group for user in n.users)
        return made and taken

    def carry_out(self) -> None:
        """Change the graph."""
        order = {node: at for at, node in enumerate(self._graph.graph.nodes)}
        for node, layer in self._layers.items():
            given, *others = (arg for arg in node.args if isinstance(arg, fx.Node))
            layer.gives = self._codes.get(node)
            layer.given = self._codes.get(given) or _codes([self._ranges[given]])
            for other in others:
                layer.adds = self._codes.get(other)
                layer.spoils = other is not given and all(
                    order[user] <= order[node] and user not in self._passing
                    for user in other.users
                )
            layer.pack(shape_of(given) or torch.Size())
        for node in self._passing & self._codes.keys():
            _pass_integers(self._graph, node)
        for node in list(order):
            self._recode(node)

    def _recode(self, node: fx.Node) -> None:
        """Give each user of ``node`` what it takes."""
        integer = node in self._codes
        wanting = [u for u in node.users if self._takes_integers(u, node) != integer]
        if not wanting:
            return
        recode = decode if integer else encode
        codes = self._codes.get(node) or _codes([self._ranges[node]])
        with self._graph.graph.inserting_after(node):
            new = self._graph.graph.call_function(recode, (node, *codes))
        for user in wanting:
            if not integer:
                user.update_arg(0, new)
            else:
                user.replace_input_with(node, new)

    def _takes_integers(self, user: fx.Node, node: fx.Node) -> bool:
        if user in self._layers:
            return user.args[0] is node or node in self._codes
        return user in self._codes and user in self._group[node]


def _passes(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether ``node`` only picks or joins values."""
    layer = module_of(graph, node)
    if type(layer) is nn.MaxPool2d:
        return layer.dilation in (1, (1, 1)) and not layer.return_indices
    joins = node.op == "call_function" and node.target in (torch.cat, torch.flatten)
    return joins or type(layer) is nn.Flatten


def _pass_integers(graph: fx.GraphModule, node: fx.Node) -> None:
    """Torch pools no uint8."""
    layer = module_of(graph, node)
    if type(layer) is nn.MaxPool2d:
        found = shape_of(node)
        assert found is not None  # noqa: S101 - it gave a tensor
        sides = (_pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding))
        node.op, node.target = "call_function", pool
        node.args = (node.args[0], *sides, tuple(found[2:]))


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


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


def _codes(ranges: Sequence[tuple[float, float]]) -> Codes:
    """Codes for all values in ``ranges``; zero is exact, because paddings are zero."""
    low = min(0.0, *(low for low, _ in ranges))
    high = max(0.0, *(high for _, high in ranges))
    step = max(high - low, 1e-12) / _STEPS
    return Codes(step, round(-low / step))


def encode(values: torch.Tensor, step: float, zero: int) -> torch.Tensor:
    """float32 to uint8, rounded to the nearest."""
    return values.mul(1 / step).round_().add_(zero).clamp_(0, _STEPS).to(torch.uint8)


def decode(codes: torch.Tensor, step: float, zero: int) -> torch.Tensor:
    """uint8 to float32."""
    return codes.to(torch.float32).sub_(zero).mul_(step)

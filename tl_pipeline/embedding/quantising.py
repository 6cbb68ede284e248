"""A traced network computed in 8-bit integers on a processor. Imports torch.

Post-training static quantisation (Jacob et al. 2018, arXiv:1712.05877, section 3): a
tensor is 256 steps between the extremes that it had over some images, and weights are
127 steps to either side of zero, for each output channel apart. Convolutions and linear
layers multiply integers by oneDNN, with the activation and the sum that follow them.
What only picks or joins values passes integers on; all else computes in float32.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from tl_pipeline.embedding.int8_ops import (
    STEPS,
    Codes,
    IntegerLayer,
    decode,
    encode,
    kind_of,
    pool,
)
from tl_pipeline.embedding.onednn_fusion import calls, fuse, module_of, shape_of

_OPS = torch.ops.onednn


def can_quantise() -> bool:
    """Whether this torch and this processor have what ``quantise`` needs.

    Without VNNI sums of two products overflow 16 bits.
    """
    names = ("qconv_prepack", "qconv_pointwise", "qlinear_prepack", "qlinear_pointwise")
    able = torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported()  # noqa: SLF001
    return able and all(hasattr(_OPS, name) for name in names)


@torch.inference_mode()
def quantise(graph: fx.GraphModule, batches: Sequence[torch.Tensor]) -> int:
    """Let ``graph`` compute in integers; how many of its layers do.

    ``batches`` are float32 on the processor; extremes are the means of those of their
    images.
    """
    ShapeProp(graph).propagate(batches[0])
    layers: dict[str, IntegerLayer] = {}
    for node in list(graph.graph.nodes):
        kind = kind_of(module_of(graph, node))
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
        layers: dict[str, IntegerLayer],
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


def _codes(ranges: Sequence[tuple[float, float]]) -> Codes:
    """Codes for all values in ``ranges``; zero is exact, because paddings are zero."""
    low = min(0.0, *(low for low, _ in ranges))
    high = max(0.0, *(high for _, high in ranges))
    step = max(high - low, 1e-12) / STEPS
    return Codes(step, round(-low / step))

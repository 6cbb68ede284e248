"""A network up to some of its layers, each pooled to a vector an image. Imports torch.

Shapes are read off by running the graph on torch's ``meta`` device, which computes no
values: a layer, a pooling or an input that does not fit is refused before any image is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.func import functional_call
from torchvision.models.feature_extraction import (
    create_feature_extractor,
    get_graph_node_names,
)

from tl_pipeline.backbones import Backbone, Layer, Pooling
from tl_pipeline.backbones.outputs import Outputs
from tl_pipeline.errors import InvalidSpec

Shape = tuple[int, ...]

_GEM_POWER, _GEM_FLOOR = 3.0, 1e-6
# An input that is larger by this much must show which axes are spatial.
_LARGER = 64
# What torch's modules raise for inputs that are too small, or not of their size.
_UNSUITABLE = (RuntimeError, AssertionError, ValueError)
_IMAGES = 3  # of a trial on the meta device, to tell whether a layer keeps them apart


def node_names(network: nn.Module) -> list[str]:
    """Every node of the graph of ``network`` in evaluation, as torchvision names it.

    The outputs of a network that names them itself.
    """
    if isinstance(network, Outputs):
        return list(network.names)
    return get_graph_node_names(network.eval(), suppress_diff_warning=True)[1]


class Cut(nn.Module):
    """A frozen network up to several layers, in one forward pass.

    Called with a normalised float32 batch (n, channels, side, side), it returns one
    tensor (n, width) for each of ``layers``, in their order; ``widths`` are read off.

    Raises:
        InvalidSpec: inputs of that shape do not suit the network, or a pooling does
            not suit the layer.
    """

    def __init__(
        self,
        backbone: Backbone,
        network: nn.Module,
        layers: Sequence[Layer],
        image: Shape,
    ) -> None:
        super().__init__()
        self.layers = tuple(layers)
        if isinstance(network, Outputs):
            backbone = replace(backbone, class_tokens=network.class_tokens)
        body = _extractor(network, [layer.node for layer in layers])
        found = _shapes(backbone, body, image)
        _clone_tensors(body)
        grown = _grown(body, image) if _spatial(layers, found) else {}
        self.poolings = [
            _Pool(backbone, layer, found[layer.node], grown.get(layer.node, ()))
            for layer in layers
        ]
        self.body = body
        self.eval().requires_grad_(requires_grad=False)
        self.widths = tuple(
            pool(torch.empty(found[layer.node], device="meta")).shape[1]
            for layer, pool in zip(layers, self.poolings, strict=True)
        )

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Embed a batch under every layer, pooled in float32."""
        values = self.body(batch)
        return tuple(
            pool(values[layer.node].float())
            for layer, pool in zip(self.layers, self.poolings, strict=True)
        )


class Single(nn.Module):
    """A cut at one layer: (n, channels, side, side) to one tensor (n, width)."""

    def __init__(self, cut: Cut) -> None:
        super().__init__()
        self.cut = cut

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Embed a batch."""
        (vectors,) = self.cut(batch)
        return vectors


def shapes(
    backbone: Backbone, network: nn.Module, nodes: Sequence[str], image: Shape
) -> dict[str, Shape]:
    """The output of each node for one ``image`` (channels, height, width).

    Nodes that give no tensor, or do not keep images apart, are left out.

    Raises:
        InvalidSpec: inputs of that shape do not suit the network.
    """
    found = _shapes(backbone, _extractor(network, nodes), image)
    return {node: shape[1:] for node, shape in found.items() if shape[:1] == (_IMAGES,)}


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


def _extractor(network: nn.Module, nodes: Sequence[str]) -> nn.Module:
    """The graph of ``network`` in evaluation up to ``nodes``: a dict of their outputs.

    Evaluation is what counts: in training, graphs have heads and paths of their own.
    """
    if isinstance(network, Outputs):
        return network.eval()
    names = {node: node for node in nodes}
    both = create_feature_extractor(network.eval(), names, suppress_diff_warning=True)
    body = fx.GraphModule(both.eval(), both.graph)
    if len(names) > 1:
        _keep_outputs(body.graph)
        body.recompile()
    return body.eval()


def _keep_outputs(graph: fx.Graph) -> None:
    """Copy each output as it is made: a ReLU or sum after it may work in its place."""
    output = next(node for node in graph.nodes if node.op == "output")
    kept = {}
    for name, node in output.args[0].items():
        with graph.inserting_after(node):
            kept[name] = graph.call_function(_copied, (node,))
    output.args = (kept,)


def _clone_tensors(body: nn.Module) -> None:
    """Once all outputs are known to be tensors, copy them by what tracing understands.

    Traced anew, ``_copied`` would see no tensor and vanish.
    """
    if isinstance(body, fx.GraphModule):
        for node in body.graph.nodes:
            if node.target is _copied:
                node.target = torch.clone
        body.recompile()


def _copied(value: object) -> object:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _shapes(backbone: Backbone, body: nn.Module, image: Shape) -> dict[str, Shape]:
    """The output of each node for three images; () where it is no tensor."""
    try:
        return _trial(body, image)
    except _UNSUITABLE as fault:
        size = "x".join(map(str, image[1:]))
        reason = str(fault).strip().partition("\n")[0]
        raise InvalidSpec(
            f"{backbone.name} takes no inputs of {size} with these weights: {reason}. "
            "Set resize and crop"
        ) from None


def _grown(body: nn.Module, image: Shape) -> dict[str, Shape]:
    """The shapes for a larger image; none where the network insists on its size."""
    try:
        return _trial(body, (image[0], image[1] + _LARGER, image[2] + _LARGER))
    except _UNSUITABLE:
        return {}


def _spatial(layers: Sequence[Layer], found: Mapping[str, Shape]) -> bool:
    """Whether any of ``layers`` takes the mean of a map."""
    return any(
        len(found[layer.node]) == 4 and layer.pooling in {"mean", "gem"}
        for layer in layers
    )


def _trial(body: nn.Module, image: Shape) -> dict[str, Shape]:
    if isinstance(body, Outputs) and not body.on_meta:
        with torch.no_grad():
            outputs = body(torch.zeros((_IMAGES, *image)))
        return {name: tuple(values.shape) for name, values in outputs.items()}
    quiet = _Quiet(body)
    tensors = [*quiet.named_parameters(), *quiet.named_buffers()]
    hollow = {name: tensor.to("meta") for name, tensor in tensors}
    batch = torch.empty((_IMAGES, *image), device="meta")
    with torch.no_grad():
        outputs = functional_call(quiet, hollow, (batch,))
    return {
        node: tuple(values.shape) if torch.is_tensor(values) else ()
        for node, values in outputs.items()
    }


class _Quiet(nn.Module):
    """Calls a traced graph without torch.fx printing each fault to stderr."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, batch: torch.Tensor) -> dict[str, Any]:
        return self.body.forward(batch)


class _Pool:
    """The pooling of one layer, whose output for ``_IMAGES`` images has ``shape``.

    ``grown`` is that for larger images: the axis of a map that does not grow with its
    input is that of the channels, the last one in Swin and the first elsewhere.
    """

    def __init__(
        self, backbone: Backbone, layer: Layer, shape: Shape, grown: Shape
    ) -> None:
        self._pooling, self._tokens = layer.pooling, backbone.class_tokens
        if shape[:1] != (_IMAGES,):
            raise InvalidSpec(
                f"{backbone.name} layer {layer.node!r} does not give one output an "
                f"image; `tl backbones show {backbone.name}` lists layers"
            )
        fits = _fitting(len(shape), backbone.class_tokens)
        if layer.pooling not in fits:
            unclassed = "" if backbone.class_tokens else " and has no class token"
            raise InvalidSpec(
                f"{_spelt(layer.pooling)} does not fit layer {layer.node!r} of "
                f"{backbone.name}, which gives {_told(shape[1:])} for an "
                f"image{unclassed}. Fits: {', '.join(map(_spelt, fits))}"
            )
        self._axes: tuple[int, ...] = (1,)
        if len(shape) == 4 and layer.pooling != "flatten":
            moved = [axis for axis in (1, 2, 3) if grown and grown[axis] != shape[axis]]
            self._axes = (1, 2) if moved == [1, 2] else (2, 3)
            height, width = (shape[axis] for axis in self._axes)
            if height != width:
                raise InvalidSpec(
                    f"{backbone.name} layer {layer.node!r} gives {_told(shape[1:])} "
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


def _fitting(axes: int, class_tokens: int) -> tuple[Pooling, ...]:
    """The poolings of an output with so many axes, that of the images among them."""
    maps: tuple[Pooling, ...] = ("mean", "gem", "flatten")
    classed: tuple[Pooling, ...] = ("cls", "cls+mean") if class_tokens else ()
    return {2: ("none", "flatten"), 3: (*maps, *classed), 4: maps}.get(axes, ())


def _spelt(pooling: Pooling) -> str:
    """A pooling as a wish has it."""
    named = {"none": "no pool at all", "mean": "pool=gap"}
    return named.get(pooling, f"pool={pooling}")


def _told(shape: Shape | None) -> str:
    if not shape:
        return "nothing"
    return f"({', '.join(map(str, shape))})"

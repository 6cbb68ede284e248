"""A network up to some of its layers, each pooled to a vector an image. Imports torch.

Shapes are read off by running the graph on torch's ``meta`` device, which computes no
values: a layer, a pooling or an input that does not fit is refused before any image is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import fx, nn
from torchvision.models.feature_extraction import (
    create_feature_extractor,
    get_graph_node_names,
)

from tl_pipeline.encoders.backbones import Backbone, Layer
from tl_pipeline.encoders.backbones.outputs import IMAGES, Outputs, outputs_on_meta
from tl_pipeline.encoders.pooling import PooledLayer, Shape
from tl_pipeline.errors import InvalidSpec

# An input that is larger by this much must show which axes are spatial.
_LARGER = 64
# What torch's modules raise for inputs that are too small, or not of their size.
_UNSUITABLE = (RuntimeError, AssertionError, ValueError)


def node_names(network: nn.Module) -> list[str]:
    """Every node of the graph of ``network`` in evaluation, as torchvision names it.

    The outputs of a network that names them itself.
    """
    if isinstance(network, Outputs):
        return network.layer_names()
    return get_graph_node_names(network.eval(), suppress_diff_warning=True)[1]


class FeatureExtractor(nn.Module):
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
        self._nodes = frozenset(layer.node for layer in layers)
        body = _extractor(network, [layer.node for layer in layers])
        found = _shapes(backbone, body, image)
        _clone_tensors(body)
        grown = _grown(body, image) if _spatial(layers, found) else {}
        self.poolings = [
            _pooled(backbone, network, layer, found[layer.node], grown)
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
        found = self.body(batch)
        values = {node: found[node].float() for node in self._nodes}
        return tuple(
            pool(values[layer.node])
            for layer, pool in zip(self.layers, self.poolings, strict=True)
        )


class Single(nn.Module):
    """A cut at one layer: (n, channels, side, side) to one tensor (n, width)."""

    def __init__(self, cut: FeatureExtractor) -> None:
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
    return {node: shape[1:] for node, shape in found.items() if shape[:1] == (IMAGES,)}


def _extractor(network: nn.Module, nodes: Sequence[str]) -> nn.Module:
    """The graph of ``network`` in evaluation up to ``nodes``: a dict of their outputs.

    Evaluation is what counts: in training, graphs have heads and paths of their own.
    """
    if isinstance(network, Outputs):
        network.only(nodes)
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
        reason = str(fault).strip().partition("\n")[0].rstrip(".!")
        raise InvalidSpec(
            f"{backbone.name} takes no inputs of {size} with these weights: {reason}"
        ) from None


def _grown(body: nn.Module, image: Shape) -> dict[str, Shape]:
    """The shapes for a larger image; none where the network insists on its size."""
    try:
        return _trial(body, (image[0], image[1] + _LARGER, image[2] + _LARGER))
    except _UNSUITABLE:
        return {}


def _pooled(
    backbone: Backbone,
    network: nn.Module,
    layer: Layer,
    found: Shape,
    grown: Mapping[str, Shape],
) -> PooledLayer:
    """The pooling of ``layer``, which gives ``found`` for several images."""
    shape = _of_one_image(backbone, layer, found)
    known = with_prefix(backbone, network, layer.node, shape)
    return PooledLayer(known, layer, shape, grown.get(layer.node, ())[1:])


def with_prefix(
    backbone: Backbone, network: nn.Module, node: str, shape: Shape | None
) -> Backbone:
    """``backbone`` with the tokens that ``node`` of ``network`` has before the image's.

    ``shape`` is that of one image.
    """
    if not isinstance(network, Outputs) or shape is None:
        return backbone
    return replace(backbone, prefix=network.prefix(node, shape))


def _of_one_image(backbone: Backbone, layer: Layer, shape: Shape) -> Shape:
    """What a layer gives for one image, if its output for several is one for each."""
    if shape[:1] != (IMAGES,):
        raise InvalidSpec(
            f"{backbone.name} layer {layer.node!r} does not give one output an "
            f"image; `tl backbones show {backbone.name}` lists layers"
        )
    return shape[1:]


def _spatial(layers: Sequence[Layer], found: Mapping[str, Shape]) -> bool:
    """Whether the pooling of any of ``layers`` must tell places from channels."""
    return any(
        len(found[layer.node]) == 4 and layer.pooling not in {"none", "flatten"}
        for layer in layers
    )


def _trial(body: nn.Module, image: Shape) -> dict[str, Shape]:
    if isinstance(body, Outputs) and not body.on_meta:
        with torch.no_grad():
            outputs = body(torch.zeros((IMAGES, *image)))
    else:
        outputs = outputs_on_meta(body, image)
    return {
        node: tuple(values.shape) if torch.is_tensor(values) else ()
        for node, values in outputs.items()
    }

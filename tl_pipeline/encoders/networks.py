"""Networks: built by their provider, loaded with weights, cut at layers. Imports torch.

Parameters are born without memory and replaced by those of the file, so that no network
is ever filled twice.
"""

import difflib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tl_pipeline.encoders.backbones import (
    PROVIDERS,
    SELF_CONTAINED,
    Backbone,
    Layer,
    find_backbone,
    named_weights,
)
from tl_pipeline.encoders.backbones.outputs import ModuleOutputs, Outputs
from tl_pipeline.encoders.feature_extractor import (
    FeatureExtractor,
    node_names,
    shapes,
    with_prefix,
)
from tl_pipeline.encoders.pooling import Shape, usual_pooling
from tl_pipeline.errors import InvalidSpec, UnknownName, WeightsError
from tl_pipeline.inputs.images import Preprocess

State = Mapping[str, torch.Tensor]

_MAKERS = (torch.empty, torch.zeros, torch.ones)
# Nodes that a wrong layer name is told about.
_SUGGESTED = 12


class _MetaParameters(TorchFunctionMode):
    """Parameters and buffers as modules make them have no memory.

    Unlike under ``torch.device("meta")``, networks may compute with what they count
    themselves: RegNet its widths, Swin its tables of positions.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _MAKERS and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def input_shape(how: Preprocess) -> Shape:
    """One input of a network: (channels, crop, crop)."""
    return (1 if how.grey else len(how.mean), how.crop, how.crop)


def pretrained(
    backbone: Backbone,
    layers: Sequence[Layer],
    how: Preprocess,
    state: State,
    origin: Path,
) -> FeatureExtractor:
    """The frozen network up to ``layers`` with the weights ``state``, in eval mode.

    Raises:
        WeightsError: names or shapes do not fit the network, they are listed; or a
            value that is needed is not finite.
        InvalidSpec: see ``cuts.FeatureExtractor``.
    """
    state = PROVIDERS[backbone.origin].renamed(backbone, how.crop, state)
    network = hollow(backbone, how.crop, state)
    hint = "Caffe's AlexNet is the backbone caffe_alexnet; "
    complaint = f"{origin} does not hold weights of {backbone.name}: "
    complaint += hint if origin.suffix == ".npy" else ""
    missing, told = _load(network, state, complaint)
    cut = FeatureExtractor(backbone, network, layers, input_shape(how))
    # A classifier may be missing where no layer needs it.
    if missing and any(t.is_meta for t in (*cut.parameters(), *cut.buffers())):
        raise WeightsError(complaint + told)
    for name, values in cut.named_parameters():
        if not torch.isfinite(values.sum()):
            raise WeightsError(
                f"{origin}: {name} holds values that are not finite; a layer before it "
                "may still be good"
            )
    return cut


def untrained(
    backbone: Backbone, layers: Sequence[Layer], how: Preprocess, seed: int
) -> FeatureExtractor:
    """The network up to ``layers`` as before any training, drawn from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PROVIDERS[backbone.origin].build(backbone, how.crop)
        return FeatureExtractor(backbone, network, layers, input_shape(how))


def hollow(backbone: Backbone, side: int, state: State | None = None) -> nn.Module:
    """The network for ``state`` without values, in eval mode; nobody's draws move.

    A network that brings its weights comes with them.

    Raises:
        InvalidSpec: the network has no form for inputs of ``side`` pixels.
    """
    if backbone.origin in SELF_CONTAINED:
        return _whole(backbone)
    # timm fills tables as it builds, which no state dict holds.
    hollow = nullcontext() if state and backbone.origin == "timm" else _MetaParameters()
    with torch.random.fork_rng(devices=[]), hollow:
        return PROVIDERS[backbone.origin].build(backbone, side, state or {}).eval()


def _whole(backbone: Backbone) -> nn.Module:
    named = named_weights(backbone, backbone.weights)
    data = b"" if named.sha256 else named.file.read_bytes()
    sealed = SELF_CONTAINED[backbone.origin]
    return sealed.opened(backbone, data, str(named.file), named.sha256).eval()


def _for_shapes(backbone: Backbone, how: Preprocess) -> nn.Module:
    """The network to read shapes off: without memory where it runs so."""
    return _without_memory(hollow(backbone, how.crop))


def _without_memory(network: nn.Module) -> nn.Module:
    """``network`` on the meta device, where it runs so."""
    real = isinstance(network, Outputs) and not network.on_meta
    return network if real else network.to("meta")


@dataclass(frozen=True)
class Node:
    """A step of a network's graph: ``shape`` of its output for one image, if it has.

    ``kind`` is the class of its module and which call of it this is, where it is called
    several times, or "" for a plain function.
    """

    name: str
    kind: str
    shape: Shape | None


def graph(backbone: Backbone, how: Preprocess) -> list[Node]:
    """The graph of the network in evaluation, in order, with the shapes of outputs."""
    network = _for_shapes(backbone, how)
    nodes = node_names(network)
    found = shapes(backbone, network, nodes, input_shape(how))
    inner = network.network if isinstance(network, ModuleOutputs) else network
    kinds = {name: type(module).__name__ for name, module in inner.named_modules()}
    return [Node(name, _kind(name, nodes, kinds), found.get(name)) for name in nodes]


def _kind(name: str, nodes: Sequence[str], kinds: Mapping[str, str]) -> str:
    """The class of a node's module, and which call of it where there are several.

    A ReLU that a block uses twice is ``relu`` and ``relu_1``; a hook sees the last.
    """
    module, _, number = name.rpartition("_")
    repeated = name not in kinds and number.isdecimal() and module in kinds
    base = module if repeated else name
    kind, calls = kinds.get(base, ""), sum(f"{base}_{i}" in nodes for i in (1, 2, 3))
    if not kind or not calls or f"{base}_1" in kinds:
        return kind
    return f"{kind}, call {int(number) + 1 if repeated else 1} of {calls + 1}"


def widths(
    backbone: Backbone, how: Preprocess, layers: Sequence[Layer]
) -> tuple[int, ...]:
    """How many values each of ``layers`` gives for an image, in their order."""
    network = _for_shapes(backbone, how)
    return FeatureExtractor(backbone, network, layers, input_shape(how)).widths


def tokens(backbone: Backbone, how: Preprocess, layer: Layer) -> int:
    """How many places ``layer``, whose pooling is ``tokens``, keeps of an image.

    Raises:
        InvalidSpec: it has none; says what fits.
    """
    network = _for_shapes(backbone, how)
    cut = FeatureExtractor(backbone, network, [layer], input_shape(how))
    return cut.poolings[0].tokens


def takes(backbone: Backbone, layer: Layer, how: Preprocess, side: int) -> bool:
    """Whether ``layer`` has an output for inputs of ``side`` x ``side`` pixels."""
    how = how.model_copy(update={"crop": side})
    try:
        return bool(widths(backbone, how, [Layer(layer.node, "flatten")]))
    except InvalidSpec:
        return False


@lru_cache(maxsize=16)
def layer_at(name: str, node: str, image: Shape, sha256: str = "") -> Layer:  # noqa: ARG001
    """The layer at any graph node of the network ``name``, pooled as is usual there.

    ``sha256`` tells networks of that name apart that the user's code makes.

    Raises:
        UnknownName: there is no such node; the nearest are named.
        InvalidSpec: it gives nothing that makes a vector.
    """
    backbone = find_backbone(name)
    network = hollow(backbone, image[-1])
    nodes = node_names(network)
    if node not in nodes and not any(known.startswith(f"{node}.") for known in nodes):
        raise UnknownName(f"{name} layer", node, _near(backbone, network, node, nodes))
    shape = shapes(backbone, _without_memory(network), [node], image).get(node)
    known = with_prefix(backbone, network, node, shape)
    return Layer(node, usual_pooling(known, node, shape))


def _near(
    backbone: Backbone, network: nn.Module, node: str, nodes: Sequence[str]
) -> list[str]:
    """The listed layers, and the nodes whose names are most like ``node``."""
    listed = backbone.layers or (network.names if isinstance(network, Outputs) else ())
    names = [*backbone.aliases, *nodes]
    close = difflib.get_close_matches(node, names, n=_SUGGESTED, cutoff=0.5)
    return list(dict.fromkeys([*listed, *close]))


def _load(network: nn.Module, state: State, complaint: str) -> tuple[bool, str]:
    """Put ``state`` in place of the parameters, renamed as torchvision renames.

    Whether parameters are missing, and in words how the names differ.

    Raises:
        WeightsError: shapes differ, or names are no part of the network.
    """
    own = network.state_dict()
    expected = {name: tuple(t.shape) for name, t in own.items()}
    given = {name: tuple(t.shape) for name, t in state.items()}
    kinds = {name: tensor.dtype for name, tensor in own.items()}
    cast = OrderedDict((name, _as(t, kinds.get(name))) for name, t in state.items())
    # Versions say which names old files use. A file of today's names and shapes is of
    # today, whether or not its format can say so.
    versions = own if expected == given else state
    vars(cast)["_metadata"] = getattr(versions, "_metadata", None) or {}
    try:
        missing, unknown = network.load_state_dict(cast, strict=False, assign=True)
    except (RuntimeError, ValueError) as fault:
        told = _difference(expected, given) or str(fault).strip().partition("\n")[0]
        raise WeightsError(complaint + told) from None
    told = _difference(expected, given)
    if _foreign(unknown, missing, expected):
        raise WeightsError(complaint + told)
    # Where the network came with values (timm's do), those drawn at random go.
    empty = OrderedDict((name, own[name].to("meta")) for name in missing)
    vars(empty)["_metadata"] = getattr(own, "_metadata", None) or {}
    network.load_state_dict(empty, strict=False, assign=True)
    return bool(missing), told


def _foreign(
    unknown: Sequence[str], missing: Sequence[str], expected: Mapping[str, Shape]
) -> list[str]:
    """Those of ``unknown`` that do not belong to another head of the same network.

    They do in place of a missing layer (``fc.1.weight`` for ``fc.weight``), and where
    the network has no part of that name (``projector.0.weight``).
    """
    replaced = tuple(f"{name.rpartition('.')[0]}." for name in missing)
    parts = {name.partition(".")[0] for name in expected}
    return [
        name
        for name in unknown
        if not name.startswith(replaced) and name.partition(".")[0] in parts
    ]


def _as(tensor: torch.Tensor, kind: torch.dtype | None) -> torch.Tensor:
    """``tensor`` as ``kind``; in float32 where the network has none of its name."""
    if kind is None:
        kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.to(kind)


def _difference(expected: Mapping[str, Shape], given: Mapping[str, Shape]) -> str:
    """Which names are missing or strange, and which shapes differ: three of each."""
    faults = {
        "missing": [name for name in expected if name not in given],
        "unknown": [name for name in given if name not in expected],
        "of another shape": [
            f"{name} {given[name]} instead of {shape}"
            for name, shape in expected.items()
            if name in given and given[name] != shape
        ],
    }
    return "; ".join(
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
        for what, names in faults.items()
        if names
    )

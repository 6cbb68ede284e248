"""The pretrained networks: one visible row each, and how to load one.

To add a torchvision network: a row in ``BACKBONES`` with the graph nodes of its layers
(``torchvision.models.feature_extraction.get_graph_node_names`` lists them). Input size,
means and weights come from torchvision itself; the width of an embedding is read off.
Torch is imported only where a network is built, so that listing stays fast.
"""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tl_pipeline.errors import UnknownName, WeightsError
from tl_pipeline.images import Preprocess

if TYPE_CHECKING:
    import torch

Pooling = Literal["none", "mean"]


@dataclass(frozen=True)
class Layer:
    """A node of a network's graph; a spatial one is reduced to its channel means."""

    node: str
    pooling: Pooling = "none"


@dataclass(frozen=True)
class Backbone:
    """One network: its layers by the names people use, the first is the default."""

    name: str
    layers: Mapping[str, Layer]
    weights: str = "IMAGENET1K_V1"
    origin: Literal["torchvision", "ours"] = "torchvision"

    @cached_property
    def default_layer(self) -> str:
        """The name of the layer that is taken when none is asked for."""
        return next(iter(self.layers))

    def layer(self, name: str | None) -> tuple[str, Layer]:
        """The layer of that name, or the default one.

        Raises:
            UnknownName: the backbone lists no such layer.
        """
        name = name or self.default_layer
        if name not in self.layers:
            raise UnknownName(f"{self.name} layer", name, self.layers)
        return name, self.layers[name]


_FC6_FC7_ALEXNET = {"fc7": Layer("classifier.5"), "fc6": Layer("classifier.2")}
_FC6_FC7_VGG = {"fc6": Layer("classifier.1"), "fc7": Layer("classifier.4")}
_AVGPOOL = {"avgpool": Layer("flatten")}

BACKBONES: dict[str, Backbone] = {
    row.name: row
    for row in (
        Backbone(
            "lenet5",
            {"c5": Layer("flatten"), "f6": Layer("f6_relu")},
            weights="LETTERS",
            origin="ours",
        ),
        Backbone("alexnet", _FC6_FC7_ALEXNET),
        Backbone("vgg16", _FC6_FC7_VGG),
        Backbone("squeezenet1_0", {"fire9": Layer("features.12.cat", "mean")}),
        Backbone("resnet18", _AVGPOOL),
        Backbone("resnet50", _AVGPOOL),
        Backbone("mobilenet_v3_small", _AVGPOOL),
    )
}

LENET_LETTERS = "lenet5-letters.safetensors"
LENET_PREPROCESS = Preprocess(resize=32, crop=32, grey=True, mean=(0.5,), std=(0.5,))


@dataclass(frozen=True)
class NamedWeights:
    """A named member of a network's weights: its file, and what it expects as input.

    ``sha256_prefix`` is what torchvision promises of the file; "" where nothing is
    promised.
    """

    name: str
    file: Path
    url: str
    megabytes: float
    sha256_prefix: str
    preprocess: Preprocess


def find_backbone(name: str) -> Backbone:
    """The row of that name.

    Raises:
        UnknownName: there is none.
    """
    if name not in BACKBONES:
        raise UnknownName("backbone", name, BACKBONES)
    return BACKBONES[name]


def checkpoint_folder() -> Path:
    """Where torchvision keeps downloaded weights (``torch.hub``'s own rule)."""
    caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", str(Path(caches) / "torch"))
    return Path(home).expanduser() / "hub" / "checkpoints"


def named_weights(backbone: Backbone, name: str) -> NamedWeights:
    """Look ``name`` up among the weights of ``backbone``; imports torchvision.

    Raises:
        UnknownName: the network has no weights of that name.
    """
    if backbone.origin == "ours":
        if name != backbone.weights:
            raise UnknownName(f"{backbone.name} weights", name, [backbone.weights])
        file = Path(str(resources.files("tl_pipeline") / "weights" / LENET_LETTERS))
        return NamedWeights(name, file, "", 0.25, "", LENET_PREPROCESS)
    from torchvision.models import get_model_weights  # noqa: PLC0415

    members = get_model_weights(backbone.name).__members__
    if name not in members:
        raise UnknownName(f"{backbone.name} weights", name, members)
    weights = members[name].value
    file_name = weights.url.rpartition("/")[2]
    return NamedWeights(
        name=members[name].name,  # an alias such as DEFAULT becomes its named member
        file=checkpoint_folder() / file_name,
        url=weights.url,
        megabytes=weights.meta["_file_size"],
        sha256_prefix=file_name.rpartition("-")[2].partition(".")[0],
        preprocess=_recorded(weights.transforms()),
    )


def read_state(data: bytes, origin: Path) -> "dict[str, torch.Tensor]":
    """The state dict in the bytes of a weights file; ``origin`` names it in errors.

    Raises:
        WeightsError: truncated, not a state dict, or a pickle that holds code.
    """
    import torch  # noqa: PLC0415
    from safetensors import SafetensorError  # noqa: PLC0415
    from safetensors.torch import load as load_safetensors  # noqa: PLC0415

    try:
        if origin.suffix == ".safetensors":
            return load_safetensors(data)
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise WeightsError(f"{origin}: not a whole safetensors file: {error}") from None
    # torch raises errors of many kinds for damaged files; all mean the same here.
    except Exception as error:  # noqa: BLE001
        reason = str(error).strip().partition("\n")[0]
        raise WeightsError(
            f"{origin}: cannot be read as a state dict ({reason}). Expected what "
            "torch.save(model.state_dict(), FILE) writes, or a .safetensors file"
        ) from None
    tensors = isinstance(state, dict) and all(map(torch.is_tensor, state.values()))
    if not tensors or not state:
        raise WeightsError(f"{origin}: holds no state dict of tensors")
    return state


def pretrained(
    backbone: Backbone, layer: Layer, state: "dict[str, torch.Tensor]", origin: Path
) -> "torch.nn.Module":
    """The frozen network up to ``layer`` with the weights ``state``, in eval mode.

    It maps a normalised float32 batch (n, channels, crop, crop) to float32 (n, width).

    Raises:
        WeightsError: names or shapes do not fit the network; they are listed.
    """
    import torch  # noqa: PLC0415

    with torch.device("meta"):
        network = _network(backbone, classes=None)
        # Weights of a fine-tuned network end in another number of classes, and are as
        # good an encoder.
        last = next(reversed(list(network.named_parameters())))[0]
        if last in state and state[last].ndim == 1:
            network = _network(backbone, classes=len(state[last]))
    expected = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    given = {name: tuple(t.shape) for name, t in state.items()}
    if expected != given:
        raise WeightsError(
            f"{origin} does not hold weights of {backbone.name}: "
            + _difference(expected, given)
        )
    network.load_state_dict(state, strict=True, assign=True)
    return _cut(network, layer)


def untrained(backbone: Backbone, layer: Layer, seed: int) -> "torch.nn.Module":
    """The network up to ``layer`` as it is before any training, drawn from ``seed``."""
    import torch  # noqa: PLC0415

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _cut(_network(backbone, classes=None), layer)


def _network(backbone: Backbone, classes: int | None) -> "torch.nn.Module":
    if backbone.origin == "ours":
        from tl_pipeline.lenet import LeNet5  # noqa: PLC0415

        return LeNet5() if classes is None else LeNet5(classes)
    from torchvision.models import get_model  # noqa: PLC0415

    extra: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    return get_model(backbone.name, weights=None, **extra)


def _cut(network: "torch.nn.Module", layer: Layer) -> "torch.nn.Module":
    from torch import nn  # noqa: PLC0415
    from torchvision.models.feature_extraction import (  # noqa: PLC0415
        create_feature_extractor,
    )

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = create_feature_extractor(network.eval(), {layer.node: "out"})

        def forward(self, batch: "torch.Tensor") -> "torch.Tensor":
            out = self.body(batch)["out"]
            return out.mean(dim=(2, 3)) if layer.pooling == "mean" else out

    return Encoder().eval().requires_grad_(False)


def _difference(
    expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]
) -> str:
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


def _recorded(preset: Any) -> Preprocess:
    """The fields of torchvision's ``ImageClassification`` preset."""
    (resize,), (crop,) = preset.resize_size, preset.crop_size
    return Preprocess(
        resize=resize,
        crop=crop,
        interpolation=preset.interpolation.value,
        antialias=bool(preset.antialias),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )

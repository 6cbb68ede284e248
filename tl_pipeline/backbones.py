"""The pretrained networks: one visible row each, and how to load one.

To add a torchvision network: a row in ``BACKBONES`` with the graph nodes of its layers
(``torchvision.models.feature_extraction.get_graph_node_names`` lists them). Input size,
means and weights come from torchvision itself; the width of an embedding is read off.
Nothing here imports torch, so that listing and planning stay fast; ``networks`` does.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from tl_pipeline.errors import UnknownName
from tl_pipeline.images import Preprocess

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

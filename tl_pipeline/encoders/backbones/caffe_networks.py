"""Caffe's AlexNet, whose weights people pass on as a dictionary of arrays.

``caffe_alexnet:weights=bvlc-alexnet.npy``: a ``.npy`` file with a weight and a bias for
each of conv1 to conv5 and fc6 to fc8, in TensorFlow's order. Torch's own files of such
a network are read, too. Nothing is published for download.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tl_pipeline.encoders.backbones import torchvision_weights
from tl_pipeline.encoders.backbones.backbone import (
    Backbone,
    Layer,
    NamedWeights,
    Published,
    same_names,
)
from tl_pipeline.errors import UnknownName
from tl_pipeline.inputs.images import Preprocess

if TYPE_CHECKING:
    import torch

PACKAGE: str = "torchvision"  # torch draws it, and nothing else is remembered of it
_FC7 = Layer("relu7")
ROWS: Mapping[str, Backbone] = {
    "caffe_alexnet": Backbone(
        "caffe_alexnet",
        {
            "fc7": _FC7,
            "fc6": Layer("relu6"),
            "pool5": Layer("pool5", "flatten"),
            "penultimate": _FC7,
        },
        weights="BVLC",
        origin="caffe",
    )
}
# Both sides become 256 pixels; values stay in [0, 255], minus ImageNet's mean (RGB).
_MEAN = (122.67891434, 116.66876762, 104.00698793)
_PREPROCESS = Preprocess(
    resize=256,
    crop=227,
    squash=True,
    mean=tuple(value / 255 for value in _MEAN),
    std=(1 / 255,) * 3,
)
renamed = same_names


def find(name: str) -> Backbone | None:
    """The network of that name."""
    return ROWS.get(name)


def named_weights(backbone: Backbone, name: str) -> NamedWeights:
    """The weights that Caffe published, which are looked for and never downloaded.

    Raises:
        UnknownName: ``name`` is another.
    """
    if name != backbone.weights:
        raise UnknownName(f"{backbone.name} weights", name, [backbone.weights])
    return NamedWeights(name, place(""), "", 244, "", _PREPROCESS)


def published(backbone: Backbone) -> list[Published]:
    """What Caffe's model zoo says of its weights."""
    named = named_weights(backbone, backbone.weights)
    return [
        Published(
            name=named.name,
            file=named.file,
            megabytes=named.megabytes,
            parameters=60_965_224,
            score=57.1,
            measure="top-1 ImageNet-1K",
            licence="unrestricted use, as Caffe's model zoo says",
        )
    ]


def place(url: str) -> Path:  # noqa: ARG001 - there is none
    """Where the file is looked for."""
    return torchvision_weights.checkpoint_folder() / "bvlc-alexnet.npy"


def fetch(named: NamedWeights) -> None:
    """Refuse to download.

    Raises:
        FileNotFoundError: always.
    """
    raise FileNotFoundError(
        f"{named.file.name} is published nowhere; give weights=FILE"
    )


def build(
    backbone: Backbone,  # noqa: ARG001 - there is one
    side: int,  # noqa: ARG001 - what does not fit is told by fc6
    state: "Mapping[str, torch.Tensor] | None" = None,
) -> "torch.nn.Module":
    """The network with as many classes as ``state`` has."""
    from tl_pipeline.encoders.caffe_alexnet import CaffeAlexNet

    last = state.get("fc8.bias") if state else None
    return CaffeAlexNet() if last is None or last.ndim != 1 else CaffeAlexNet(len(last))

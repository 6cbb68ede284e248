"""The pretrained networks: rows by family, and the providers that load them.

``find_backbone`` is the way in. To add a network of torchvision, add its name to a
family in ``classifiers`` or ``detectors``. To add another kind of network, write a
module with the attributes of one of three protocols of ``backbone`` and a row here:
``Provider`` (``PROVIDERS``), ``SelfContained`` (``SELF_CONTAINED``) where weights come
with the network, ``NonImageEncoder`` (``NON_IMAGE_ENCODERS``) where it takes no images.
Nothing here imports torch before weights or a network are asked for, so that listing
and planning stay fast.
"""

import re

from tl_pipeline.encoders.backbones import (
    caffe_networks,
    classifiers,
    detectors,
    exported,
    lenet_weights,
    onnx_files,
    precomputed,
    python_factory,
    sentences,
    timm_networks,
)
from tl_pipeline.encoders.backbones.backbone import (
    CELLS,
    Backbone,
    Kind,
    Layer,
    NamedWeights,
    NonImageEncoder,
    Pooling,
    PrefixTokens,
    Provider,
    Published,
    SelfContained,
)
from tl_pipeline.encoders.backbones.torchvision_weights import checkpoint_folder
from tl_pipeline.errors import UnknownName

__all__ = [
    "BACKBONES",
    "BY_PREFIX",
    "CELLS",
    "NON_IMAGE_ENCODERS",
    "PATTERN",
    "PROVIDERS",
    "SELF_CONTAINED",
    "Backbone",
    "Layer",
    "NamedWeights",
    "Pooling",
    "PrefixTokens",
    "Provider",
    "Published",
    "checkpoint_folder",
    "find_backbone",
    "kind",
    "named_weights",
    "outputs",
    "published",
]

PROVIDERS: dict[str, Provider] = {
    "ours": lenet_weights,
    "torchvision": classifiers,
    "torchvision detection": detectors,
    "caffe": caffe_networks,
    "timm": timm_networks,
}

SELF_CONTAINED: dict[str, SelfContained] = {
    "python": python_factory,
    "onnx": onnx_files,
    "export": exported,
}

# Of inputs that are no images.
NON_IMAGE_ENCODERS: dict[str, NonImageEncoder] = {
    "text": sentences,
    "features": precomputed,
}

# What is named by a prefix instead of in a table, as people write it.
BY_PREFIX = (
    "timm:NAME",
    "python:MODULE:FACTORY",
    "onnx:FILE",
    "export:FILE.pt2",
    "text:NAME",
)

_KINDS: dict[str, Kind] = {**PROVIDERS, **SELF_CONTAINED}

BACKBONES: dict[str, Backbone] = {
    name: row for provider in PROVIDERS.values() for name, row in provider.ROWS.items()
}

_PREFIXES = "|".join(name.partition(":")[0] for name in BY_PREFIX)
_NAMES = "|".join(map(re.escape, [*BACKBONES, precomputed.CHOICE]))
# As far as names can be told without looking.
PATTERN = rf"^(({_NAMES})(:.+=.+)?|({_PREFIXES}):.+)$"


def find_backbone(name: str) -> Backbone:
    """The network of that name.

    Raises:
        UnknownName: there is none.
    """
    for each in (*_KINDS.values(), *NON_IMAGE_ENCODERS.values()):
        found = each.find(name)
        if found is not None:
            return found
    raise UnknownName("backbone", name, [*BACKBONES, *BY_PREFIX, precomputed.CHOICE])


def published(backbone: Backbone) -> list[Published]:
    """What is said of its named weights; nothing of what has no provider."""
    provider = PROVIDERS.get(backbone.origin)
    return provider.published(backbone) if provider else []


def kind(backbone: Backbone) -> Kind:
    """Who describes ``backbone``, a network of images."""
    return _KINDS[backbone.origin]


def named_weights(backbone: Backbone, name: str) -> NamedWeights:
    """Look ``name`` up among the weights of ``backbone``; may import torchvision.

    Raises:
        UnknownName: the network has no weights of that name.
        InvalidSpec, WeightsError: see the providers by prefix.
    """
    return kind(backbone).named_weights(backbone, name)

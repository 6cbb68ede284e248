"""The pretrained networks: rows by family, and the providers that load them.

``find_backbone`` is the way in. To add a network of torchvision: a name in a family of
``classifiers`` or ``detectors``. To add another kind of network: a module with the
names of ``Provider``, and a row in ``PROVIDERS``. Nothing here imports torch before it
is asked for weights or a network, so that listing and planning stay fast.
"""

from tl_pipeline.backbones import classifiers, detectors, ours
from tl_pipeline.backbones.backbone import (
    Backbone,
    Layer,
    NamedWeights,
    Pooling,
    Provider,
    Published,
)
from tl_pipeline.backbones.members import checkpoint_folder
from tl_pipeline.errors import UnknownName

__all__ = [
    "BACKBONES",
    "PROVIDERS",
    "Backbone",
    "Layer",
    "NamedWeights",
    "Pooling",
    "Provider",
    "Published",
    "checkpoint_folder",
    "find_backbone",
    "named_weights",
]

PROVIDERS: dict[str, Provider] = {
    "ours": ours,
    "torchvision": classifiers,
    "torchvision detection": detectors,
}

BACKBONES: dict[str, Backbone] = {
    name: row for provider in PROVIDERS.values() for name, row in provider.ROWS.items()
}


def find_backbone(name: str) -> Backbone:
    """The network of that name.

    Raises:
        UnknownName: there is none.
    """
    for provider in PROVIDERS.values():
        found = provider.find(name)
        if found is not None:
            return found
    raise UnknownName("backbone", name, BACKBONES)


def named_weights(backbone: Backbone, name: str) -> NamedWeights:
    """Look ``name`` up among the weights of ``backbone``; may import torchvision.

    Raises:
        UnknownName: the network has no weights of that name.
    """
    return PROVIDERS[backbone.origin].named_weights(backbone, name)

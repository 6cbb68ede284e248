"""The network that comes with this package: LeNet-5 on letters."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

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

_C5, _F6 = Layer("flatten"), Layer("f6_relu")
ROWS: Mapping[str, Backbone] = {
    "lenet5": Backbone(
        "lenet5",
        {"c5": _C5, "f6": _F6, "penultimate": _F6},
        weights="LETTERS",
        origin="ours",
    )
}

PACKAGE: str = "torchvision"  # nothing is remembered of LeNet, and torch draws it

_LETTERS = "lenet5-letters.safetensors"
_PREPROCESS = Preprocess(resize=32, crop=32, grey=True, mean=(0.5,), std=(0.5,))
renamed = same_names


def find(name: str) -> Backbone | None:
    """The network of that name, if it is ours."""
    return ROWS.get(name)


def named_weights(backbone: Backbone, name: str) -> NamedWeights:
    """The bundled weights, the only ones.

    Raises:
        UnknownName: ``name`` is another.
    """
    if name != backbone.weights:
        raise UnknownName(f"{backbone.name} weights", name, [backbone.weights])
    return NamedWeights(name, place(""), "", 0.25, "", _PREPROCESS)


def published(backbone: Backbone) -> list[Published]:
    """What is known of the bundled weights: see scripts/train_lenet5.py."""
    named = named_weights(backbone, backbone.weights)
    return [
        Published(
            name=named.name,
            file=named.file,
            megabytes=named.megabytes,
            parameters=63_916,
            score=89.9,
            measure="top-1 letters",
            licence="Apache-2.0, as this package",
        )
    ]


def place(url: str) -> Path:
    """Where the bundled weights lie, which have no address.

    Raises:
        ValueError: ``url`` is one.
    """
    if url:
        raise ValueError(f"the weights of LeNet-5 come with this package, not {url}")
    return Path(str(resources.files("tl_pipeline") / "weights" / _LETTERS))


def fetch(named: NamedWeights) -> None:
    """Nothing: they come with this package.

    Raises:
        FileNotFoundError: they do not.
    """
    raise FileNotFoundError(f"{named.file.name} came with tl-pipeline: install again")


def build(
    backbone: Backbone,  # noqa: ARG001 - there is one
    side: int,  # noqa: ARG001 - what does not fit is told by the first convolutions
    state: "Mapping[str, torch.Tensor] | None" = None,
) -> "torch.nn.Module":
    """A LeNet-5 with as many classes as ``state`` has."""
    from tl_pipeline.encoders.lenet import LeNet5

    last = state.get("output.bias") if state else None
    return LeNet5() if last is None or last.ndim != 1 else LeNet5(len(last))

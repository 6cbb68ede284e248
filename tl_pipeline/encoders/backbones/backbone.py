"""The words of a network: its layers, its named weights, who provides it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from tl_pipeline.config.dataset_entry import Modality
from tl_pipeline.errors import UnknownName
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.inputs.modalities import Input

if TYPE_CHECKING:
    import torch

    from tl_pipeline.encoders.backbones.outputs import Outputs

Pooling = Literal[
    "none",
    "mean",
    "avg+max",
    "grid2",
    "grid3",
    "gem",
    "flatten",
    "cls",
    "cls+mean",
    "tokens",
]
CELLS: Mapping[Pooling, int] = {"grid2": 2, "grid3": 3}  # on each side


@dataclass(frozen=True)
class Layer:
    """A node of a network's graph, and how its output becomes one vector an image."""

    node: str
    pooling: Pooling = "none"


@dataclass(frozen=True)
class PrefixTokens:
    """Tokens before those of the image: ``count``, of which the first are ``classes``.

    Class tokens come first; registers follow, or stand alone.
    """

    count: int = 0
    classes: int = 0


@dataclass(frozen=True)
class Backbone:
    """One network: its layers by the names people use, the first is the default.

    ``weights`` are those taken when none are asked for, ``origin`` the provider that
    describes and builds the network, ``prefix`` the tokens before those of the image
    where a layer gives tokens, ``modality`` what its inputs are, ``aliases`` nodes of
    its graph by the names that papers and other libraries use.
    """

    name: str
    layers: Mapping[str, Layer]
    weights: str = "IMAGENET1K_V1"
    origin: str = "torchvision"
    prefix: PrefixTokens = PrefixTokens()
    modality: Modality = "image"
    aliases: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def default_layer(self) -> str:
        """The name of the layer that is taken when none is asked for."""
        return next(iter(self.layers))

    def layer(self, name: str | None) -> tuple[str, Layer]:
        """The listed layer of that name, or the default one.

        Raises:
            UnknownName: the backbone lists no such layer.
        """
        name = name or self.default_layer
        if name not in self.layers:
            raise UnknownName(f"{self.name} layer", name, self.layers)
        return name, self.layers[name]


@dataclass(frozen=True)
class NamedWeights:
    """A named member of a network's weights: its file, and what it expects as input.

    ``sha256_prefix`` is what is promised of the file, "" where nothing is. A network
    that brings its own weights tells its ``layers`` here, and its ``sha256`` if they
    lie in no file of their own.
    """

    name: str
    file: Path
    url: str
    megabytes: float
    sha256_prefix: str
    preprocess: Preprocess
    layers: Mapping[str, Layer] = field(default_factory=dict)
    sha256: str = ""


@dataclass(frozen=True)
class Published:
    """What is said of a named member: ``score`` in percent, ``measure`` what it is."""

    name: str
    file: Path
    megabytes: float
    parameters: int
    score: float | None
    measure: str
    licence: str

    @property
    def scored(self) -> str:
        """``80.9 top-1 ImageNet-1K``, or "" where nobody tells a score."""
        return "" if self.score is None else f"{self.score:.1f} {self.measure}"


class Kind(Protocol):
    """A kind of network: a module with these names.

    Importing it must not import torch, and neither must ``find``.
    """

    PACKAGE: str
    """Whose version decides what is said of a network, and what a seed draws."""

    def find(self, name: str) -> Backbone | None:
        """The network of that name, if it is of this kind."""
        ...

    def named_weights(self, backbone: Backbone, name: str) -> NamedWeights:
        """The weights called ``name``; UnknownName where there are none."""
        ...


class Provider(Kind, Protocol):
    """A kind of network that is built, then filled: a row in ``PROVIDERS``."""

    ROWS: Mapping[str, Backbone]
    """The networks it lists; a provider of networks by pattern may list none."""

    def published(self, backbone: Backbone) -> list[Published]:
        """What is said of all named weights of ``backbone``."""
        ...

    def place(self, url: str) -> Path:
        """Where the file from ``url`` is kept, or would be."""
        ...

    def fetch(self, named: NamedWeights) -> None:
        """Download the file of ``named``; OSError or RuntimeError where it cannot."""
        ...

    def build(
        self,
        backbone: Backbone,
        side: int,
        state: "Mapping[str, torch.Tensor] | None" = None,
    ) -> "torch.nn.Module":
        """The network for inputs of ``side`` pixels, with as many classes as ``state``.

        InvalidSpec where it has no form for such inputs.
        """
        ...

    def renamed(
        self, backbone: Backbone, side: int, state: "Mapping[str, torch.Tensor]"
    ) -> "Mapping[str, torch.Tensor]":
        """``state`` under the names of ``build``; as it is where it is unknown."""
        ...


class SelfContained(Kind, Protocol):
    """A kind of network that brings its weights, and is nothing without them.

    A row in ``SELF_CONTAINED``. Its ``named_weights`` tell layers too, and the weights'
    ``sha256`` where they lie in no file. It has no untrained twin.
    """

    NO_BASELINE: str
    """Why it cannot be drawn anew, in a few words."""

    def opened(
        self, backbone: Backbone, data: bytes, origin: str, sha256: str
    ) -> "Outputs":
        """The network in ``data``, the bytes of its file, if it has one.

        WeightsError, which names ``origin``, where they are none, or the network is no
        longer the one that ``sha256`` tells.
        """
        ...


@dataclass(frozen=True)
class Identified:
    """A network of a ``NonImageEncoder``: its name, hash, place and input."""

    name: str
    sha256: str
    place: Path | None
    input: Input


class NonImageEncoder(Protocol):
    """A kind of network that is whole from its input, no image, to one vector.

    A module with these names, and a row in ``NON_IMAGE_ENCODERS``. Importing it must
    not import torch, and neither must ``find`` and ``identify``. It has one layer.
    """

    CHOICE: str
    """How people name such a network."""
    NO_BASELINE: str
    """Why it cannot be drawn anew, in a few words; "" where it can."""

    def find(self, name: str) -> Backbone | None:
        """The network of that name, if it is of this kind."""
        ...

    def identify(
        self, backbone: Backbone, seed: int | None, sha256: Callable[[Path], str]
    ) -> Identified:
        """The network, or with a ``seed`` its untrained twin; ``sha256`` of a file.

        WeightsError or InvalidSpec where it is not there, or cannot be used.
        """
        ...

    def fetch(self, backbone: Backbone) -> None:
        """Download it if it is missing; WeightsError where it cannot."""
        ...

    def files(self, place: Path) -> list[Path]:
        """The files in ``place`` that its hash covers; all that ``load`` reads."""
        ...

    def load(
        self, backbone: Backbone, place: Path | None, how: Input, seed: int | None
    ) -> "torch.nn.Module":
        """The frozen network: a batch of inputs to float32 of shape (n, width)."""
        ...


def same_names(
    backbone: Backbone,  # noqa: ARG001 - see ``Provider.renamed``
    side: int,  # noqa: ARG001
    state: "Mapping[str, torch.Tensor]",
) -> "Mapping[str, torch.Tensor]":
    """``state``: old names are renamed by the network as it loads."""
    return state

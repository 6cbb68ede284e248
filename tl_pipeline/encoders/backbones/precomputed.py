"""Vectors that came as they are: the encoder that does nothing, ``features``.

What made them is not known here; the id of an input is that of its vector.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tl_pipeline.encoders.backbones.backbone import Backbone, Identified, Layer
from tl_pipeline.inputs.modalities import Input
from tl_pipeline.inputs.vectors import VectorInput

if TYPE_CHECKING:
    import torch

CHOICE: str = "features"
NO_BASELINE: str = "the vectors came as they are, and what made them is not here"
_ROW = Backbone(
    CHOICE,
    {"vector": Layer("vector")},
    weights="as given",
    origin="features",
    modality="vector",
)


def find(name: str) -> Backbone | None:
    """The one network of this kind."""
    return _ROW if name == CHOICE else None


def identify(
    backbone: Backbone,  # noqa: ARG001
    seed: int | None,  # noqa: ARG001 - it has no untrained twin
    sha256: Callable[[Path], str],  # noqa: ARG001 - it lies in no file
) -> Identified:
    """The same for all vectors."""
    constant = hashlib.sha256(b"identity").hexdigest()
    return Identified(_ROW.weights, constant, None, VectorInput())


def fetch(backbone: Backbone) -> None:
    """There is nothing to download."""


def files(place: Path) -> list[Path]:  # noqa: ARG001
    """It lies in no file."""
    return []


def load(
    backbone: Backbone,  # noqa: ARG001
    place: Path | None,  # noqa: ARG001
    how: Input,  # noqa: ARG001
    seed: int | None,  # noqa: ARG001
) -> "torch.nn.Module":
    """Arrays of shape (n, width) as tensors."""
    import torch

    class Identity(torch.nn.Module):
        def forward(self, batch: "torch.Tensor") -> "torch.Tensor":
            return torch.as_tensor(batch)

    return Identity()

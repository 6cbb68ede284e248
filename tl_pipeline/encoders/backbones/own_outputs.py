"""A module of the user's as named outputs. Imports torch."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import nn

from tl_pipeline.encoders.backbones.outputs import Outputs, Tensors
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.inputs.images import Preprocess

_ONLY = "output"


class FactoryOutputs(Outputs):
    """``output`` of a module that returns one tensor, or the tensors of its dict."""

    def __init__(self, called: str, network: nn.Module) -> None:
        super().__init__()
        self._called = called
        self.network = network

    def named_for(self, how: Preprocess) -> Self:
        """Itself, once one black image has told the names of the outputs.

        Raises:
            InvalidSpec: it cannot be run, or returns something else.
        """
        channels = 1 if how.grey else len(how.mean)
        self.eval()
        try:
            with torch.no_grad():
                found = self(torch.zeros(1, channels, how.crop, how.crop))
        except RuntimeError as fault:
            size = f"{channels} x {how.crop} x {how.crop}"
            raise InvalidSpec(
                f"{self._called} fails for one image of {size}: {fault}"
            ) from fault
        self.names = tuple(found)
        return self

    def forward(self, batch: torch.Tensor) -> Tensors:
        """See ``Outputs``."""
        try:
            found: Any = self.network(batch)
        except Exception as fault:
            raise RuntimeError(f"{type(fault).__name__}: {fault}") from fault
        found = {_ONLY: found} if torch.is_tensor(found) else found
        if not isinstance(found, Mapping) or not all(
            map(torch.is_tensor, found.values())
        ):
            raise RuntimeError(f"it returns {type(found).__name__}, not tensors")
        return {str(name): values.float() for name, values in found.items()}

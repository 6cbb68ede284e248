"""A module of the user's as named outputs. Imports torch."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tl_pipeline.encoders.backbones.outputs import ModuleOutputs, Tensors
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.inputs.images import Preprocess

_ONLY = "output"


class FactoryOutputs(ModuleOutputs):
    """``output`` of a module that returns one tensor, or the tensors of its dict.

    Raises:
        InvalidSpec: it cannot be run for the images that ``how`` tells, or returns
            something else.
    """

    def __init__(self, called: str, network: nn.Module, how: Preprocess) -> None:
        super().__init__(network)
        channels = 1 if how.grey else len(how.mean)
        self._image = (channels, how.crop, how.crop)
        self.eval()
        try:
            self.names = tuple(self.try_out())
        except RuntimeError as fault:
            size = " x ".join(map(str, self._image))
            raise InvalidSpec(
                f"{called} fails for one image of {size}: {fault}"
            ) from fault
        self.only(self.names)

    def results(self, batch: torch.Tensor) -> Tensors:
        """See ``ModuleOutputs``."""
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

    def try_out(self) -> Tensors:
        """See ``ModuleOutputs``."""
        with torch.no_grad():
            return self.results(torch.zeros(1, *self._image))

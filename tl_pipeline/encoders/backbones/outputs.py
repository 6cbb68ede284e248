"""Networks that name their outputs themselves, with no graph traced. Imports torch."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

Tensors = Mapping[str, torch.Tensor]


class Outputs(nn.Module):
    """Called with a normalised batch, it returns its outputs by name, ``names``.

    ``class_tokens`` is that of ``Backbone``, where only the network knows it. Shapes
    are read off on the ``meta`` device, or by a real batch where ``on_meta`` is false.
    A subclass that fails for an input raises RuntimeError, whatever is inside it.
    """

    names: tuple[str, ...] = ()
    class_tokens = 0
    on_meta = False

    def forward(self, batch: torch.Tensor) -> Tensors:
        """(n, channels, side, side) to the outputs of n images."""
        raise NotImplementedError


class InBatches(Outputs):
    """An ``Outputs`` that was frozen for ``least`` to ``most`` images a call.

    Larger batches are cut, smaller ones filled up by their last image, whose further
    outputs are thrown away. ``most`` is None where there is no limit.
    """

    def __init__(self, names: Sequence[str], least: int, most: int | None) -> None:
        super().__init__()
        self.names = tuple(names)
        self._least, self._most = least, most

    def compute(self, batch: torch.Tensor) -> Sequence[Any]:
        """The outputs of a batch of a permitted length, in the order of ``names``."""
        raise NotImplementedError

    def forward(self, batch: torch.Tensor) -> Tensors:
        """See ``Outputs``."""
        parts = [self._padded(part) for part in batch.split(self._most or len(batch))]
        return {
            name: torch.cat([part[name] for part in parts]) if parts[1:] else values
            for name, values in parts[0].items()
        }

    def _padded(self, part: torch.Tensor) -> Tensors:
        missing = max(0, self._least - len(part))
        whole = torch.cat([part, part[-1:].expand(missing, -1, -1, -1)])
        try:
            found = self.compute(whole)
        except Exception as fault:  # noqa: BLE001 - runtimes have errors of their own
            raise RuntimeError(f"{type(fault).__name__}: {fault}") from None
        # An output that is no row an image is left whole, for the cut to refuse it.
        return {
            name: values[: len(part)] if values.shape[:1] == (len(whole),) else values
            for name, values in zip(self.names, found, strict=True)
        }

"""Means of weights: of those of all steps (EMA), of those before and after (WiSE-FT).

Imports torch.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tl_pipeline.finetuning.network import Classifier, State

# Shares of the trained weights in WiSE-FT; 1 are they alone.
_MIXES = tuple(round(0.1 * n, 1) for n in range(11))
# Inverse temperatures at which a mix is judged.
_FACTORS = np.geomspace(0.1, 10, 41).tolist()


def copy(network: nn.Module) -> State:
    """The weights of ``network`` as they are now."""
    return {
        name: values.detach().clone() for name, values in network.state_dict().items()
    }


class Average:
    """The exponential moving average of the weights of ``network``.

    ``weights`` and ``steps`` are all that it goes on with.
    """

    def __init__(self, network: Classifier, decay: float) -> None:
        self._network, self._decay = network, decay
        self.weights, self.steps = copy(network), 0

    def add(self) -> None:
        """Take the weights after a step into the average."""
        self.steps += 1  # while it is young it follows faster
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for name, values in self._network.state_dict().items():
                if values.is_floating_point():
                    self.weights[name].lerp_(values, 1 - decay)
                else:
                    self.weights[name].copy_(values)

    @contextmanager
    def used(self) -> Iterator[None]:
        """In the block the network has the average as its weights."""
        own = copy(self._network)
        self._network.restore(self.weights)
        yield
        self._network.restore(own)


def mix(
    network: Classifier,
    before: Mapping[str, torch.Tensor],
    logits: Callable[[], torch.Tensor],
    targets: np.ndarray,
) -> float:
    """Mix the weights of ``network`` with those ``before``; the share of its own.

    The share with which images lose least, of which ``targets`` (n,) are the class
    numbers and ``logits`` gives what the network says of them, (n, K). By log loss at
    the temperature that suits the share: a network that learned long is surer than it
    is right, which calibration mends later, and must not count against it here.
    """
    after, truth = copy(network), torch.from_numpy(targets)
    losses = {}
    for share in _MIXES:
        network.restore(_mixed(before, after, share))
        losses[share] = calibrated_loss(logits(), truth)
    best = min(losses, key=losses.__getitem__)
    network.restore(_mixed(before, after, best))
    return best


def calibrated_loss(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """The least mean cross-entropy of ``logits`` (n, K) at any of ``_FACTORS``."""
    return min(
        functional.cross_entropy(factor * logits, targets).item() for factor in _FACTORS
    )


def _mixed(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], share: float
) -> State:
    return {
        name: before[name].lerp(values, share) if values.is_floating_point() else values
        for name, values in after.items()
    }

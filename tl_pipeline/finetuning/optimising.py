"""The optimiser of a fine-tuning, and its learning rate step by step. Imports torch."""

import math

import torch

from tl_pipeline.config.finetune_specs import FinetuneSpec
from tl_pipeline.finetuning.network import Classifier

MOMENTUM = 0.9  # of sgd
# The learning rate where none is given, and the steps from which on it is taken whole.
_RATE, _ENOUGH = 1e-3, 500


def rate(how: FinetuneSpec, steps: int) -> float:
    """The learning rate at its height of a training of so many ``steps``.

    A step of AdamW is about as long as the rate whatever the gradient is, and it takes
    hundreds of them to find back to what a network knew: at 0.001, 24 steps on 183
    photos left SqueezeNet near chance, 500 on traffic signs did it good.
    """
    return how.learning_rate or _RATE * min(1.0, steps / _ENOUGH)


def factor(step: int, total: int, warmup: float) -> float:
    """The share of the rate at a ``step`` of ``total``: it rises, then half a cosine.

    ``warmup`` is the share of the steps in which it rises.
    """
    warm = round(warmup * total)
    if step < warm:
        return (step + 1) / warm
    return (1 + math.cos(math.pi * (step - warm) / max(1, total - warm))) / 2


def optimiser(
    network: Classifier, how: FinetuneSpec, device: torch.device, highest: float
) -> torch.optim.Optimizer:
    """Each block at its own rate; norms and biases are not decayed."""
    groups = []
    for depth, block in enumerate(network.learning):
        rate = highest * how.decay**depth
        for decayed in (True, False):
            some = [p for p in block if (p.ndim > 1) == decayed]
            if some:
                decay = how.weight_decay if decayed else 0.0
                groups.append({"params": some, "lr": rate, "weight_decay": decay})
    if how.optimiser == "sgd":
        return torch.optim.SGD(groups, highest, momentum=MOMENTUM, fused=True)
    return torch.optim.AdamW(groups, highest, fused=device.type in {"cpu", "cuda"})

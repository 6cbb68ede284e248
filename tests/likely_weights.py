"""Weights for networks that have none here: random, and as tame as trained ones."""

import torch
from torch import nn

from tl_pipeline.encoders import networks
from tl_pipeline.encoders.backbones import Backbone

# Of batch norms: below one, a block changes what passes by it as after training.
_GAMMA = 0.15
State = dict[str, torch.Tensor]
# Names that tell of auxiliary heads, which only the published files have.
_AUX = {"aux1.": torch.empty(0), "AuxLogits.": torch.empty(0)}

# Drawing 600 million normal values takes longer than everything else.
_DRAWN = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))


def likely_state(backbone: Backbone, side: int, *, aux_logits: bool = False) -> State:
    """Random weights whose batch norms have seen noise, for inputs of ``side`` pixels.

    With unit variances in the batch norms, 50 blocks deep, a network overflows or turns
    the last bit of a float into a difference of one; after training none does.
    ``aux_logits`` adds the heads that GoogLeNet and Inception v3 were trained with.
    """
    network = networks.hollow(backbone, side, _AUX if aux_logits else None)
    state = network.state_dict()  # it knows its version
    drawn = _drawn(state)
    for name, tensor in state.items():
        state[name] = _likely(name, tensor, drawn)
    network.load_state_dict(state, assign=True)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.constant_(norm.weight, _GAMMA)
        norm.momentum, norm.eps = 1.0, 1e-5
        norm.train()
    if norms:
        with torch.no_grad():
            network(noise(4, 3, side, seed=2))
    for norm in norms:
        # Four images are few: what hardly varied among them would be blown up.
        norm.running_var.clamp_(min=0.3 * norm.running_var.mean())
    return network.state_dict()


def noise(images: int, channels: int, side: int, *, seed: int = 1) -> torch.Tensor:
    """Normalised inputs (images, channels, side, side)."""
    chance = torch.Generator().manual_seed(seed)
    return torch.randn((images, channels, side, side), generator=chance)


def _drawn(state: State) -> dict[float, torch.Tensor]:
    """Standard deviation -> as many values of it as the largest kernel needs.

    Kernels of one deviation share them: 2.6 GB of weights take longer to write than
    to use.
    """
    counts: dict[float, int] = {}
    for tensor in filter(_is_kernel, state.values()):
        scale = _deviation(tensor)
        counts[scale] = max(tensor.numel(), counts.get(scale, 0))
    return {
        scale: _DRAWN.repeat(count // len(_DRAWN) + 1)[:count].mul_(scale)
        for scale, count in counts.items()
    }


def _is_kernel(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 1


def _deviation(kernel: torch.Tensor) -> float:
    return (2 / kernel[0].numel()) ** 0.5


def _likely(
    name: str, tensor: torch.Tensor, drawn: dict[float, torch.Tensor]
) -> torch.Tensor:
    if not tensor.is_floating_point():
        # Counts of batches, or tables of positions that the network itself filled.
        return torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor
    if _is_kernel(tensor):
        return drawn[_deviation(tensor)][: tensor.numel()].view(tensor.shape)
    if name.endswith("running_var"):
        return torch.ones(tensor.shape)
    values = _DRAWN[: tensor.numel()].reshape(tensor.shape)
    return 0.1 * values + (1.0 if name.endswith("weight") else 0.0)

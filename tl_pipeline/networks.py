"""Networks: built, loaded with weights, cut at a layer. Imports torch."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import nn
from torchvision.models import get_model
from torchvision.models.feature_extraction import create_feature_extractor

from tl_pipeline.backbones import Backbone, Layer
from tl_pipeline.errors import WeightsError
from tl_pipeline.lenet import LeNet5


class Cut(nn.Module):
    """A frozen network up to ``layer``: (n, channels, crop, crop) -> (n, width)."""

    def __init__(self, network: nn.Module, layer: Layer) -> None:
        super().__init__()
        self.pooling = layer.pooling
        self.body = create_feature_extractor(network.eval(), {layer.node: "out"})
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Embed a normalised float32 batch."""
        out = self.body(batch)["out"]
        return out.mean(dim=(2, 3)) if self.pooling == "mean" else out


def read_state(data: bytes, origin: Path) -> dict[str, torch.Tensor]:
    """The state dict in the bytes of a weights file; ``origin`` names it in errors.

    Raises:
        WeightsError: truncated, not a state dict, or a pickle that holds code.
    """
    try:
        if origin.suffix == ".safetensors":
            return load_safetensors(data)
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise WeightsError(f"{origin}: not a whole safetensors file: {error}") from None
    # torch raises errors of many kinds for damaged files; all mean the same here.
    except Exception as error:  # noqa: BLE001
        reason = str(error).strip().partition("\n")[0]
        raise WeightsError(
            f"{origin}: cannot be read as a state dict ({reason}). Expected what "
            "torch.save(model.state_dict(), FILE) writes, or a .safetensors file"
        ) from None
    tensors = isinstance(state, dict) and all(
        isinstance(name, str) and torch.is_tensor(t) for name, t in state.items()
    )
    if not tensors or not state:
        raise WeightsError(f"{origin}: holds no state dict of tensors")
    return state


def pretrained(
    backbone: Backbone, layer: Layer, state: dict[str, torch.Tensor], origin: Path
) -> nn.Module:
    """The frozen network up to ``layer`` with the weights ``state``, in eval mode.

    It maps a normalised float32 batch (n, channels, crop, crop) to float32 (n, width).

    Raises:
        WeightsError: names or shapes do not fit the network; they are listed.
    """
    with torch.device("meta"):
        network = _network(backbone, classes=None)
        # Weights of a fine-tuned network end in another number of classes, and are as
        # good an encoder.
        last = next(reversed(list(network.named_parameters())))[0]
        if last in state and state[last].ndim == 1:
            network = _network(backbone, classes=len(state[last]))
    expected = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    given = {name: tuple(t.shape) for name, t in state.items()}
    if expected != given:
        raise WeightsError(
            f"{origin} does not hold weights of {backbone.name}: "
            + _difference(expected, given)
        )
    kinds = {name: t.dtype for name, t in network.state_dict().items()}
    state = {name: t.to(kinds[name]) for name, t in state.items()}
    network.load_state_dict(state, strict=True, assign=True)
    return Cut(network, layer)


def untrained(backbone: Backbone, layer: Layer, seed: int) -> nn.Module:
    """The network up to ``layer`` as it is before any training, drawn from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Cut(_network(backbone, classes=None), layer)


def _network(backbone: Backbone, classes: int | None) -> nn.Module:
    if backbone.origin == "ours":
        return LeNet5() if classes is None else LeNet5(classes)
    extra: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    return get_model(backbone.name, weights=None, **extra)


def _difference(
    expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]
) -> str:
    """Which names are missing or strange, and which shapes differ: three of each."""
    faults = {
        "missing": [name for name in expected if name not in given],
        "unknown": [name for name in given if name not in expected],
        "of another shape": [
            f"{name} {given[name]} instead of {shape}"
            for name, shape in expected.items()
            if name in given and given[name] != shape
        ],
    }
    return "; ".join(
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
        for what, names in faults.items()
        if names
    )

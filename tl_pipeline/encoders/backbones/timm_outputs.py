"""A network of timm as the outputs of its trunk and of its head. Imports torch."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tl_pipeline.encoders.backbones.outputs import Outputs, Tensors


class TimmOutputs(Outputs):
    """``features`` and ``pre_logits`` of a network of timm; parameters as in timm.

    Features are maps (n, channels, height, width) or tokens (n, tokens, channels).
    Where there is no class token, other tokens before those of the image (registers)
    are left out of the features.
    """

    names = ("pre_logits", "features")
    on_meta = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network
        self._first = int(getattr(network, "num_prefix_tokens", 0))
        if _has_class_token(network):
            self.class_tokens, self._first = self._first, 0
        self._channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"

    def forward(self, batch: torch.Tensor) -> Tensors:
        """See ``Outputs``."""
        features = self.network.forward_features(batch)
        vectors = self.network.forward_head(features, pre_logits=True)
        if not torch.is_tensor(features):
            features = vectors.new_empty(0)  # of two branches: no layer of one shape
        elif features.ndim == 3:
            features = features[:, self._first :]
        elif self._channels_last:
            features = features.permute(0, 3, 1, 2)
        return {"pre_logits": vectors, "features": features}

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Of the network itself, under timm's names."""
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Of the network itself, under timm's names."""
        return self.network.load_state_dict(state_dict, strict, assign)


def _has_class_token(network: nn.Module) -> bool:
    found = getattr(network, "has_class_token", None)
    return getattr(network, "cls_token", None) is not None if found is None else found

"""A network of timm as the outputs of its trunk, its head, and its submodules.

Imports torch.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from tl_pipeline.encoders.backbones.backbone import PrefixTokens
from tl_pipeline.encoders.backbones.outputs import (
    IMAGES,
    ModuleOutputs,
    Shapes,
    Tensors,
    outputs_on_meta,
)

_FEATURES, _PRE_LOGITS = "features", "pre_logits"
_LAST = re.compile(r"last([1-9]\d*)")


class TimmOutputs(ModuleOutputs):
    """``pre_logits``, ``features`` and submodules of a network; parameters as in timm.

    Features are maps (n, channels, height, width) or tokens (n, tokens, channels), the
    output of a submodule is what it is (Swin's have the channels last). ``lastK`` are
    the class tokens of the last K blocks, then the patch tokens of the last one, all
    after the final normalisation: pooled by ``cls+mean``, what DINOv2 is evaluated by
    (Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR
    2024, linear evaluation).
    """

    names = (_PRE_LOGITS, _FEATURES)
    on_meta = True

    def __init__(self, network: nn.Module, side: int) -> None:
        super().__init__(network)
        self._side = side
        count = int(getattr(network, "num_prefix_tokens", 0))
        self._prefix = PrefixTokens(count, int(count > 0 and _has_class_token(network)))
        self._channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"

    def results(self, batch: torch.Tensor) -> Tensors:
        """See ``ModuleOutputs``."""
        features = self.network.forward_features(batch)
        vectors = self.network.forward_head(features, pre_logits=True)
        if self._channels_last:
            features = features.permute(0, 3, 1, 2)
        return {_PRE_LOGITS: vectors, _FEATURES: features}

    def traced(self) -> fx.GraphModule | None:
        """See ``Outputs``."""
        from tl_pipeline.encoders.backbones import timm_graphs

        return timm_graphs.traced(self)

    def layer_names(self) -> list[str]:
        """See ``Outputs``."""
        lasts = [f"last{k + 1}" for k in range(len(self._blocks))]
        return [*self.names, *lasts, *self.submodules]

    def sources(self, layer: str) -> Sequence[str]:
        """See ``ModuleOutputs``."""
        last = _LAST.fullmatch(layer)
        if last and int(last[1]) <= len(self._blocks):
            return self._blocks[-int(last[1]) :]
        return super().sources(layer)

    def made(self, layer: str, found: Tensors) -> torch.Tensor:
        """See ``ModuleOutputs``."""
        if not _LAST.fullmatch(layer):
            return super().made(layer, found)
        blocks = [self.network.norm(found[name]) for name in self.sources(layer)]
        patches = blocks[-1][:, self._prefix.count :]
        return torch.cat([*(tokens[:, :1] for tokens in blocks), patches], dim=1)

    def prefix(self, layer: str, shape: Sequence[int]) -> PrefixTokens:
        """See ``Outputs``."""
        last = _LAST.fullmatch(layer)
        if last:
            return PrefixTokens(int(last[1]), int(last[1]))
        if len(shape) != 2 or not self._prefix.count:
            return PrefixTokens()
        return self._prefix if shape[0] == self._tokens else PrefixTokens()

    def try_out(self) -> Mapping[str, Any]:
        """See ``ModuleOutputs``."""
        return outputs_on_meta(self, (3, self._side, self._side), "results")

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Of the network itself, under timm's names."""
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Of the network itself, under timm's names."""
        return self.network.load_state_dict(state_dict, strict, assign)

    @cached_property
    def _tokens(self) -> int:
        """How many tokens of the image and before it the last block gives."""
        features = self.try_out()[_FEATURES]
        return features.shape[1] if features.ndim == len("ntc") else 0

    @cached_property
    def _blocks(self) -> Sequence[str]:
        """The blocks whose class tokens ``lastK`` means; none without such tokens."""
        blocks = getattr(self.network, "blocks", ())
        names = [f"blocks.{number}" for number in range(len(blocks))]
        if not self._prefix.classes or not isinstance(self.network.norm, nn.Module):
            return ()
        shapes: Shapes = self.submodules
        width = (IMAGES, self._tokens)
        return names if all(shapes.get(n, ())[:2] == width for n in names) else ()


def _has_class_token(network: nn.Module) -> bool:
    found = getattr(network, "has_class_token", None)
    return getattr(network, "cls_token", None) is not None if found is None else found

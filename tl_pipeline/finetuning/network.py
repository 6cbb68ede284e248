"""The network that is fine-tuned: a trunk, of which some blocks learn, and a head.

Imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tl_pipeline.config.finetune_specs import FinetuneSpec
from tl_pipeline.encoders import loading
from tl_pipeline.encoders.backbones import find_backbone
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.encoders.feature_extractor import FeatureExtractor
from tl_pipeline.encoders.networks import hollow, input_shape
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.finetuning import blocks, cut
from tl_pipeline.inputs.images import Preprocess

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class LinearHead:
    """Logits of embeddings: ``weight`` (K, width) x (x - mean) / scale + ``bias``.

    ``mean`` and ``scale`` are (width,) and do not learn.
    """

    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    scale: np.ndarray


class Classifier(nn.Module):
    """Pixels to logits: normalise, the trunk up to the layer of an encoder, the head.

    Called with float32 pixels in [0, 1], (n, channels, crop, crop); once it is
    ``divided``, with what its frozen blocks give for them. What comes before the first
    block that learns is in evaluation mode whatever ``train`` says. ``learning`` are
    the parameters that learn, the head's and then block by block; ``frozen`` says
    whether some do not.

    Raises:
        WeightsError, InvalidSpec: see ``loading.load_together``; the network has fewer
            blocks than are to learn.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, encoder: Encoder, head: LinearHead, how: FinetuneSpec) -> None:
        super().__init__()
        preprocess = encoder.preprocess
        assert isinstance(preprocess, Preprocess)  # noqa: S101 - checked by prepare
        self.normalise = _Normalise(preprocess)
        self.extractor = loading.load_together([encoder])
        self._body = (self.extractor.body,)  # no submodule: ``divided`` may take it off
        self._image = input_shape(preprocess)
        self.dropout = nn.Dropout(how.dropout)
        self.head = nn.Linear(head.weight.shape[1], len(head.weight))
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(head.weight))
            self.head.bias.copy_(torch.from_numpy(head.bias))
        for name, values in (("mean", head.mean), ("scale", head.scale)):
            constant = torch.from_numpy(values).float()
            self.register_buffer(name, constant, persistent=False)
        self._frozen_norms = how.norm == "frozen"
        own = _used(self.extractor, encoder)
        chosen = _blocks(encoder, list(own), how) if how.blocks else []
        self.learning = [list(self.head.parameters())]
        self.learning += [[own[name].requires_grad_() for name in b] for b in chosen]
        self.frozen = sum(map(len, chosen)) < len(own)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Logits (n, K)."""
        (vectors,) = self.extractor(self.normalise(values))
        return self.head(self.dropout((vectors - self.mean) / self.scale))

    def divided(self) -> nn.Module | None:
        """Take the frozen blocks off: they map pixels to what it is called with then.

        None if the network cannot be cut before its first block that learns; it stays
        as it is.
        """
        found = cut.halves(self.extractor.body, self._image)
        if found is None:
            return None
        prefix = nn.Sequential(self.normalise, found[0]).eval()
        self.normalise, self.extractor.body = nn.Identity(), found[1]
        return prefix

    @property
    def is_divided(self) -> bool:
        """Whether its frozen blocks were taken off."""
        return self.extractor.body is not self._body[0]

    def train(self, mode: bool = True) -> "Classifier":
        """See ``nn.Module``; what does not learn, and frozen statistics, stay."""
        super().train(mode)
        learns = False
        for module in self.extractor.modules():  # from the input on
            own = module.parameters(recurse=False)
            learns = learns or any(p.requires_grad for p in own)
            if not learns or (isinstance(module, _BatchNorm) and self._frozen_norms):
                module.training = False
        return self

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take the values of ``state``, which an earlier ``state_dict`` gave.

        Networks of timm give their weights under names of their own, under which
        ``load_state_dict`` does not look for them.
        """
        with torch.no_grad():
            for name, values in self.state_dict().items():
                values.copy_(state[name])

    @property
    def in_one_piece(self) -> bool:
        """Whether images of a batch must go through together, or dropout be drawn."""
        return any(
            (isinstance(m, _BatchNorm) and m.training)
            or (m.training and (getattr(m, "p", 0) or getattr(m, "drop_prob", 0)))
            for m in self.modules()
        )

    def weights(self) -> State:
        """Those of the trunk, by the names of its provider, in float32."""
        (body,) = self._body
        state: State = body.state_dict()
        return {
            name: values.detach().cpu().contiguous().clone()
            for name, values in state.items()
        }

    def linear(self) -> LinearHead:
        """The head as it is now."""
        weight, bias, mean, scale = (
            values.detach().cpu().numpy().copy()
            for values in (self.head.weight, self.head.bias, self.mean, self.scale)
        )
        return LinearHead(weight, bias, mean, scale)


def classifier(
    encoder: Encoder, head: LinearHead, how: FinetuneSpec, *, divided: bool
) -> Classifier:
    """A ``Classifier`` before it learns, ``divided`` or whole."""
    found = Classifier(encoder, head, how)
    if divided:
        found.divided()
    return found


class _Normalise(nn.Module):
    """Pixels in [0, 1] as a network is fed."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, how: Preprocess) -> None:
        super().__init__()
        for name in ("mean", "std"):
            constant = torch.tensor(getattr(how, name)).view(1, -1, 1, 1)
            self.register_buffer(name, constant, persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        batch = (pixels - self.mean) / self.std
        return batch.contiguous(memory_format=torch.channels_last)


def check_blocks(encoder: Encoder, how: FinetuneSpec) -> None:
    """See that the network of ``encoder`` has as many blocks as are to learn.

    Raises:
        WeightsError, InvalidSpec: see ``Classifier``.
    """
    extractor = loading.load_together([encoder])
    _blocks(encoder, list(_used(extractor, encoder)), how)


def _blocks(encoder: Encoder, names: list[str], how: FinetuneSpec) -> list[list[str]]:
    """The parameters ``names`` of the blocks that learn, the nearest to the head first.

    Raises:
        InvalidSpec: there are fewer.
    """
    backbone, preprocess = find_backbone(encoder.backbone), encoder.preprocess
    assert isinstance(preprocess, Preprocess)  # noqa: S101 - of images
    known = blocks.blocks(hollow(backbone, preprocess.crop))
    found = blocks.of_parameters(known, names)
    if how.blocks == "all":
        return found
    if how.blocks > len(found):
        raise InvalidSpec(
            f"blocks={how.blocks}: {encoder.backbone} has {len(found)} blocks up to "
            f"{encoder.layer}; give 1 to {len(found)}, all, or head"
        )
    return found[: how.blocks]


def _used(extractor: FeatureExtractor, encoder: Encoder) -> dict[str, nn.Parameter]:
    """The parameters that embeddings depend on, by the names of their provider."""
    assert isinstance(encoder.preprocess, Preprocess)  # noqa: S101 - of images
    trunk: Any = getattr(extractor.body, "network", extractor.body)
    own = dict(trunk.named_parameters())
    for parameter in own.values():
        parameter.requires_grad_()
    with torch.enable_grad():
        (vectors,) = extractor(torch.zeros(2, *input_shape(encoder.preprocess)))
        found = torch.autograd.grad(
            vectors.sum(), list(own.values()), allow_unused=True
        )
    extractor.requires_grad_(requires_grad=False)
    used = zip(own.items(), found, strict=True)
    return {name: values for (name, values), got in used if got is not None}

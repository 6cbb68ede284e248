"""The network that is fine-tuned: a trunk, of which some blocks learn, and a head.

Imports torch.
"""

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
from tl_pipeline.finetuning import blocks
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

    Called with float32 pixels in [0, 1], (n, channels, crop, crop). What comes before
    the first block that learns is in evaluation mode whatever ``train`` says.

    Raises:
        WeightsError, InvalidSpec: see ``loading.load_together``; the network has fewer
            blocks than are to learn.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(self, encoder: Encoder, head: LinearHead, how: FinetuneSpec) -> None:
        super().__init__()
        preprocess = encoder.preprocess
        assert isinstance(preprocess, Preprocess)  # noqa: S101 - checked by prepare
        self.extractor = loading.load_together([encoder])
        self.dropout = nn.Dropout(how.dropout)
        self.head = nn.Linear(head.weight.shape[1], len(head.weight))
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(head.weight))
            self.head.bias.copy_(torch.from_numpy(head.bias))
        constants = {
            "mean": torch.from_numpy(head.mean),
            "scale": torch.from_numpy(head.scale),
            "pixel_mean": torch.tensor(preprocess.mean).view(1, -1, 1, 1),
            "pixel_std": torch.tensor(preprocess.std).view(1, -1, 1, 1),
        }
        for name, values in constants.items():
            self.register_buffer(name, values.float(), persistent=False)
        self._frozen_norms = how.norm == "frozen"
        self.learning = self._unfrozen(encoder, how)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (n, K)."""
        return self.head(self.dropout(self.embed(pixels)))

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Standardised embeddings (n, width)."""
        batch = (pixels - self.pixel_mean) / self.pixel_std
        batch = batch.contiguous(memory_format=torch.channels_last)
        (vectors,) = self.extractor(batch)
        return (vectors - self.mean) / self.scale

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

    @property
    def in_one_piece(self) -> bool:
        """Whether images of a batch must go through together, or dropout be drawn."""
        return any(
            (isinstance(m, _BatchNorm) and m.training)
            or (isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p)  # noqa: SLF001
            for m in self.modules()
        )

    def weights(self) -> State:
        """Those of the trunk, by the names of its provider, in float32."""
        state: State = self.extractor.body.state_dict()  # pyright: ignore[reportCallIssue]
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

    def _unfrozen(
        self, encoder: Encoder, how: FinetuneSpec
    ) -> list[list[nn.Parameter]]:
        """The parameters that learn: the head's, then block by block below it."""
        groups = [list(self.head.parameters())]
        if how.blocks == 0:
            return groups
        own = _used(self.extractor, encoder)
        chosen = _blocks(encoder, list(own), how)
        for names in chosen:
            for name in names:
                own[name].requires_grad_()
        return groups + [[own[name] for name in names] for names in chosen]


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

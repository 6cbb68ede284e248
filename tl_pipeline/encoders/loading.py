"""The frozen networks of encoders, from weights that are still those. Imports torch."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from tl_pipeline.encoders import backbones, networks
from tl_pipeline.encoders.backbones import (
    NON_IMAGE_ENCODERS,
    PROVIDERS,
    SELF_CONTAINED,
    Backbone,
    Layer,
)
from tl_pipeline.encoders.encoder import Encoder, shares_network
from tl_pipeline.encoders.feature_extractor import FeatureExtractor, Single
from tl_pipeline.encoders.weight_files import read_state
from tl_pipeline.errors import InvalidSpec, WeightsError
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.store.files import file_sha256

_STEP = 32  # divides the sides that most networks take


def load(encoder: Encoder) -> nn.Module:
    """The frozen network of ``encoder``: (n, channels, crop, crop) -> (n, width).

    Where its inputs are no images, from what a ``Batch`` of ``modalities`` gives.

    Raises:
        WeightsError: the file changed since it was resolved, or does not fit.
        InvalidSpec: the input or the pooling does not suit the network.
    """
    backbone = backbones.find_backbone(encoder.backbone)
    if backbone.origin in NON_IMAGE_ENCODERS:
        return _loaded(encoder, backbone)
    return Single(load_together([encoder]))


def load_together(encoders: Sequence[Encoder]) -> FeatureExtractor:
    """One network for encoders that differ in layer and pooling alone.

    It maps a batch (n, channels, crop, crop) to one tensor (n, width) per encoder.

    Raises:
        ValueError: they differ in more.
        WeightsError, InvalidSpec: see ``load``.
    """
    encoder = encoders[0]
    if not all(shares_network(encoder, other) for other in encoders):
        raise ValueError("these encoders differ in more than layer and pooling")
    backbone = backbones.find_backbone(encoder.backbone)
    layers = [Layer(other.node, other.pooling) for other in encoders]
    how, weights = encoder.preprocess, encoder.weights
    if not isinstance(how, Preprocess):
        raise TypeError(f"{encoder.label} takes no images")
    if weights.seed is not None:
        return networks.untrained(backbone, layers, how, weights.seed)
    sealed = SELF_CONTAINED.get(backbone.origin)
    if sealed is None:
        file, data = _content(encoder)
        return networks.pretrained(backbone, layers, how, read_state(data, file), file)
    origin, data = _content(encoder) if weights.file else (encoder.backbone, b"")
    network = sealed.opened(backbone, data, str(origin), weights.sha256)
    return FeatureExtractor(backbone, network, layers, networks.input_shape(how))


def width(encoder: Encoder) -> int:
    """How many values the embedding of an image has; nothing is computed.

    Raises:
        WeightsError, InvalidSpec: see ``load``; sides that the network takes are named.
    """
    how, layer = encoder.preprocess, Layer(encoder.node, encoder.pooling)
    assert isinstance(how, Preprocess)  # noqa: S101 - of an image
    backbone = backbones.find_backbone(encoder.backbone)
    try:
        if encoder.weights.seed is None:
            return load_together([encoder]).widths[0]
        return networks.widths(backbone, how, [layer])[0]
    except InvalidSpec as fault:
        if networks.takes(backbone, layer, how, how.crop):
            raise  # it is the pooling that does not fit
        below = how.crop // _STEP * _STEP
        usual = backbones.named_weights(backbone, backbone.weights).preprocess.crop
        sides = [
            str(side)
            for side in sorted({below, below + _STEP, usual})
            if side and networks.takes(backbone, layer, how, side)
        ]
        raise InvalidSpec(f"{fault}. Sides that fit: {', '.join(sides)}") from None


def weight_bytes(encoder: Encoder) -> int:
    """About how much memory the weights of ``encoder`` take, before they are loaded."""
    file = encoder.weights.file
    if file is not None and file.is_dir():
        return sum(one.stat().st_size for one in file.iterdir() if one.is_file())
    if file is not None and file.is_file():
        return file.stat().st_size
    backbone = backbones.find_backbone(encoder.backbone)
    if backbone.origin not in PROVIDERS or not isinstance(
        encoder.preprocess, Preprocess
    ):
        return 0
    network = networks.hollow(backbone, encoder.preprocess.crop)
    return sum(p.numel() * p.element_size() for p in network.parameters())


def _content(encoder: Encoder) -> tuple[Path, bytes]:
    """The file of the weights, and what is in it."""
    file = encoder.weights.file
    if file is None or not file.exists():
        raise WeightsError(
            f"the weights {encoder.label} are no longer at {file}, and the store does "
            "not keep them; run again with weights=FILE, wherever the file is now"
        )
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != encoder.weights.sha256:
        raise WeightsError(f"{file} is no longer what {encoder.label} was; run again")
    return file, data


def _loaded(encoder: Encoder, backbone: Backbone) -> nn.Module:
    """The network of an encoder whose inputs are no images.

    Raises:
        WeightsError: it changed since it was resolved.
    """
    embedder, weights = NON_IMAGE_ENCODERS[backbone.origin], encoder.weights
    # Where it lay then, whatever of that name may lie elsewhere now.
    backbone = replace(backbone, weights=str(weights.file or backbone.weights))
    found = embedder.identify(backbone, weights.seed, file_sha256)
    if (found.sha256, found.input) != (weights.sha256, encoder.preprocess):
        raise WeightsError(
            f"{weights.file} is no longer what {encoder.label} was; run again"
        )
    return embedder.load(backbone, found.place, found.input, weights.seed)

"""From a JPEG to the packed embedding: what torchvision's own preset and model give."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn
from torchvision.models import get_model, get_model_weights

from tests.likely_weights import likely_state
from tl_pipeline.config.specs import EncoderSpec
from tl_pipeline.embedding.forward import Forward
from tl_pipeline.encoders import resolution
from tl_pipeline.encoders.backbones import BACKBONES
from tl_pipeline.inputs import pixels
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.store.artifacts import Store

pytestmark = pytest.mark.usefixtures("one_thread")
# A family each, and the part of its classifier that the default layer stands before.
ALWAYS = {
    "squeezenet1_1": "classifier",
    "resnet18": "fc",
    "mobilenet_v3_small": "classifier",
}
MORE = {
    "shufflenet_v2_x0_5": "fc",
    "densenet121": "classifier",
    "efficientnet_b0": "classifier",
    "mnasnet0_5": "classifier",
    "regnet_y_400mf": "fc",
    "swin_t": "head",
    "vit_b_32": "heads",
}
NETWORKS = [
    *ALWAYS.items(),
    *(pytest.param(*row, marks=pytest.mark.exhaustive) for row in MORE.items()),
]


def jpegs() -> list[bytes]:
    """Upright and lying, larger and smaller than the network's input."""
    found = []
    for photo, size in zip(load_sample_images().images * 2, SIZES, strict=True):
        kept = io.BytesIO()
        Image.fromarray(photo).resize(size).save(kept, "JPEG", quality=90)
        found.append(kept.getvalue())
    return found


SIZES = [(500, 375), (333, 480), (641, 427), (180, 200)]


@pytest.mark.parametrize(("name", "classifier"), NETWORKS)
def test_a_jpeg_is_embedded_as_by_the_preset_and_the_model(
    store: Store, tmp_path: Path, name: str, classifier: str
):
    state = likely_state(BACKBONES[name], 224)
    torch.save(state, tmp_path / "weights.pth")
    spec = EncoderSpec(
        backbone=name, weights=str(tmp_path / "weights.pth"), precision="fp32"
    )
    encoder = resolution.resolve(spec, store)
    how = encoder.preprocess
    assert isinstance(how, Preprocess)
    rows = [pixels.pixels(data, how) for data in jpegs()]
    (found,) = Forward([encoder])(pixels.stack(rows))

    preset = get_model_weights(name)[BACKBONES[name].weights].transforms()
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in jpegs()]
    network = get_model(name)
    network.load_state_dict(state)
    setattr(network, classifier, nn.Identity())
    with torch.inference_mode():
        expected = network.eval()(torch.stack([preset(image) for image in images]))
    expected = expected.numpy()
    if name.startswith("squeezenet"):  # its classifier pools what the layer gives
        expected = expected.reshape(len(rows), found.shape[1], -1).mean(axis=2)
    # Two in a thousand pixels are rounded the other way, by 1/255.
    assert np.abs(found - expected).max() <= 5e-3 * np.abs(expected).max()

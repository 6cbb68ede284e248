"""Real weights on real photos reach what plain torchvision and scikit-learn reach."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import SqueezeNet1_0_Weights

from tl_pipeline.config.specs import EncoderSpec, HeadSpec, RunSpec
from tl_pipeline.encoders import loading, resolution
from tl_pipeline.inputs.pixels import pixels
from tl_pipeline.pipeline import wiring
from tl_pipeline.store.artifacts import Store

WEIGHTS = "squeezenet1_0-imagenet-deepcompression.pth"


def test_ants_and_bees_are_told_apart(shared: Path, store: Store):
    """Layer, weights, preprocessing, split and head are right end to end.

    At least 0.92 of 153 photos; torchvision and scikit-learn by hand reach 0.94.
    """
    weights = str(shared / "weights" / WEIGHTS)
    spec = RunSpec(
        dataset=str(shared / "data" / "hymenoptera"),
        backbones=(EncoderSpec(backbone="squeezenet1_0", weights=weights),),
        heads=(HeadSpec(name="logistic"),),
        controls=False,
    )
    record = wiring.run(wiring.prepare(spec, store))
    assert (record.images, record.quarantined) == (398, 0)
    assert record.best.test_images == 153
    assert record.best.test.value >= 0.92


@pytest.mark.exhaustive  # embeddings: above, and embedding/test_against_torchvision.py
@pytest.mark.parametrize(
    ("folder", "called", "photos", "right"),
    [("ants", "ant", 192, 116), ("bees", "bee", 204, 140)],
)
def test_squeezenet_calls_ants_ants_and_bees_bees(
    shared: Path, store: Store, folder: str, called: str, photos: int, right: int
):
    """By its own 1,000 classes, so weights, layers and preprocessing fit one another.

    Its last node is a layer like any other; two files more or less may fall otherwise.
    """
    spec = EncoderSpec(
        backbone="squeezenet1_0",
        layer="node:flatten",
        weights=str(shared / "weights" / WEIGHTS),
    )
    encoder = resolution.resolve(spec, store)
    network, how = loading.load(encoder), encoder.preprocess
    mean, std = (torch.tensor(v).reshape(1, -1, 1, 1) for v in (how.mean, how.std))
    names = SqueezeNet1_0_Weights.IMAGENET1K_V1.meta["categories"]
    files = sorted((shared / "data" / "hymenoptera").glob(f"*/{folder}/*.jpg"))
    assert len(files) == photos
    values = np.stack([pixels(file.read_bytes(), how) for file in files])
    with torch.inference_mode():
        batches = torch.from_numpy(values).split(32)
        scores = [network((batch / 255 - mean) / std) for batch in batches]
    assert abs((torch.cat(scores).argmax(1) == names.index(called)).sum() - right) <= 2

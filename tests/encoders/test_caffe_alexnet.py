"""Caffe's AlexNet from a dictionary of arrays: read safely, computed by hand."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tl_pipeline.config.specs import EncoderSpec
from tl_pipeline.encoders import loading, resolution
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.errors import WeightsError
from tl_pipeline.store.artifacts import Store

pytestmark = pytest.mark.usefixtures("one_thread")
Arrays = dict[str, list[np.ndarray]]
SHAPES = {
    "conv1": (11, 11, 3, 96),
    "conv2": (5, 5, 48, 256),
    "conv3": (3, 3, 256, 384),
    "conv4": (3, 3, 192, 384),
    "conv5": (3, 3, 192, 256),
    "fc6": (9216, 4096),
    "fc7": (4096, 4096),
    "fc8": (4096, 5),
}
MEAN_BGR = (104.00698793, 116.66876762, 122.67891434)


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    chance = np.random.default_rng(0)
    return {
        name: [
            (chance.random(shape, np.float32) - 0.48)
            / np.float32(np.prod(shape[:-1]) ** 0.5),
            chance.random(shape[-1], np.float32) * 0.1,
        ]
        for name, shape in SHAPES.items()
    }


@pytest.fixture(scope="module")
def file(arrays: Arrays, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("caffe") / "bvlc-alexnet.npy"
    np.save(file, arrays, allow_pickle=True)
    return file


def resolved(store: Store, file: Path, layer: str = "fc7") -> Encoder:
    spec = EncoderSpec(backbone="caffe_alexnet", layer=layer, weights=str(file))
    return resolution.resolve(spec, store)


def convolved(maps: np.ndarray, weight: np.ndarray, bias: np.ndarray, **how: Any):
    """(n, height, width, in) by (height, width, in / groups, out), group by group."""
    groups = maps.shape[3] // weight.shape[2]
    made = []
    for one, part in zip(
        np.split(maps, groups, axis=3), np.split(weight, groups, axis=3), strict=True
    ):
        kernel = torch.from_numpy(part).permute(3, 2, 0, 1)
        values = torch.from_numpy(one).permute(0, 3, 1, 2)
        made.append(functional.conv2d(values, kernel, **how).permute(0, 2, 3, 1))
    return np.maximum(torch.cat(made, 3).numpy() + bias, 0)


def normalised(maps: np.ndarray) -> np.ndarray:
    """Krizhevsky et al., section 3.3: over five neighbouring channels."""
    squares = np.pad(maps**2, ((0, 0), (0, 0), (0, 0), (2, 2)))
    sums = sum(squares[..., at : at + maps.shape[3]] for at in range(5))
    return maps / (1 + 1e-4 / 5 * sums) ** 0.75


def pooled(maps: np.ndarray) -> np.ndarray:
    values = torch.from_numpy(maps).permute(0, 3, 1, 2)
    return functional.max_pool2d(values, 3, 2).permute(0, 2, 3, 1).numpy()


def by_hand(pixels: np.ndarray, arrays: Arrays) -> dict[str, np.ndarray]:
    """Of RGB ``pixels`` (n, 227, 227, 3) in [0, 255]."""
    maps = (pixels[..., ::-1] - np.float32(MEAN_BGR)).astype(np.float32)
    maps = pooled(normalised(convolved(maps, *arrays["conv1"], stride=4)))
    maps = pooled(normalised(convolved(maps, *arrays["conv2"], padding=2)))
    maps = convolved(maps, *arrays["conv3"], padding=1)
    maps = convolved(maps, *arrays["conv4"], padding=1)
    maps = pooled(convolved(maps, *arrays["conv5"], padding=1))
    values = {"pool5": maps.transpose(0, 3, 1, 2).reshape(len(maps), -1)}
    flat = maps.reshape(len(maps), -1)
    for layer in ("fc6", "fc7"):
        weight, bias = arrays[layer]
        flat = values[layer] = np.maximum(flat @ weight + bias, 0)
    return values


def test_the_arrays_compute_what_they_did(store: Store, arrays: Arrays, file: Path):
    encoders = [resolved(store, file, layer) for layer in ("pool5", "fc6", "fc7")]
    how = encoders[0].preprocess
    assert (how.resize, how.crop, how.squash) == (256, 227, True)
    chance = np.random.default_rng(1)
    pixels = chance.integers(0, 256, (2, 227, 227, 3)).astype(np.float32)
    mean, std = torch.tensor(how.mean), torch.tensor(how.std)
    batch = ((torch.from_numpy(pixels) / 255 - mean) / std).permute(0, 3, 1, 2)
    expected = by_hand(pixels, arrays)
    found = loading.load_together(encoders)(batch)
    for encoder, vectors in zip(encoders, found, strict=True):
        right = expected[encoder.layer]
        error = np.abs(vectors.numpy() - right).max() / np.abs(right).max()
        assert error < 1e-4, encoder.layer


class Attack:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_code_in_a_dictionary_of_arrays_does_not_run(store: Store, tmp_path: Path):
    file, marker = tmp_path / "bad.npy", tmp_path / "ran"
    np.save(file, {"conv1": [Attack(marker)]}, allow_pickle=True)
    with pytest.raises(
        WeightsError, match=r"bad\.npy: holds an object of posix\.system"
    ):
        loading.load(resolved(store, file))
    assert not marker.exists()


@pytest.mark.parametrize(
    "value", [np.zeros(3), {"conv1": 3}, [1, 2], {"conv1": [np.zeros(2)]}]
)
def test_other_arrays_are_no_weights(store: Store, tmp_path: Path, value: Any):
    file = tmp_path / "other.npy"
    np.save(file, value, allow_pickle=True)
    with pytest.raises(
        WeightsError, match=r"other\.npy: holds arrays of numpy, but no"
    ):
        loading.load(resolved(store, file))


def test_another_network_says_whose_arrays_they_are(store: Store, file: Path):
    spec = EncoderSpec(backbone="alexnet", weights=str(file))
    with pytest.raises(WeightsError, match="Caffe's AlexNet is the backbone caffe_al"):
        loading.load(resolution.resolve(spec, store))


def test_nothing_is_downloaded(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match="no published weights BVLC; give weights="):
        resolution.resolve(EncoderSpec(backbone="caffe_alexnet"), store)
    twin = EncoderSpec(backbone="caffe_alexnet", weights="random:0")
    assert loading.load(resolution.resolve(twin, store)).cut.widths == (4096,)

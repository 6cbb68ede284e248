"""The forward pass around the network: memory that is short, values that are not."""

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import normalize

from tl_pipeline.embedding import devices
from tl_pipeline.embedding.forward import _HalvedWhenOutOfMemory, _Normalise
from tl_pipeline.errors import DeviceError
from tl_pipeline.inputs.images import Preprocess


class Small:
    """Doubles batches of at most ``most`` numbers; larger ones do not fit."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.sizes: list[int] = []

    def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
        self.sizes.append(len(batch))
        if len(batch) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return [batch * 2, batch * 3]


def test_a_batch_that_does_not_fit_is_halved_until_it_does():
    fit, compute = _HalvedWhenOutOfMemory(devices.CPU), Small(7)
    twice, thrice = fit(compute, np.arange(32))
    assert np.array_equal(twice, 2 * np.arange(32))
    assert np.array_equal(thrice, 3 * np.arange(32))
    assert compute.sizes[:4] == [32, 16, 8, 4]
    compute.sizes.clear()
    fit(compute, np.arange(32))
    assert max(compute.sizes) <= 7  # what did not fit is not tried at once again


def test_when_memory_is_free_again_batches_grow_back():
    fit, compute = _HalvedWhenOutOfMemory(devices.CPU), Small(8)
    fit(compute, np.arange(32))
    compute.most = 32
    for _ in range(40):
        fit(compute, np.arange(32))
    compute.sizes.clear()
    fit(compute, np.arange(32))
    assert compute.sizes == [32]


def test_one_image_that_does_not_fit_is_an_error():
    with pytest.raises(torch.cuda.OutOfMemoryError):
        _HalvedWhenOutOfMemory(devices.CPU)(Small(0), np.arange(4))


@pytest.fixture
def broken_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """A machine with a GPU whose driver does not answer."""
    there = tmp_path / "nvidia0"
    there.touch()
    monkeypatch.setattr(devices, "_NVIDIA", there)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def fail() -> None:
        raise RuntimeError("No CUDA GPUs are available")

    monkeypatch.setattr(torch.cuda, "init", fail)


@pytest.mark.usefixtures("broken_gpu")
def test_a_gpu_that_fails_is_an_error_and_not_a_run_on_the_processor(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(DeviceError, match=r"No CUDA GPUs .* CUDA_VISIBLE_DEVICES="):
        devices.devices()


@pytest.mark.usefixtures("broken_gpu")
def test_a_gpu_that_is_hidden_is_not_missed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.devices() == [devices.CPU]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_pixels_are_normalised_as_by_the_preset_to_the_last_bit(kind: torch.dtype):
    how = Preprocess(resize=40, crop=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1))
    batch = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    found = _Normalise(how, devices.CPU, kind)(batch)
    pixels = torch.from_numpy(batch).float() / 255
    expected = normalize(pixels, list(how.mean), list(how.std)).to(kind)
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_what_makes_float32_exact_leaves_torch_able_to_export():
    """torch.export reads the older switches, which may not contradict the newer."""
    devices.exact_float32()
    assert torch.backends.cudnn.allow_tf32 is False
    assert torch.backends.cuda.matmul.allow_tf32 is False
    exported = torch.export.export(torch.nn.Conv2d(1, 1, 3), (torch.ones(1, 1, 5, 5),))
    assert exported.module()(torch.ones(1, 1, 5, 5)).shape == (1, 1, 3, 3)

"""The forward pass around the network: memory that is short, values that are not."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from torchvision.transforms.functional import normalize

from tl_pipeline.embedding import devices, process, workers
from tl_pipeline.embedding.forward import _HalvedWhenOutOfMemory, _Normalise
from tl_pipeline.errors import DeviceError, InvalidSpec
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


@pytest.fixture
def switches() -> Iterator[list[Any]]:
    """The switches of TensorFloat-32, as a host program may have set them."""
    found = devices._switches()
    before = [one.fp32_precision for one in found]
    for one in found:
        one.fp32_precision = "tf32"
    yield found
    for one, value in zip(found, before, strict=True):
        one.fp32_precision = value


def test_float32_is_exact_while_any_thread_needs_it_and_then_as_it_was(
    switches: list[Any],
):
    gpu = torch.device("cuda", 0)

    def found() -> set[str]:
        return {one.fp32_precision for one in switches}

    with devices.exact_float32(devices.CPU):
        assert found() == {"tf32"}
    with devices.exact_float32(gpu):
        with devices.exact_float32(gpu):
            assert found() == {"ieee"}
        assert found() == {"ieee"}
    assert found() == {"tf32"}
    with pytest.raises(ValueError, match="fault"), devices.exact_float32(gpu):
        raise ValueError("fault")
    assert found() == {"tf32"}


def test_only_a_process_of_our_own_keeps_freed_memory(monkeypatch: pytest.MonkeyPatch):
    done: list[str] = []
    monkeypatch.setattr(process, "_keep_freed_memory", lambda: done.append("kept"))
    monkeypatch.setattr(process._Process, "own", False)
    process.keep_freed_memory()
    assert done == []
    process.claim()
    process.keep_freed_memory()
    assert done == ["kept"]


def test_cores_are_those_that_affinity_and_containers_leave(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.delenv("TL_CORES", raising=False)
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from tl_pipeline.embedding.process import cores; print(cores())"
    )
    told = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert told == "1\n"
    monkeypatch.setattr(joblib, "cpu_count", lambda: 3)
    assert process.cores() == 3
    monkeypatch.setenv("TL_CORES", "5")
    assert process.cores() == 5
    for wrong in ("0", "all", "-1"):
        monkeypatch.setenv("TL_CORES", wrong)
        with pytest.raises(InvalidSpec, match="no number of cores"):
            process.cores()


@pytest.mark.parametrize("available", range(1, 33))
def test_no_core_is_left_without_a_batch(available: int):
    counts = workers.threads_of_batches(available)
    assert sum(counts) == available
    assert max(counts) - min(counts) <= 1
    assert len(counts) == (available if available < 8 else 4)


@pytest.mark.parametrize(
    ("available", "number", "decode"), [(1, 1, True), (7, 7, True), (9, 4, False)]
)
def test_threads_that_drive_a_processor_share_its_cores(
    available: int, number: int, decode: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TL_CORES", str(available))
    networks: Any = [[SimpleNamespace(device=devices.CPU)]]
    threads = workers.NetworkThreads(networks)
    assert (threads.number, threads.decode) == (number, decode)
    barrier, counts = threading.Barrier(number), list[int]()

    def drive(_: int) -> None:
        barrier.wait()
        counts.append(torch.get_num_threads())
        assert threads.networks is networks[0]

    with workers.pool("test", number, threads.begin) as pool:
        list(pool.map(drive, range(number)))
    assert sorted(counts) == sorted(workers.threads_of_batches(available))

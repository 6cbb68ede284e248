"""The loop that feeds a GPU, on a machine without one: waits stand in for the GPU.

``.venv/bin/python benchmarks/gpu_feed.py`` has the engine embed photos, read by threads
and read by processes, in turn. What would run on the GPU waits as long as an H200 took
by RESULTS.md, divided by ``--slower``, and holds no lock meanwhile; so this tells what
the loop itself can feed, and what it costs the process that everything else waits for.
"""

import argparse
import resource
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from photos import files, photos
from results import machine, processor, record

from tl_pipeline.config.datasets import ImageFolderSpec
from tl_pipeline.config.specs import EncoderSpec
from tl_pipeline.data.identity import image_id
from tl_pipeline.embedding import engine
from tl_pipeline.embedding.devices import CPU, keep_freed_memory
from tl_pipeline.embedding.gpu import batch_loader, nvjpeg
from tl_pipeline.embedding.gpu.batch_loader import HardwareFeeder
from tl_pipeline.encoders import resolution
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.progress import track
from tl_pipeline.sources.image_folder import ImageFolder
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder

CUDA = torch.device("cuda", 0)
WISH = "mobilenet_v3_small:weights=random:0,precision=bf16"
WAYS = {"threads": 1 << 60, "processes": 0}  # images from which processes read


class Gpu(NamedTuple):
    """Images/s of the hardware decoder and of a network, and the width of that."""

    decode: float
    forward: float
    width: int


GPUS = {
    "none at all": Gpu(float("inf"), float("inf"), 1024),
    "mobilenet_v3_small": Gpu(23_465, 63_024, 1024),
    "resnet50": Gpu(22_428, 12_542, 2048),
    "vgg16": Gpu(20_522, 8_149, 4096),
}


class Decoder:
    """As HardwareJpegs and Resizer: waits, and gives pixels of nothing."""

    device = CPU
    _one = threading.Lock()

    def __init__(self, rate: float) -> None:
        self._rate = rate

    def __call__(self, encoded: Sequence[Any], sizes: Sequence[Any]) -> torch.Tensor:
        """Decode."""
        # what the real one makes of its arguments in Python
        assert all(nvjpeg._place(data) for data in encoded)  # noqa: SLF001
        with self._one:
            time.sleep(len(sizes) / self._rate)
        return torch.empty((len(sizes), 3, 8, 8), dtype=torch.uint8)


class Network:
    """As Forward: waits, and gives numbers of nothing."""

    device, bytes = CUDA, 0

    def __init__(self, encoder: Encoder, gpu: Gpu) -> None:
        self.encoders, self._rate = (encoder,), gpu.forward
        self._found = np.random.default_rng(0).random((128, gpu.width), np.float32)
        self._one = threading.Lock()

    def record(self, *_: Any) -> None:
        """There is nothing to record."""

    def __call__(self, batch: torch.Tensor, clock: Any) -> list[np.ndarray]:
        """Embed."""
        started = time.perf_counter()
        with self._one:
            time.sleep(len(batch) / self._rate)
        clock.add("forward", time.perf_counter() - started, self.encoders[0].key)
        return [self._found[: len(batch)]]


def stand_in(gpu: Gpu, threads: int) -> None:
    """Let the engine believe in a GPU."""
    every = frozenset({(1, 1), (1, 2), (2, 2)})
    decoder = Decoder(gpu.decode)
    keep_freed_memory()
    engine.devices = lambda: [CUDA]
    engine.cores = lambda: threads
    nvjpeg.judge = lambda _: (every, "")
    HardwareFeeder._mine = lambda _: (decoder, [lambda images, _: images])  # noqa: SLF001
    batch_loader.can_resize = lambda *_: True
    for name in ("set_device", "set_stream", "Stream"):
        setattr(torch.cuda, name, lambda _: None)


class Found(NamedTuple):
    """Images/s once warm; of our own process: us of processor and waits an image."""

    rate: float
    cost: float
    waits: float


def measure(folder: Path, images: Sequence[tuple[str, str]], gpu: Gpu) -> Found:
    """Embed ``images`` into a new store."""
    read = ImageFolder(ImageFolderSpec(name="photos", path=folder)).read
    with tempfile.TemporaryDirectory() as place:
        store = Store.open(Path(place) / "store")
        store.create()
        encoder = resolution.resolve(EncoderSpec.parse(WISH), store)
        job = engine.Job(encoder, EmbeddingFolder(store, encoder.key))
        before = resource.getrusage(resource.RUSAGE_SELF)
        with track("feed", len(images)) as progress:
            load: Any = lambda *_: Network(encoder, gpu)  # noqa: E731
            (done,) = engine.embed([job], images, read, 2048, progress, load)
        after = resource.getrusage(resource.RUSAGE_SELF)
    used, waits = (
        sum(getattr(after, name) - getattr(before, name) for name in names)
        for names in (("ru_utime", "ru_stime"), ("ru_nvcsw", "ru_nivcsw"))
    )
    each = done.seconds_per_image or float("nan")
    return Found(1 / each, used / done.images * 1e6, waits / done.images)


def main() -> None:
    """Measure and record."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--photos", type=int, default=2880)
    arguments.add_argument("--times", type=int, default=8, help="each photo is read")
    arguments.add_argument("--threads", type=int, nargs="+", default=[2, 16])
    arguments.add_argument(
        "--slower", type=float, default=4, help="the GPU, by so much"
    )
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    asked = arguments.parse_args()
    folder = photos(asked.folder, asked.photos)
    paths = files(folder)
    images = [(image_id(path.read_bytes()), str(path)) for path in paths] * asked.times
    found: defaultdict[tuple[str, int, str], list[Found]] = defaultdict(list)
    for _ in range(asked.rounds):
        for name, gpu in GPUS.items():
            slow = Gpu(gpu.decode / asked.slower, gpu.forward / asked.slower, gpu.width)
            for threads in asked.threads:
                stand_in(slow, threads)
                for way, least in WAYS.items():
                    engine._VERY_LONG = least  # noqa: SLF001
                    one = measure(folder, images, slow)
                    found[name, threads, way].append(one)
                    print(name, threads, way, one, flush=True)
    rows: list[str] = []
    for (name, threads, way), some in found.items():
        rate, cost, waits = map(statistics.median, zip(*some, strict=True))
        limit = min(GPUS[name][:2]) / asked.slower
        share = "" if limit == float("inf") else f"{rate / limit:.2f}"
        rows.append(
            f"| {name} | {threads} {way} | {rate:,.0f} | {share} | {cost:.0f} "
            f"| {waits:.1f} |"
        )
    record(
        "Feeding a GPU that is not there",
        "`python benchmarks/gpu_feed.py`, "
        f"{asked.rounds} rounds in turn, medians; {machine(('torch', 'numpy'))}; "
        f"{processor()}.\n\n"
        f"{len(images):,} reads of {asked.photos:,} JPEGs of 500x375.\n"
        'The GPU is a wait: as long as an H200 took ("Embedding photos on a GPU"), '
        f"times {asked.slower:g}.\nRates are once warm; processor and switches from "
        "one thread to another are of the process that drives the GPU.\n\n"
        "| GPU of | read by | images/s | of its limit | us of processor an image "
        "| switches an image |\n|---|---|---|---|---|---|\n" + "\n".join(rows),
    )


if __name__ == "__main__":
    main()

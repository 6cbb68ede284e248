"""Embedding on a processor beside its limits, all in one process and in turn.

``.venv/bin/python benchmarks/embed_paired.py`` measures, round by round: the forward
pass alone, decoding alone, and the engine from JPEG files to Parquet, over the same
photos with the network loaded before. Nothing is faster than the sum of the two. Shared
machines change their pace within minutes, so embed.py, whose processes follow one
another, tells the limit only roughly; here what is compared is seconds apart.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import embed_ours
import torch
from embed_networks import NETWORKS, Network, weights_file
from photos import files, photos
from results import machine, processor, record

from tl_pipeline.config.datasets import ImageFolderSpec
from tl_pipeline.data.identity import image_id
from tl_pipeline.embedding import engine
from tl_pipeline.embedding.forward import BATCH, Forward
from tl_pipeline.embedding.process import cores
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.inputs import pixels
from tl_pipeline.progress import track
from tl_pipeline.sources.image_folder import ImageFolder
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder

# So many photos that a round of a network takes some seconds.
PHOTOS = {"resnet18": 512, "resnet50": 256, "mobilenet_v3_small": 1536, "vgg16": 128}


class Spent(NamedTuple):
    """Seconds by the clock, and of all cores."""

    wall: float
    processor: float


def spent(work: Callable[[], Any]) -> Spent:
    """What ``work`` took."""
    used, started = _used(), time.perf_counter()
    work()
    return Spent(time.perf_counter() - started, _used() - used)


def _used() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Paired:
    """One network over the photos of a folder."""

    def __init__(self, encoder: Encoder, folder: Path, paths: Sequence[Path]) -> None:
        self._encoder, self._paths = encoder, paths
        self._forward = Forward([encoder])
        self._images = [(image_id(path.read_bytes()), str(path)) for path in paths]
        source = ImageFolder(ImageFolderSpec(name="photos", path=folder))
        self._read = source.read
        self._batch = pixels.stack(self._decoded(paths[: BATCH["cpu"]]))

    def forward(self) -> None:
        """The forward pass alone, each batch on one core."""
        self._on_every_core(lambda _: self._forward(self._batch))

    def decode(self) -> None:
        """Reading and decoding alone."""
        self._on_every_core(self._decoded)

    def ours(self) -> None:
        """From files to Parquet in a new store."""
        with tempfile.TemporaryDirectory() as place:
            store = Store.open(Path(place) / "store")
            store.create()
            job = engine.Job(self._encoder, EmbeddingFolder(store, self._encoder.key))
            with track("paired", len(self._images)) as progress:
                load: Any = lambda *_: self._forward  # noqa: E731
                engine.embed([job], self._images, self._read, 2048, progress, load)

    def _decoded(self, paths: Iterable[Path]) -> list[Any]:
        how: Any = self._encoder.preprocess
        return [pixels.pixels(path.read_bytes(), how) for path in paths]

    def _on_every_core(self, work: Callable[[Sequence[Path]], Any]) -> None:
        starts = range(0, len(self._paths), BATCH["cpu"])
        batches = [self._paths[at : at + BATCH["cpu"]] for at in starts]
        single = lambda: torch.set_num_threads(1)  # noqa: E731
        with ThreadPoolExecutor(cores(), initializer=single) as pool:
            for _ in pool.map(work, batches):
                pass


def measure(place: Path, network: Network, precision: str, rounds: int) -> str:
    """A row of the table."""
    folder = photos(place, PHOTOS[network.name])
    weights = weights_file(place, network, files(folder))
    text = embed_ours.short(network.name, network.layer, weights, precision)
    encoder = embed_ours.find(text, place / "known")
    paired = Paired(encoder, folder, files(folder))
    works = (paired.forward, paired.decode, paired.ours)
    for work in works:
        work()
    found: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        forward, decode, ours = map(spent, works)
        count = PHOTOS[network.name]
        found["forward"].append(count / forward.wall)
        found["decode"].append(count / decode.wall)
        found["ours"].append(count / ours.wall)
        found["share"].append((forward.wall + decode.wall) / ours.wall)
        found["of processor"].append(
            (forward.processor + decode.processor) / ours.processor
        )
    middle = {name: statistics.median(some) for name, some in found.items()}
    print(network.name, middle, flush=True)
    shares = found["share"]
    return (
        f"| {network.name}/{network.layer} | {PHOTOS[network.name]:,} "
        f"| {middle['ours']:,.1f} | {middle['forward']:,.1f} | {middle['decode']:,.0f} "
        f"| {middle['share']:.2f} ({min(shares):.2f}-{max(shares):.2f}) "
        f"| {middle['of processor']:.2f} |"
    )


def main() -> None:
    """Measure and record."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--networks", nargs="+", choices=PHOTOS, default=PHOTOS)
    arguments.add_argument("--precision", default="bf16")
    arguments.add_argument("--rounds", type=int, default=11)
    arguments.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    asked = arguments.parse_args()
    rows = [
        measure(asked.folder, NETWORKS[name], asked.precision, asked.rounds)
        for name in asked.networks
    ]
    heads = ["", "photos", "images/s", "forward alone F", "decoding alone D"]
    heads += ["of 1/(1/F + 1/D)", "by processor time"]
    record(
        "Embedding photos on a CPU, beside its limits",
        f"`python benchmarks/embed_paired.py`, {asked.precision}, {asked.rounds} "
        "rounds in turn in one process, medians; "
        f"{machine(('torch', 'numpy', 'pyarrow'))}; {processor()}.\n\n"
        "JPEGs of 500x375 to Parquet, the network loaded before; the shares of the "
        "limit are of each round.\n\n"
        + "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *rows]),
    )


if __name__ == "__main__":
    main()

"""Embedding photos on a GPU, beside its limits and beside DataLoader scripts.

``python benchmarks/embed_gpu.py`` measures in one process, in turn: the forward pass
alone, decoding and resizing alone, our stage embed from JPEG files to Parquet, and a
DataLoader with as many workers as there are cores, in fp32 and in bf16. Nothing is
slower than the slower of the two alone. Images/s are of the steady part: what follows
the first fifth of the images; start-up is not compared here.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import embed_ours
import embed_peers
import numpy as np
import torch
from embed import PACKAGES, SAMPLE
from embed_networks import NETWORKS, Network, weights_file
from embed_table import cosines
from photos import files, photos
from results import machine, processor, record
from timeline import STARTED, Timeline, pace, vectors

from tl_pipeline.embedding.forward import BATCH, Forward
from tl_pipeline.embedding.gpu import nvjpeg
from tl_pipeline.embedding.gpu.nvjpeg import NvjpegDecoder
from tl_pipeline.embedding.workers import PER_GPU
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.inputs import nvjpeg_support
from tl_pipeline.inputs.resizing import Resizer

DEVICE = torch.device("cuda", 0)
_SOME = 2048  # photos whose decoding is measured
_PEERS = ("dataloader", "dataloader-bf16")


def rate(work: Callable[[Any], Any], given: Sequence[Any], seconds: float) -> float:
    """Images/s of threads that do ``work`` of batches, on a stream each."""
    torch.cuda.synchronize()
    with ThreadPoolExecutor(PER_GPU, initializer=_own_stream) as pool:
        list(pool.map(work, given))
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            done += sum(pool.map(work, given))
        return done / (time.perf_counter() - started)


def _own_stream() -> None:
    torch.cuda.set_stream(torch.cuda.Stream(DEVICE))


def forward_alone(encoder: Encoder, seconds: float) -> float:
    """From pixels on the GPU to embeddings in memory."""
    forward = Forward([encoder], DEVICE)
    forward.record(BATCH["cuda"], PER_GPU)
    shape = (BATCH["cuda"], 3, encoder.preprocess.crop, encoder.preprocess.crop)
    batch = torch.randint(0, 256, shape, dtype=torch.uint8, device=DEVICE)
    return rate(lambda one: len(forward(one)[0]), [batch] * 4 * PER_GPU, seconds)


def decode_alone(encoder: Encoder, some: Sequence[bytes], seconds: float) -> float:
    """From bytes in memory to pixels, by the hardware of the GPU."""
    samplings, why = nvjpeg.judge(DEVICE)
    if why:
        return 0.0
    sizes = [nvjpeg_support.size(data, samplings) for data in some]
    mine = threading.local()

    def work(start: int) -> int:
        if not hasattr(mine, "jpegs"):
            mine.jpegs = NvjpegDecoder(DEVICE)
            mine.resizer = Resizer(encoder.preprocess, DEVICE)
        part = slice(start, start + BATCH["cuda"])
        mine.resizer(mine.jpegs(some[part], sizes[part]), sizes[part])
        torch.cuda.current_stream().synchronize()
        return len(some[part])

    return rate(work, range(0, len(some), BATCH["cuda"]), seconds)


def processors_alone(encoder: Encoder, paths: Sequence[Path], seconds: float) -> float:
    """From files to pixels, by threads on every core."""
    decode = embed_ours.decoding(encoder)
    decode(paths[: len(paths) // 4])
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        done += len(decode(paths))
    return done / (time.perf_counter() - started)


def ours(folder: Path, text: str, out: Path) -> float:
    """Images/s of a run into a new store, which stays."""
    store = out / "store"
    shutil.rmtree(store, ignore_errors=True)
    timeline, started = Timeline(), time.time()
    os.environ[STARTED] = str(started)
    embed_ours.run(folder, store, text, timeline)
    timeline.save(out, time.time() - started)
    return pace(json.loads((out / "report.json").read_text())).rate


def peer(name: str, job: embed_peers.Job, out: Path) -> float:
    """Images/s of a script."""
    started = time.time()
    os.environ[STARTED] = str(started)
    embed_peers.PEERS[name].embed(job)
    job.timeline.save(out, time.time() - started)
    return pace(json.loads((out / "report.json").read_text())).rate


@dataclass
class Trial:
    """A network, and images/s by what was measured."""

    network: Network
    weights: Path
    photos: list[Path]
    found: defaultdict[str, list[float]]
    alike: np.ndarray

    def middle(self, name: str) -> float:
        """The median."""
        return statistics.median(self.found[name])

    def row(self, peers: Sequence[str]) -> str:
        """Of the table."""
        speed, found = self.middle("ours"), self.found["ours"]
        decode = max(self.middle("decode"), self.middle("processors"))
        cells = [
            f"{self.network.name}/{self.network.layer}",
            f"{speed:,.0f} ({min(found):,.0f}-{max(found):,.0f})",
            *(f"{self.middle(at):,.0f}" for at in ("forward", "decode", "processors")),
            f"{speed / min(self.middle('forward'), decode):.2f}",
            *(f"{self.middle(name):,.0f}" for name in peers),
            *(f"{speed / self.middle(name):.1f}" for name in peers),
            f"{self.alike.mean():.5f} / {self.alike.min():.5f}",
        ]
        return f"| {' | '.join(cells)} |"


def measure(asked: argparse.Namespace, place: Path, network: Network) -> Trial:
    """Ours and the limits."""
    folder = photos(place, asked.photos)
    paths = files(folder)
    some = [path.read_bytes() for path in paths[:_SOME]]
    weights = weights_file(place, network, paths)
    text = embed_ours.short(network.name, network.layer, weights, "bf16")
    encoder = embed_ours.find(text, place / "known")
    found: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(asked.rounds):
        found["forward"].append(forward_alone(encoder, asked.seconds))
        found["decode"].append(decode_alone(encoder, some, asked.seconds))
        found["ours"].append(ours(folder, text, place))
        found["processors"].append(
            processors_alone(encoder, paths[:_SOME], asked.seconds)
        )
        print(network.name, {k: round(v[-1]) for k, v in found.items()}, flush=True)
    os.environ[STARTED] = str(time.time())
    names, exact = embed_peers.reference(
        embed_peers.Job(network, weights, paths[:SAMPLE])
    )
    embed_ours.keep_vectors(folder, place / "store", text, place)
    made = vectors(place)
    expected = dict(zip(names, np.asarray(exact), strict=True))
    alike = cosines({name: made[name] for name in names}, expected)
    trial = Trial(network, weights, paths, found, alike)
    print(trial.row(()), flush=True)
    return trial


def main() -> None:
    """Measure and record."""
    arguments = argparse.ArgumentParser(description=__doc__)
    networks = ["resnet50", "vgg16", "mobilenet_v3_small"]
    arguments.add_argument("--networks", nargs="+", choices=NETWORKS, default=networks)
    arguments.add_argument("--peers", nargs="*", default=_PEERS, choices=_PEERS)
    arguments.add_argument("--photos", type=int, default=32768)
    arguments.add_argument("--photos-of-peers", type=int, default=8192)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--rounds-of-peers", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=2, help="of each limit")
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory() as place:
        trials = [
            measure(asked, Path(place), NETWORKS[name]) for name in asked.networks
        ]
        # Last, since they fork.
        for trial in trials * asked.rounds_of_peers:
            few = trial.photos[: asked.photos_of_peers]
            for name in asked.peers:
                job = embed_peers.Job(trial.network, trial.weights, few)
                trial.found[name].append(peer(name, job, Path(place)))
                print(name, round(trial.found[name][-1]), flush=True)
    rows = [trial.row(asked.peers) for trial in trials]
    heads = ["", "ours", "forward", "decode, GPU", "decode, cores", "of the limit"]
    heads += [f"{embed_peers.PEERS[name].title}" for name in asked.peers]
    heads += ["ours: times"] * len(asked.peers) + ["cosine mean / worst"]
    gpu = f"GPU {torch.cuda.get_device_name(DEVICE)}"
    where = "; ".join([machine(PACKAGES), processor(), gpu])
    record(
        "Embedding photos on a GPU",
        f"`python benchmarks/embed_gpu.py {' '.join(sys.argv[1:])}`, {asked.rounds} "
        f"rounds in turn, medians of images/s; {where}.\n\n"
        f"{asked.photos:,} JPEGs of 500x375, quality 90, about 65 kB; the peers read "
        f"{asked.photos_of_peers:,} of them, {asked.rounds_of_peers} times.\n"
        "Weights are random, batch normalisation calibrated. Ours is bf16 and writes "
        "Parquet; `forward` is its forward pass\nalone, `decode, GPU` decoding and "
        "resizing by the GPU alone, `decode, cores` the same by threads on all cores. "
        "The limit is the\nslower of the forward pass and the faster way to decode. "
        f"Cosines are with fp32 on a CPU, over {SAMPLE} photos.\n\n"
        + "\n".join(
            [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *rows],
        ),
    )


if __name__ == "__main__":
    main()

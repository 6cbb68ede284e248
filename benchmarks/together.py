"""Several encoders over the same photos against decoding once and all forward passes.

``.venv/bin/python benchmarks/together.py`` embeds 1,000 photos with mobilenet_v3_small,
squeezenet1_0 and lenet5 at once, and each alone; 3 rounds in turn, medians. Loading is
not counted. Below it, the sum of decoding alone and of the three forward passes alone.
Then four pools of one network's layer at once against one of them.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from photos import files, photos
from results import machine, processor, record

from tl_pipeline.config.specs import EncoderSpec
from tl_pipeline.data.identity import image_id
from tl_pipeline.embedding import engine, forward
from tl_pipeline.embedding.process import cores
from tl_pipeline.encoders import resolution
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.inputs import pixels
from tl_pipeline.progress import track
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder

WISHES = (
    "mobilenet_v3_small:weights=random:0,precision=bf16",
    "squeezenet1_0:weights=random:0,precision=bf16",
    "lenet5",
)
POOLS = tuple(
    f"squeezenet1_0:weights=random:0,precision=bf16,pool={pool}"
    for pool in ("gap", "grid2", "grid3", "avg+max")
)
BATCH = 32


def resolved(wishes: Sequence[str]) -> list[Encoder]:
    """The encoders that ``wishes`` describe."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "store")
        return [resolution.resolve(EncoderSpec.parse(wish), store) for wish in wishes]


def read(uri: str) -> bytes:
    """The bytes of a file."""
    return Path(uri).read_bytes()


def embedded(wanted: Sequence[Encoder], images: Sequence[tuple[str, str]]) -> float:
    """Seconds in which the engine embeds ``images`` into a new store."""
    with tempfile.TemporaryDirectory() as place:
        store = Store.open(Path(place) / "store")
        store.create()
        jobs = [engine.Job(e, EmbeddingFolder(store, e.key)) for e in wanted]
        with track("benchmark", len(images)) as progress:
            done = engine.embed(jobs, images, read, 512, progress)
        return sum(one.timings.elapsed for one in done)


def on_every_core(work: Callable[[Any], Any], items: Sequence[Any]) -> float:
    """Seconds of ``work`` on all ``items``, each on one core."""
    single = lambda: torch.set_num_threads(1)  # noqa: E731
    with ThreadPoolExecutor(cores(), initializer=single) as pool:
        list(pool.map(work, items[: 4 * cores()]))
        started = time.perf_counter()
        list(pool.map(work, items))
        return time.perf_counter() - started


def limit(wanted: Sequence[Encoder], images: Sequence[tuple[str, str]]) -> float:
    """Seconds of decoding alone and of all forward passes alone."""
    hows = list(dict.fromkeys(encoder.preprocess for encoder in wanted))

    def decode(image: tuple[str, str]) -> list[np.ndarray]:
        whole = pixels.decode(read(image[1]))
        return [pixels.preprocess(whole, how) for how in hows]

    total = on_every_core(decode, images)
    for encoder in wanted:
        network = forward.Forward([encoder])
        at = hows.index(encoder.preprocess)
        batch = pixels.stack([decode(image)[at] for image in images[:BATCH]])
        rounds = [batch] * 32
        total += on_every_core(network, rounds) * len(images) / (BATCH * len(rounds))
    return total


def compare_pools(images: Sequence[tuple[str, str]]) -> None:
    """Measure and record four pools at once beside one, 7 rounds in turn."""
    four = resolved(POOLS)
    pairs = [(embedded(four[:1], images), embedded(four, images)) for _ in range(7)]
    one, together = (float(np.median(taken)) for taken in zip(*pairs, strict=True))
    ratio = float(np.median([whole / part for part, whole in pairs]))
    record(
        "Four pools of one layer beside one",
        f"`python benchmarks/together.py`, {len(images):,} photos, 7 rounds in turn, "
        f"medians; {machine(('torch',))}; {processor()}.\n\n"
        f"`gap` alone {one:.2f} s, `gap`, `grid2`, `grid3` and `avg+max` of one pass "
        f"{together:.2f} s: {ratio:.2f} times as long.",
    )


def main() -> None:
    """Measure and record."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    arguments.add_argument("--photos", type=int, default=1000)
    asked = arguments.parse_args()
    place = photos(asked.folder, asked.photos)
    images = [(image_id(file.read_bytes()), str(file)) for file in files(place)]
    wanted = resolved(WISHES)
    seconds: dict[str, list[float]] = {}
    for _ in range(3):
        seconds.setdefault("together", []).append(embedded(wanted, images))
        seconds.setdefault("limit", []).append(limit(wanted, images))
        for encoder in wanted:
            alone = embedded([encoder], images)
            seconds.setdefault(encoder.backbone, []).append(alone)
    found = {name: float(np.median(taken)) for name, taken in seconds.items()}
    alone = sum(found[encoder.backbone] for encoder in wanted)
    rows = "\n".join(f"| {name} | {taken:.2f} |" for name, taken in found.items())
    record(
        "Several encoders over the same photos",
        f"`python benchmarks/together.py`, {len(images):,} photos, 3 rounds in turn, "
        f"medians; {machine(('torch',))}; {processor()}.\n\n| | s |\n|---|---|\n{rows}"
        "\n\n`limit` is decoding once and the three forward passes, each alone. "
        f"Together takes {found['together'] / found['limit']:.2f} of it; one after the "
        f"other takes {alone / found['together']:.2f} times as long as together.",
    )
    compare_pools(images)


if __name__ == "__main__":
    main()

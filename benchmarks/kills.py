"""Embedding that is killed at random moments loses nothing and doubles nothing.

``.venv/bin/python benchmarks/kills.py`` starts a process that embeds 2,000 small JPEGs
with LeNet-5 in shards of 128 into a new store, sends it SIGKILL at a random moment,
runs again to the end, and compares the table with that of an undisturbed run; fifty
times. What the killed process had computed and had not published is what is done twice.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from photos import small
from results import machine, record

from tl_pipeline.config import catalog
from tl_pipeline.config.specs import EncoderSpec
from tl_pipeline.encoders import resolution
from tl_pipeline.pipeline.stages.embed import Embed
from tl_pipeline.pipeline.stages.ingest import Ingest
from tl_pipeline.progress import reporting
from tl_pipeline.runs.planning import Workspace
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder, Embeddings

ROWS = 128


class _Told:
    """Writes how many embeddings are computed, for whoever kills this process."""

    def start(self, task: str, total: int) -> None: ...

    def advance(self, task: str, done: int) -> None:
        del task
        print(done, flush=True)

    def finish(self, task: str) -> None: ...


def work(
    store: Path, images: Path, *, told: bool = False
) -> tuple[int, Embeddings, list[str]]:
    """Embed what is missing: how many, all embeddings, and every id in the parts."""
    at, dataset = Workspace(Store.open(store)), catalog.find(str(images))
    encoder = resolution.resolve(EncoderSpec(backbone="lenet5"), at.store)
    manifest = Ingest(at, dataset).run().output
    embedding = Embed(at, dataset, manifest, (encoder,), ROWS)
    with reporting(_Told()) if told else nullcontext():
        step = embedding.run().step
    folder = EmbeddingFolder(at.store, encoder.key)
    ids = manifest.table["image_id"].to_pylist()
    files = sorted(folder.path.glob("part-*"))
    held = [i for f in files for i in pq.read_table(f)["image_id"].to_pylist()]
    return 0 if step.cached else step.units, folder.load(ids), held


def killed(store: Path, images: Path, wait: float) -> int:
    """Start a run and kill it; how many embeddings it had computed."""
    command = [sys.executable, __file__, "--child", store, "--images", images]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE)
    assert process.stdout is not None
    first = process.stdout.readline()
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().split(b"\n")
    process.wait()
    # the last line may have been cut
    return sum(int(line) for line in [first, *rest[:-1]] if line.strip())


def main() -> None:
    """Kill and compare."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--kills", type=int, default=50)
    arguments.add_argument("--images", type=Path)
    arguments.add_argument("--child", type=Path)
    asked = arguments.parse_args()
    if asked.child:
        work(asked.child, asked.images, told=True)
        return
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        images = small(root, 2000)
        _, expected, _ = work(root / "undisturbed", images)
        chance, kept, redone, equal = random.Random(0), [], [], 0
        for trial in range(asked.kills):
            store = root / f"store-{trial}"
            computed = killed(store, images, chance.uniform(0, 1.2))
            left, found, held = work(store, images)
            assert len(held) == len(set(held)) == 2000, "a row is lost or doubled"
            assert found.image_ids == expected.image_ids
            assert np.array_equal(found.vectors, expected.vectors), "a row is wrong"
            kept.append(2000 - left)
            redone.append(max(0, computed - kept[-1]))
            equal += 1
    middle = sum(0 < rows < 2000 for rows in kept)
    record(
        "Embedding killed at random moments",
        f"`python benchmarks/kills.py`; {machine(('torch',))}.\n\n"
        f"{asked.kills} times SIGKILL, {middle} of them between the first and the last "
        f"part, each followed by a run: {equal} tables equal that of an undisturbed "
        "run bit by bit, no row lost or doubled. Computed twice, in shards of "
        f"{ROWS} images: {np.median(redone):.0f} images (median), {max(redone)} at "
        "most.",
    )


if __name__ == "__main__":
    main()

"""Everything in which embed.py and scale.py touch tl_pipeline.

As a process it embeds a folder as a user would: ``prepare``, then the stages ingest and
embed into a store. Its functions give the best forward pass and the decoding alone, for
the two limits. Of what is measured only this file knows our modules.
"""

import argparse
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from timeline import Timeline, save_vectors, since_start

from tl_pipeline.config.specs import EncoderSpec, RunSpec
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.pipeline import wiring
from tl_pipeline.pipeline.stages.embed import Embed, pairs
from tl_pipeline.pipeline.stages.ingest import Ingest
from tl_pipeline.pipeline.work import resolve
from tl_pipeline.progress import reporting
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder

_BATCH = 32
_EVERY = 0.2  # seconds between two looks at the memory


def short(network: str, layer: str, weights: Path, precision: str) -> str:
    """The encoder as the command line names it."""
    return f"{network}:layer={layer},weights={weights},precision={precision}"


def find(text: str, store: Path) -> Encoder:
    """The encoder that ``text`` names."""
    opened = Store.open(store)
    opened.create()
    return resolve([EncoderSpec.parse(text)], opened)[0]


def run(images: Path, store: Path, text: str, timeline: Timeline) -> dict[str, Any]:
    """Ingest and embed a folder; seconds of both, and how many were embedded."""
    spec = RunSpec(
        dataset=str(images), backbones=(EncoderSpec.parse(text),), controls=False
    )
    work = wiring.prepare(spec, Store.open(store))
    encoder = work.heads[0][0]
    timeline.loaded()
    ingested = Ingest(work.at, work.dataset).run()
    embedding = Embed(work.at, work.dataset, ingested.output, (encoder,))
    with reporting(_Reporter(timeline)):
        embedded = embedding.run()
    return {
        "ingest": ingested.step.seconds,
        "embed": embedded.step.seconds,
        "ingested": ingested.step.units,
        "embedded": 0 if embedded.step.cached else embedded.step.units,
        "encoder": encoder.label,
    }


def keep_vectors(images: Path, store: Path, text: str, out: Path) -> None:
    """Write what the store holds of ``images`` for comparison."""
    spec = RunSpec(
        dataset=str(images), backbones=(EncoderSpec.parse(text),), controls=False
    )
    work = wiring.prepare(spec, Store.open(store))
    images_of = Ingest(work.at, work.dataset).run().output.images
    names = {image_id: Path(uri).name for image_id, uri in pairs(images_of)}
    folder = EmbeddingFolder(work.at.store, work.heads[0][0].key)
    found = folder.load(names)
    save_vectors(out, [names[image_id] for image_id in found.image_ids], found.vectors)


def decoding(encoder: Encoder) -> Callable[[Sequence[Path]], list[np.ndarray]]:
    """Read and decode a list of files on every core, as the engine does."""
    import torch  # noqa: PLC0415

    from tl_pipeline.inputs import pixels  # noqa: PLC0415 - torch

    def single() -> None:
        torch.set_num_threads(1)

    workers = ThreadPoolExecutor(os.cpu_count(), initializer=single)

    def some(files: Sequence[Path]) -> list[np.ndarray]:
        return [pixels.pixels(file.read_bytes(), encoder.preprocess) for file in files]

    def every(files: Sequence[Path]) -> list[np.ndarray]:
        starts = range(0, len(files), _BATCH)
        batches = [files[start : start + _BATCH] for start in starts]
        return [pixels for batch in workers.map(some, batches) for pixels in batch]

    return every


def forwarding(encoder: Encoder) -> Callable[[np.ndarray], np.ndarray]:
    """The forward pass of a run: uint8 pixels as ``stack`` gives them to embeddings."""
    from tl_pipeline.embedding import devices  # noqa: PLC0415 - torch
    from tl_pipeline.embedding.forward import Forward  # noqa: PLC0415 - torch

    forward = Forward([encoder], devices.devices()[0])
    return lambda batch: forward(batch)[0]


def stack(rows: Sequence[np.ndarray]) -> np.ndarray:
    """A batch as the engine makes it."""
    from tl_pipeline.inputs import pixels  # noqa: PLC0415 - torch

    return pixels.stack(rows)


class _Reporter:
    """Passes the progress of the stage embed on to a timeline."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline

    def start(self, task: str, total: int) -> None: ...

    def advance(self, task: str, done: int) -> None:
        del task
        self._timeline.add(done)

    def finish(self, task: str) -> None: ...


class Memory:
    """Resident memory of this process in MB, looked at all the time (Linux)."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []

    @contextmanager
    def watched(self) -> Any:
        """Take samples while the block runs: (seconds since the start, MB)."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(_EVERY):
                self.samples.append((since_start(), _megabytes("VmRSS")))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        yield
        over.set()
        watcher.join()

    @property
    def peak(self) -> float:
        """The most that this process ever had."""
        return _megabytes("VmHWM")


def _megabytes(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(field)]
    return int(line.split()[1]) * 1024 / 1e6


def main() -> None:
    """Embed a folder into a store and report."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--images", type=Path)
    arguments.add_argument("--store", type=Path, help="by default a new one in --out")
    arguments.add_argument("--encoder")
    arguments.add_argument("--out", type=Path)
    arguments.add_argument("--vectors", action="store_true", help="keep them in --out")
    asked = arguments.parse_args()
    store = asked.store or asked.out / "store"
    timeline, memory = Timeline(), Memory()
    with memory.watched():
        said = run(asked.images, store, asked.encoder, timeline)
        finished = since_start()
    timeline.save(asked.out, finished, **said, samples=memory.samples, peak=memory.peak)
    if asked.vectors:
        keep_vectors(asked.images, store, asked.encoder, asked.out)


if __name__ == "__main__":
    main()

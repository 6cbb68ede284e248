"""When a process that embeds had done how many images: written there, read here."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

STARTED = "BENCHMARK_STARTED"  # in the environment: time.time() at the start
_WARM = 0.2  # of the images, after which the pace counts as steady


def since_start() -> float:
    """Seconds since this process was started, imports included."""
    return time.time() - float(os.environ[STARTED])


class Timeline:
    """Counts images as they are done; ``ready`` is when the network was loaded."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, int]] = []
        self.ready = 0.0
        self._done = 0

    def loaded(self) -> None:
        """The imports are done and the network is in memory."""
        self.ready = since_start()

    def add(self, images: int, at: float | None = None) -> None:
        """``images`` more were embedded ``at`` that ``time.time()``, by default now."""
        self._done += images
        seconds = since_start() if at is None else at - float(os.environ[STARTED])
        self.marks.append((seconds, self._done))

    def save(self, folder: Path, finished: float, **more: Any) -> None:
        """Write ``report.json``; ``finished`` is when all embeddings were there."""
        report = {"ready": self.ready, "marks": self.marks, "finished": finished}
        (folder / "report.json").write_text(json.dumps({**report, **more}))


@dataclass(frozen=True)
class Pace:
    """``rate`` is images/s of the steady part, ``wall`` seconds of everything.

    ``start_up`` is what the steady pace does not explain: importing and loading, over
    after ``loaded``, then compiling and filling of queues.
    """

    rate: float
    loaded: float
    start_up: float
    wall: float

    def seconds(self, images: int) -> float:
        """What so many images would take, start-up included."""
        return self.start_up + images / self.rate


def pace(report: dict[str, Any]) -> Pace:
    """Read a report: steady is what follows the first fifth of the images."""
    marks, finished = report["marks"], report["finished"]
    images = marks[-1][1]
    begun, before = next(mark for mark in marks if mark[1] >= _WARM * images)
    if before == images:
        raise ValueError(f"{images} images were done at once: too few to see a pace")
    rate = (images - before) / (finished - begun)
    start_up = max(0.0, finished - images / rate)
    return Pace(rate, report["ready"], start_up, finished)


def save_vectors(folder: Path, names: list[str], vectors: np.ndarray) -> None:
    """Keep the embeddings, float32 (n_images, width), with the names of the files."""
    np.savez(folder / "vectors.npz", names=np.array(names), vectors=vectors)


def vectors(folder: Path) -> dict[str, np.ndarray]:
    """Name of a file -> its embedding."""
    with np.load(folder / "vectors.npz") as kept:
        return dict(zip(kept["names"].tolist(), kept["vectors"], strict=True))

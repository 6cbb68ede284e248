"""Ingest of 50,000 small files against the plain loop: read, sha256, header by PIL.

``.venv/bin/python benchmarks/ingest.py`` makes its own files from scikit-learn's two
sample photos in a temporary folder, and records medians in RESULTS.md.
"""

import argparse
import hashlib
import io
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from results import machine, record
from sklearn.datasets import load_sample_images

from tl_pipeline.artifacts import Store
from tl_pipeline.datasets import ImageFolderSpec
from tl_pipeline.identity import Memo
from tl_pipeline.scan import scan
from tl_pipeline.sources import open_source


def make(root: Path, files: int) -> None:
    """Write ``files`` JPEGs of 32x32 into 43 class folders."""
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    chance = np.random.default_rng(0)
    for label in range(43):
        (root / f"{label:02d}").mkdir(parents=True)
    for number in range(files):
        left, top = chance.integers(0, 600), chance.integers(0, 390)
        crop = photos[number % 2].crop((left, top, left + 32, top + 32))
        crop.save(root / f"{number % 43:02d}" / f"{number:06d}.jpg", quality=85)


def plain(root: Path) -> None:
    """What a script does: read, hash, ask PIL for the size."""
    for folder in os.scandir(root):
        for entry in os.scandir(folder.path):
            with open(entry.path, "rb") as file:  # noqa: PTH123 - faster than Path
                data = file.read()
            hashlib.sha256(data).hexdigest()
            _ = Image.open(io.BytesIO(data)).size


def ingest(root: Path, store: Store) -> None:
    """Our scan, memo loaded and saved."""
    spec = ImageFolderSpec(name="files", path=root)
    memo = Memo(store, spec.name)
    scan(open_source(spec), spec, memo)
    memo.save()


def seconds(work: object, *arguments: object) -> float:
    """Wall seconds of one call."""
    started = time.perf_counter()
    work(*arguments)  # type: ignore[operator]
    return time.perf_counter() - started


def main() -> None:
    """Measure and record."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--files", type=int, default=50_000)
    arguments.add_argument("--rounds", type=int, default=5)
    asked = arguments.parse_args()
    times: dict[str, list[float]] = {"plain": [], "first": [], "unchanged": []}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        make(root, asked.files)
        time.sleep(3)  # files younger than two seconds are not memoised
        for number in range(asked.rounds):
            store = Store(Path(folder) / f"store{number}")
            store.create()
            times["plain"].append(seconds(plain, root))
            times["first"].append(seconds(ingest, root, store))
            times["unchanged"].append(seconds(ingest, root, store))
    medians = {name: statistics.median(found) for name, found in times.items()}
    rows = "\n".join(
        f"| {name} | {median:.2f} | {asked.files / median:,.0f} |"
        for name, median in medians.items()
    )
    ratio = medians["plain"] / medians["first"]
    record(
        f"Ingest of {asked.files:,} small JPEG files",
        f"`python benchmarks/ingest.py`, {asked.rounds} rounds in turn, medians; "
        f"{machine()}.\n\n| | s | files/s |\n|---|---|---|\n{rows}\n\n"
        "`plain` reads, hashes and asks PIL for the size; `first` is our scan of the "
        f"same files, {ratio:.2f} of its speed; `unchanged` is the next scan, by memo.",
    )


if __name__ == "__main__":
    main()

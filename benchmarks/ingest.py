"""Ingest: 50,000 small files against a plain loop, and a million without files.

``.venv/bin/python benchmarks/ingest.py`` makes its own files from scikit-learn's two
sample photos in a temporary folder, and records medians in RESULTS.md. The plain loop
reads, takes the sha256, and asks PIL for the header. The million are made up as they
are listed, and ingested by processes of their own, whose peak of memory is measured.
"""

import argparse
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from results import machine, record
from sklearn.datasets import load_sample_images

from tl_pipeline.config.datasets import DigitsSpec, ImageFolderSpec
from tl_pipeline.data.identity import Memo
from tl_pipeline.data.scan import scan
from tl_pipeline.pipeline.stages import ingest as stage
from tl_pipeline.runs.planning import Workspace
from tl_pipeline.sources import Entry, open_source
from tl_pipeline.store.artifacts import Store

HEAD = bytes.fromhex("ffd8ffc0000b080020002001011100")  # of a grey JPEG of 32x32


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


class MadeUp:
    """A source of ``rows`` images that have no file: a header and a number each."""

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def entries(self) -> Iterator[Entry]:
        """Uris of 44 characters, as in a folder of 43 classes."""
        for n in range(self._rows):
            uri = f"/data/photos/class-{n % 43:02d}/photo-{n:09d}.jpg"
            yield Entry(uri, f"class {n % 43:02d}", f"2048:17{n:017d}")

    def read(self, uri: str) -> bytes:
        """What makes an image of that uri alone."""
        return HEAD + uri[-13:].encode()


def peak() -> float:
    """The most memory that this process ever had, in MB (Linux)."""
    (line,) = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) * 1024 / 1e6


def ingest_made_up(rows: int, root: Path) -> None:
    """Ingest ``rows`` images, and print the seconds and the MB above the imports."""
    stage.open_source = lambda _: MadeUp(rows)
    store = Store.open(root)
    store.create()
    before, started = peak(), time.perf_counter()
    found = stage.Ingest(
        Workspace(store), DigitsSpec(type="digits", name="made-up")
    ).run()
    assert found.step.units == rows
    print(json.dumps([time.perf_counter() - started, peak() - before]))


def measure_made_up(counts: list[int]) -> None:
    """Record the first and the second ingest of so many images."""
    lines = []
    for rows in counts:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--made-up", str(rows), folder]
            for name in ("first", "unchanged"):
                said = subprocess.check_output(command)
                took, megabytes = json.loads(said.splitlines()[-1])
                lines.append(
                    f"| {rows:,} | {name} | {took:.1f} | {megabytes:,.0f} | "
                    f"{megabytes * 1e6 / rows:,.0f} |"
                )
    record(
        "Ingest of a million images that have no files",
        f"`python benchmarks/ingest.py`, each in a process of its own; {machine()}.\n\n"
        "| images | scan | s | MB | bytes/image |\n|---|---|---|---|---|\n"
        + "\n".join(lines)
        + "\n\nThe whole stage, from listing to the manifest on disk. MB is the peak "
        "of resident memory above what the imports take.",
    )


def main() -> None:
    """Measure and record."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--files", type=int, default=50_000)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument(
        "--images", type=int, nargs="*", default=[250_000, 1_000_000]
    )
    arguments.add_argument("--made-up", nargs=2, help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.made_up:
        ingest_made_up(int(asked.made_up[0]), Path(asked.made_up[1]) / "store")
        return
    measure_files(asked.files, asked.rounds)
    measure_made_up(asked.images)


def measure_files(files: int, rounds: int) -> None:
    """Record the plain loop, the first and the second scan of ``files`` files."""
    times: dict[str, list[float]] = {"plain": [], "first": [], "unchanged": []}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        make(root, files)
        time.sleep(3)  # files younger than two seconds are not memoised
        for number in range(rounds):
            store = Store(Path(folder) / f"store{number}")
            store.create()
            times["plain"].append(seconds(plain, root))
            times["first"].append(seconds(ingest, root, store))
            times["unchanged"].append(seconds(ingest, root, store))
    medians = {name: statistics.median(found) for name, found in times.items()}
    rows = "\n".join(
        f"| {name} | {median:.2f} | {files / median:,.0f} |"
        for name, median in medians.items()
    )
    ratio = medians["plain"] / medians["first"]
    record(
        f"Ingest of {files:,} small JPEG files",
        f"`python benchmarks/ingest.py`, {rounds} rounds in turn, medians; "
        f"{machine()}.\n\n| | s | files/s |\n|---|---|---|\n{rows}\n\n"
        "`plain` reads, hashes and asks PIL for the size; `first` is our scan of the "
        f"same files, {ratio:.2f} of its speed; `unchanged` is the next scan, by memo.",
    )


if __name__ == "__main__":
    main()

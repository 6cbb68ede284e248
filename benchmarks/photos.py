"""JPEGs to measure with, cut from scikit-learn's two sample photos, each its own.

Photo-like ones are 500x375 of quality 90, about 65 kB; small ones are 32x32. A file
depends on its number alone, so the first of a larger set are those of a smaller one.
"""

import multiprocessing
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

SIZE, QUALITY = (500, 375), 90
SMALL = (32, 32)
CORES = os.cpu_count() or 1
Write = Callable[[np.random.Generator, Image.Image, Path], None]
_GRAIN = 4.6  # of 255: what brings a photo to about 65 kB


def photos(folder: Path, count: int) -> Path:
    """A folder of ``count`` photo-like JPEGs in two class folders; made if missing."""
    return _made(folder / f"photos-{count}", range(count), 2, _write_photo)


def small(folder: Path, count: int) -> Path:
    """A folder of ``count`` JPEGs of 32x32 in ten class folders; made if missing."""
    return _made(folder / f"small-{count}", range(count), 10, _write_small)


def linked(pool: Path, folder: Path, numbers: range) -> Path:
    """``folder`` with hard links to the files ``numbers`` of ``pool``; may grow."""
    for number in numbers:
        source = _place(pool, number, 10)
        target = _place(folder, number, 10)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(source)
    return folder


def files(folder: Path) -> list[Path]:
    """Every JPEG of a folder, by number."""
    return sorted(folder.glob("*/*.jpg"), key=lambda file: file.name)


def _made(
    folder: Path,
    numbers: range,
    classes: int,
    write: Write,
) -> Path:
    if folder.exists():
        return folder
    # under its name only when it is whole
    beside = folder.with_name(f".{folder.name}-{os.getpid()}")
    some = [(beside, numbers[at : at + 500], classes, write) for at in numbers[::500]]
    with multiprocessing.get_context("spawn").Pool(min(CORES, len(some))) as pool:
        pool.starmap(_make, some)
    beside.rename(folder)
    return folder


def _make(folder: Path, numbers: range, classes: int, write: Write) -> None:
    for number in numbers:
        file = _place(folder, number, classes)
        file.parent.mkdir(parents=True, exist_ok=True)
        sample = _samples()[number % 2]
        write(np.random.default_rng([0, number]), sample, file)


def _place(folder: Path, number: int, classes: int) -> Path:
    return folder / f"class-{number % classes}" / f"{number:06d}.jpg"


@cache
def _samples() -> list[Image.Image]:
    # A machine that was handed the files needs no scikit-learn.
    from sklearn.datasets import load_sample_images  # noqa: PLC0415

    return [Image.fromarray(photo) for photo in load_sample_images().images]


def _write_photo(chance: np.random.Generator, sample: Image.Image, file: Path) -> None:
    """A cut of 0.55 to 1 of the height, mildly recoloured, with the grain of a lens."""
    height = sample.height * chance.uniform(0.55, 1.0)
    width = height * SIZE[0] / SIZE[1]
    left = chance.uniform(0, sample.width - width)
    top = chance.uniform(0, sample.height - height)
    box = (left, top, left + width, top + height)
    cut = sample.resize(SIZE, Image.Resampling.BICUBIC, box=box)
    if chance.random() < 0.5:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    values = np.asarray(cut, np.float32) * chance.uniform(0.85, 1.1, 3)
    values += chance.normal(0, _GRAIN, values.shape[:2])[:, :, None]
    pixels = np.clip(values, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, quality=QUALITY)


def _write_small(chance: np.random.Generator, sample: Image.Image, file: Path) -> None:
    left = chance.integers(0, sample.width - SMALL[0])
    top = chance.integers(0, sample.height - SMALL[1])
    cut = sample.crop((left, top, left + SMALL[0], top + SMALL[1]))
    values = np.asarray(cut, np.float32) + chance.normal(0, 4, (*SMALL, 3))
    pixels = np.clip(values, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, quality=85)

"""What a night costs: a run from nothing, with 1 % more images, and with nothing new.

Makes vectors with labels that stand for embedded images (10 classes that overlap, one
image in fifty is a copy of another), so that heads, audit and the run around them are
measured and no network is. Each run is a process of its own; writes RESULTS.md.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from results import machine, processor, record

CLASSES = 10
ROUNDS = 5  # of what is measured with nothing new
STAGES: tuple[str, ...] = ("ingest", "embed", "audit", "train", "evaluate", "register")
CATALOG = """version: 1
datasets:
  night: {type: features, train: vectors.npz, features: X, labels: y}
"""


@dataclass(frozen=True)
class Run:
    """Seconds of one run: by the clock, of the processor, and of each stage."""

    wall: float
    cpu: float
    stages: dict[str, float]


def vectors(count: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` vectors of so many values (float32, not negative) and their classes.

    The first of more vectors are those of fewer.
    """
    rng = np.random.default_rng(0)
    spread = np.geomspace(1, 0.02, width)
    mixed = np.linalg.qr(rng.normal(size=(width, width)))[0] * spread[:, None]
    centres = 0.12 * rng.normal(size=(CLASSES, width)) @ mixed
    labels = np.arange(count) % CLASSES
    found = np.empty((count, width), np.float32)
    for start in range(0, count, 1000):
        part = slice(start, min(start + 1000, count))
        drawn = np.random.default_rng(start).normal(size=(1000, width))
        drawn[20::50] = drawn[0:980:50] + 0.01 * drawn[20::50]
        found[part] = (centres[labels[part]] + (drawn @ mixed)[: part.stop - start]) + 1
    return found.clip(min=0), labels


def tl_run(folder: Path, heads: Sequence[str]) -> Run:
    """``tl run`` as a process; it must succeed."""
    wall, cpu, said = tl(folder, heads, "run", "--runner", "direct", "--json")
    stages = dict.fromkeys(STAGES, 0.0)
    for step in json.loads(said)["steps"]:
        stages[step["stage"]] += step["seconds"]
    return Run(wall, cpu, stages)


def tl(folder: Path, heads: Sequence[str], *how: str) -> tuple[float, float, bytes]:
    """Seconds by the clock and of the processor of a command, and what it prints."""
    command = [sys.executable, "-m", "tl_pipeline.cli", *how, "night"]
    command += ["--backbone", "features"]
    command += [part for head in heads for part in ("--head", head)]
    environment = {**os.environ, "TL_STORE": "store", "TL_CATALOG": "catalog.yaml"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, check=True
    )
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, done.stdout


def nothing_new(count: int, width: int, heads: Sequence[str]) -> Iterator[str]:
    """A row for ``tl plan`` and ``tl run`` of so many vectors that are all done."""
    commands = {"tl plan": ["plan"], "tl run": ["run", "--runner", "direct"]}
    with made(count, width) as folder:
        tl_run(folder, heads)
        tl_run(folder, heads)  # the first was too young to be trusted
        found = [
            [tl(folder, heads, *how)[:2] for how in commands.values()]
            for _ in range(ROUNDS)
        ]
    for name, wall, cpu in zip(commands, *np.median(found, axis=0).T, strict=True):
        yield f"| {count:,} | {name} | {wall:.1f} | {cpu:.1f} |"


@contextmanager
def made(count: int, width: int) -> Iterator[Path]:
    """A folder with a catalogue and so many vectors."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "catalog.yaml").write_text(CATALOG)
        write(folder, *vectors(count, width))
        yield folder


def write(folder: Path, x: np.ndarray, y: np.ndarray) -> None:
    """Make ``x`` and ``y`` the vectors of ``folder``."""
    np.savez(folder / "vectors.npz", X=x, y=y)


def night(count: int, width: int, heads: Sequence[str]) -> dict[str, Run]:
    """The runs of one size, by what is new in them."""
    x, y = vectors(count + count // 100, width)
    found = {}
    with made(count, width) as folder:
        for what, images in (
            ("all", count),
            ("nothing", count),
            ("1 %", len(x)),
            ("one fewer", len(x) - 1),
        ):
            if what != "nothing":
                write(folder, x[:images], y[:images])
            found[what] = tl_run(folder, heads)
            print(count, what, found[what], file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Measure each size once and write RESULTS.md."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000])
    arguments.add_argument("--heads", nargs="+", default=["logistic", "mlp"])
    arguments.add_argument("--width", type=int, default=512)
    arguments.add_argument("--nothing-new", action="store_true")
    asked = arguments.parse_args()
    command = (
        f"`python benchmarks/night.py --images {' '.join(map(str, asked.images))} "
        f"--heads {' '.join(asked.heads)}"
    )
    about = f"Vectors of {asked.width} values that stand for embedded images, "
    about += f"{CLASSES} classes, a process a run, `--runner direct`"
    if asked.nothing_new:
        rows = [nothing_new(n, asked.width, asked.heads) for n in asked.images]
        lines = [line for found in rows for line in found]
        record(
            "Nothing new, of so many vectors",
            f"{command} --width {asked.width} --nothing-new`, medians of {ROUNDS}; "
            f"{machine()}; {processor()}.\n\n{about}; seconds by the clock and of the "
            "processor (CPU), imports among them.\n\n| images | command | s | CPU s "
            "|\n|---|---|---|---|\n" + "\n".join(lines),
        )
        return
    lines = [
        f"| {count:,} | {what} | {run.wall:.1f} | {run.cpu:.1f} | "
        + " | ".join(f"{run.stages[stage]:.1f}" for stage in STAGES)
        + " |"
        for count in asked.images
        for what, run in night(count, asked.width, asked.heads).items()
    ]
    record(
        "Every night: what is new costs, and what is not",
        f"{command}`, once each; {machine()}; {processor()}.\n\n{about}; by the clock "
        "in seconds, of the processor (CPU), and by stage.\n\n"
        f"| images | new | s | CPU s | {' | '.join(STAGES)} |\n"
        f"|---|---|---|---|{'---|' * len(STAGES)}\n" + "\n".join(lines),
    )


if __name__ == "__main__":
    main()

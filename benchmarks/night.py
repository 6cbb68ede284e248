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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from results import machine, processor, record

CLASSES, WIDTH = 10, 512
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


def vectors(count: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` vectors (float32, not negative) and their classes.

    The first of more vectors are those of fewer.
    """
    rng = np.random.default_rng(0)
    spread = np.geomspace(1, 0.02, WIDTH)
    mixed = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0] * spread[:, None]
    centres = 0.12 * rng.normal(size=(CLASSES, WIDTH)) @ mixed
    labels = np.arange(count) % CLASSES
    found = np.empty((count, WIDTH), np.float32)
    for start in range(0, count, 1000):
        part = slice(start, min(start + 1000, count))
        drawn = np.random.default_rng(start).normal(size=(1000, WIDTH))
        drawn[20::50] = drawn[0:980:50] + 0.01 * drawn[20::50]
        found[part] = (centres[labels[part]] + (drawn @ mixed)[: part.stop - start]) + 1
    return found.clip(min=0), labels


def tl_run(folder: Path, heads: Sequence[str]) -> Run:
    """``tl run`` as a process; it must succeed."""
    command = [sys.executable, "-m", "tl_pipeline.cli", "run", "night", "--json"]
    command += ["--runner", "direct", "--backbone", "features"]
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
    stages = dict.fromkeys(STAGES, 0.0)
    for step in json.loads(done.stdout)["steps"]:
        stages[step["stage"]] += step["seconds"]
    return Run(wall, cpu, stages)


def night(count: int, heads: Sequence[str]) -> dict[str, Run]:
    """The runs of one size, by what is new in them."""
    x, y = vectors(count + count // 100)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "catalog.yaml").write_text(CATALOG)
        for what, images in (
            ("all", count),
            ("nothing", count),
            ("1 %", len(x)),
            ("one fewer", len(x) - 1),
        ):
            if what != "nothing":
                np.savez(folder / "vectors.npz", X=x[:images], y=y[:images])
            found[what] = tl_run(folder, heads)
            print(count, what, found[what], file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Measure each size once and write RESULTS.md."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000])
    arguments.add_argument("--heads", nargs="+", default=["logistic", "mlp"])
    asked = arguments.parse_args()
    lines = [
        f"| {count:,} | {what} | {run.wall:.1f} | {run.cpu:.1f} | "
        + " | ".join(f"{run.stages[stage]:.1f}" for stage in STAGES)
        + " |"
        for count in asked.images
        for what, run in night(count, asked.heads).items()
    ]
    record(
        "Every night: what is new costs, and what is not",
        f"`python benchmarks/night.py --images {' '.join(map(str, asked.images))} "
        f"--heads {' '.join(asked.heads)}`, once each; {machine()}; {processor()}."
        f"\n\nVectors of {WIDTH} values that stand for embedded images, {CLASSES} "
        "classes, a process a run, `--runner direct`; by the clock in seconds, of the "
        "processor (CPU), and by stage.\n\n"
        f"| images | new | s | CPU s | {' | '.join(STAGES)} |\n"
        f"|---|---|---|---|{'---|' * len(STAGES)}\n" + "\n".join(lines),
    )


if __name__ == "__main__":
    main()

"""1,000 to 100,000 images: are time and memory what they should be?

``.venv/bin/python benchmarks/scale.py`` makes JPEGs of 32x32 in a temporary folder, and
ingests and embeds 1,000, 10,000 and 100,000 of them, each in a process of its own; then
20,000 and 1 % more, and 50,000 twice. RESULTS.md gets a section.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from photos import linked, small
from results import machine, processor, record
from timeline import STARTED

HERE = Path(__file__).parent
COUNTS = (1_000, 10_000, 100_000)
GROWN, UNCHANGED = 20_000, 50_000
_WARM = 0.2  # of the images, after which memory should stay as it is


@dataclass(frozen=True)
class Run:
    """One process: seconds of its stages, and its memory in MB.

    ``cost`` is microseconds an image once the pace is steady. ``settled`` are the least
    and the most resident memory while it embedded, the first fifth of the images left
    out. Both are None where nothing was embedded or it was too short to look.
    """

    images: int
    ingest: float
    embed: float
    peak: float
    cost: float | None
    settled: tuple[float, float] | None


def run(images: Path, store: Path, encoder: str, expected: int) -> Run:
    """Ingest and embed ``images`` in a process; ``expected`` must be embedded anew."""
    with tempfile.TemporaryDirectory(dir=store.parent) as out:
        command = [sys.executable, HERE / "embed_ours.py", "--images", images]
        command += ["--store", store, "--encoder", encoder, "--out", out]
        subprocess.run(
            [str(word) for word in command],
            env={**os.environ, STARTED: str(time.time())},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        said = json.loads((Path(out) / "report.json").read_text())
    if said["embedded"] != expected:
        raise ValueError(f"{said['embedded']:,} embedded instead of {expected:,}")
    cost, settled = _steady(said)
    return Run(expected, said["ingest"], said["embed"], said["peak"], cost, settled)


def _steady(
    said: dict[str, Any],
) -> tuple[float | None, tuple[float, float] | None]:
    images = said["embedded"]
    warm = [mark for mark in said["marks"] if mark[1] >= _WARM * images]
    if len(warm) < 2:
        return None, None
    begun, ended = warm[0][0], warm[-1][0]
    cost = (ended - begun) / (images - warm[0][1]) * 1e6
    sizes = [size for second, size in said["samples"] if begun <= second <= ended]
    return cost, (min(sizes), max(sizes)) if len(sizes) > 1 else None


def sizes(pool: Path, folder: Path, encoder: str, counts: list[int]) -> list[Run]:
    """Every count, from nothing."""
    found = []
    for count in counts:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            images = linked(pool, Path(place) / "images", range(count))
            found.append(run(images, Path(place) / "store", encoder, count))
        print(found[-1], flush=True)
    return found


def again(
    pool: Path, folder: Path, encoder: str, count: int, new: int
) -> tuple[Run, Run]:
    """``count`` images, and once more after ``new`` have been added."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        images = linked(pool, Path(place) / "images", range(count))
        first = run(images, Path(place) / "store", encoder, count)
        linked(pool, images, range(count, count + new))
        second = run(images, Path(place) / "store", encoder, new)
    print(first, second, flush=True)
    return first, second


def report(runs: list[list[Run]]) -> str:
    """The table of sizes; ``runs`` are rounds, each of the same counts."""
    heads = ["images", "ingest s", "embed s", "images/s", "us an image, steady"]
    heads += ["peak MB", "MB once warm", "growth"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    costs = []
    for same in zip(*runs, strict=True):
        embed = statistics.median(one.embed for one in same)
        steady = [one.cost for one in same if one.cost]
        costs.append(statistics.median(steady) if steady else None)
        lines.append(
            f"| {same[0].images:,} | {statistics.median(r.ingest for r in same):.1f} | "
            f"{embed:.1f} | {same[0].images / embed:,.0f} | "
            f"{f'{costs[-1]:,.0f}' if costs[-1] else ''} | "
            f"{max(one.peak for one in same):,.0f} | {_flat(same)} |"
        )
    return "\n".join(lines) + _linear(costs)


def _flat(same: tuple[Run, ...]) -> str:
    ranges = [one.settled for one in same if one.settled]
    if not ranges:
        return "too short to look | "
    least, most = max(ranges, key=lambda pair: pair[1] / pair[0])
    return f"{least:,.0f}-{most:,.0f} | {most / least - 1:+.1%}"


def _linear(costs: list[float | None]) -> str:
    """How much an image costs more among the most than among fewer; 0 is linear."""
    if len(costs) < 2 or not (costs[-1] and costs[-2]):
        return ""
    return (
        f"\n\nAn image of the most costs {costs[-1] / costs[-2] - 1:+.1%} against "
        "one of the size before: 0 is linear."
    )


def incremental(grown: list[tuple[Run, Run]], unchanged: list[tuple[Run, Run]]) -> str:
    """What little new, and nothing new, cost."""
    lines = ["| | ingest s | embed s | before, from nothing |", "|---|---|---|---|"]
    for pairs in (grown, unchanged):
        count, new = pairs[0][0].images, pairs[0][1].images
        full = statistics.median(first.embed for first, _ in pairs)
        ingest = statistics.median(second.ingest for _, second in pairs)
        embed = statistics.median(second.embed for _, second in pairs)
        lines.append(
            f"| {new:,} new on {count:,} | {ingest:.2f} | {embed:.2f} | {full:.1f} |"
        )
    extra = statistics.median(b.embed - 0.02 * a.embed for a, b in grown)
    said = f"Beyond 2 % of the full embedding, the new 1 % took {extra:.2f} s."
    return "\n".join(lines) + f"\n\n{said}"


def main() -> None:
    """Measure and record."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--counts", nargs="+", type=int, default=COUNTS)
    arguments.add_argument("--grown", type=int, default=GROWN)
    arguments.add_argument("--unchanged", type=int, default=UNCHANGED)
    arguments.add_argument("--encoder", default="lenet5")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--folder", type=Path, help="keep the images here")
    asked = arguments.parse_args()
    most = max(*asked.counts, asked.grown + asked.grown // 100, asked.unchanged)
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        pool, encoder = small(folder, most), asked.encoder
        time.sleep(3)  # files younger than two seconds are not memoised
        runs, grown, unchanged = [], [], []
        for _ in range(asked.rounds):
            runs.append(sizes(pool, folder, encoder, asked.counts))
            new = asked.grown // 100
            grown.append(again(pool, folder, encoder, asked.grown, new))
            unchanged.append(again(pool, folder, encoder, asked.unchanged, 0))
    record(
        f"Embedding 32x32 JPEGs: {asked.encoder}, from few to many",
        f"`python benchmarks/scale.py`, each in a process of its own, {asked.rounds} "
        f"rounds in turn, medians; {machine()}; {processor()}.\n\n{report(runs)}\n\n"
        f"{incremental(grown, unchanged)}\n\n"
        "Seconds are those of the stages, without the start of the process. Memory is "
        "resident; once warm: the least and the most while embedding, its first fifth "
        "left out, and the largest growth of all rounds.",
    )


if __name__ == "__main__":
    main()

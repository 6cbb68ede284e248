"""Embedding photos from files: ours, what others write, and the limits of the machine.

``.venv/bin/python benchmarks/embed.py --peers-python PATH`` makes its own photos, and
runs us and each peer in a process of its own, in turn, some rounds; a section of
RESULTS.md holds medians. The peers of peers.txt live in an environment of their own,
whose Python is PATH; one that is not installed is listed as such. Where torch sees a
GPU, all use it, and the section is that of the GPU.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import embed_ours
import torch
from embed_networks import NETWORKS, Network, weights_file
from embed_peers import PEERS
from embed_table import Limits, Runner, cosines, limits, table
from photos import files, photos
from results import machine, processor, record
from timeline import STARTED, pace, vectors

HERE = Path(__file__).parent
SAMPLE = 64  # photos whose embeddings are compared
PACKAGES = ("torch", "torchvision", "pillow", "numpy", "pyarrow")


class Failed(Exception):
    """A process failed, or took too long; the message says what it said last."""


@dataclass(frozen=True)
class Bench:
    """What all processes of a run share; ``peers_python`` runs the peers.

    ``absent`` says of peers that are not run why. We embed ``ours_times`` as many
    photos as they do.
    """

    folder: Path
    peers_python: str
    absent: dict[str, str]
    precision: str
    ours_times: int
    rounds: int
    seconds: float
    timeout: float

    def process(self, python: str, script: str, *arguments: object) -> Path:
        """Run a script of this folder; the folder in which it reported.

        Raises:
            Failed: it did not end well.
        """
        out = Path(tempfile.mkdtemp(dir=self.folder, prefix="report-"))
        command = [python, HERE / script, *arguments, "--out", out]
        with (
            (out / "said.txt").open("w") as said,
            subprocess.Popen(
                [str(word) for word in command],
                env=os.environ | self._environment() | {STARTED: str(time.time())},
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as process,
        ):
            try:
                code = process.wait(self.timeout)
            except BaseException as fault:
                os.killpg(process.pid, signal.SIGKILL)
                if not isinstance(fault, subprocess.TimeoutExpired):
                    raise
                raise Failed(f"not done after {self.timeout:,.0f} s") from None
        if code:
            last = (out / "said.txt").read_text().strip().rpartition("\n")[2]
            raise Failed(f"failed with {code}: {last[:200]}")
        return out

    def _environment(self) -> dict[str, str]:
        return {
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")])
            ),
            "TORCH_HOME": str(self.folder / "torch"),
            "HF_HOME": str(self.folder / "huggingface"),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",
        }


@dataclass(frozen=True)
class Trial:
    """One network: its weights, the photos of the peers, and ours: those and more."""

    network: Network
    photos: Path
    ours: Path
    weights: Path
    encoder: str

    @property
    def given(self) -> tuple[object, ...]:
        """What a peer's process is told."""
        return (
            *("--network", self.network.name),
            *("--weights", self.weights, "--photos", self.photos),
        )


def prepare(bench: Bench, network: Network, images: int) -> Trial:
    """Make what is missing: photos and weights."""
    count = max(int(images * network.share), SAMPLE)
    folder = photos(bench.folder, count)
    more = photos(bench.folder, count * bench.ours_times)
    weights = weights_file(bench.folder, network, files(folder))
    text = embed_ours.short(network.name, network.layer, weights, bench.precision)
    return Trial(network, folder, more, weights, text)


def measure(bench: Bench, trial: Trial) -> str:
    """The table of one network."""
    out = bench.process(
        bench.peers_python,
        *("embed_peers.py", "reference", *trial.given, "--first", SAMPLE),
    )
    exact = vectors(out)
    shutil.rmtree(out)
    rates: list[dict[str, float]] = []
    ours = Runner("**tl-pipeline**", bench.precision)
    others = {name: Runner(peer.title, peer.precision) for name, peer in PEERS.items()}
    for name, runner in others.items():
        knows = PEERS[name].knows(trial.network)
        unknown = "" if knows else "does not know this network"
        runner.fault = bench.absent.get(name, unknown)
    for _ in range(bench.rounds):
        rates.append(_limits(bench, trial))
        _try(ours, exact, bench, *_ours(trial))
        for name, runner in others.items():
            if not runner.fault:
                given = ("embed_peers.py", name, *trial.given)
                _try(runner, exact, bench, bench.peers_python, *given)
    images = (len(files(trial.ours)), len(files(trial.photos)))
    limit: Limits = limits(rates, torch.cuda.is_available())
    return table(images, ours, list(others.values()), limit)


def _try(
    runner: Runner, exact: dict[str, Any], bench: Bench, python: str, *given: object
) -> None:
    """One run of a runner; what goes wrong is its fault, and is kept."""
    print(f"{runner.title}: {' '.join(map(str, given[:4]))}", flush=True)
    try:
        out = bench.process(python, *given)
        runner.paces.append(pace(json.loads((out / "report.json").read_text())))
        runner.cosines = cosines(vectors(out), exact)
        shutil.rmtree(out)
    except (Failed, ValueError) as fault:
        runner.fault = str(fault).replace("|", "/").replace("\n", " ")


def _ours(trial: Trial) -> tuple[object, ...]:
    """Our command line: into a store that nobody used before."""
    given = ("--images", trial.ours, "--encoder", trial.encoder)
    return (sys.executable, "embed_ours.py", *given, "--vectors")


def _limits(bench: Bench, trial: Trial) -> dict[str, float]:
    given = (*trial.given, "--encoder", trial.encoder, "--seconds", bench.seconds)
    out = bench.process(sys.executable, "embed_limits.py", *given)
    rates = json.loads((out / "report.json").read_text())
    shutil.rmtree(out)
    return rates


def where(bench: Bench, versions: dict[str, str | None]) -> str:
    """The machine, the versions of peers, and the command."""
    gpu = torch.cuda.is_available() and torch.cuda.get_device_name()
    threads = os.environ.get("OMP_NUM_THREADS")
    said = [machine(PACKAGES), processor(), *([f"GPU {gpu}"] if gpu else [])]
    said += [f"OMP_NUM_THREADS={threads}"] if threads else []
    others = ", ".join(
        f"{name} {version or 'not installed'}" for name, version in versions.items()
    )
    return (
        f"`python benchmarks/embed.py {' '.join(_shown(sys.argv[1:]))}`, "
        f"{bench.rounds} rounds in turn, medians; {'; '.join(said)}. Peers, in an "
        f"environment of their own: {others}."
    )


def _shown(words: list[str]) -> list[str]:
    """The command without the places of this machine."""
    return [word if "/" not in word else Path(word).name for word in words]


EXPLAINED = f"""
Photos are JPEGs of 500x375, quality 90, about 65 kB, cut from scikit-learn's two sample
photos; weights are random, batch normalisation calibrated. Images/s is the steady part:
what follows the first fifth of the images, until every embedding is there (ours: in
Parquet). Start-up is the rest of the wall time: importing and loading (over after
"loaded"), compiling, filling of queues. Where we embed more photos than the others, the
first of ours are theirs, and walls do not compare. Cosines are with fp32 on the CPU,
over {SAMPLE} photos; img2vec squashes where all others crop.
"""


def main() -> None:
    """Measure and record."""
    asked = _arguments().parse_args()
    command = [asked.peers_python, HERE / "embed_peers.py", "versions"]
    versions = json.loads(subprocess.check_output(command))
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(
            folder=(asked.folder or Path(temporary)).resolve(),
            peers_python=asked.peers_python,
            absent=_absent(asked.peers, versions),
            precision=asked.precision,
            ours_times=asked.ours_times,
            rounds=asked.rounds,
            seconds=asked.limit_seconds,
            timeout=asked.timeout,
        )
        bench.folder.mkdir(parents=True, exist_ok=True)
        sections = []
        for name in asked.networks:
            trial = prepare(bench, NETWORKS[name], asked.photos)
            sections.append(f"**{name}/{NETWORKS[name].layer}**\n\n")
            sections[-1] += measure(bench, trial)
    kind = "GPU" if torch.cuda.is_available() else "CPU"
    text = [where(bench, versions), EXPLAINED, *sections]
    record(f"Embedding photos on a {kind}", "\n\n".join(text))


def _absent(asked: list[str], versions: dict[str, str | None]) -> dict[str, str]:
    absent = {name: "not asked for" for name in PEERS if name not in asked}
    lost = [name for name, peer in PEERS.items() if not versions[peer.package]]
    return absent | dict.fromkeys(lost, "not installed")


def _arguments() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    arguments.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    arguments.add_argument("--peers-python", default=sys.executable)
    arguments.add_argument("--photos", type=int, default=1000)
    arguments.add_argument(
        "--ours-times", type=int, default=1, help="as many photos for us, for a pace"
    )
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--precision", default="fp32", help="of ours")
    arguments.add_argument("--folder", type=Path, help="keep photos and weights here")
    arguments.add_argument("--limit-seconds", type=float, default=10)
    arguments.add_argument("--timeout", type=float, default=3600, help="s a process")
    return arguments


if __name__ == "__main__":
    main()

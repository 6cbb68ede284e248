"""The limits of embedding on this machine: forward alone, and decoding alone.

``embed.py`` starts it as a process of its own. Rates are images/s with all cores, over
batches that are in memory for the forward passes, and over files for the decoding.
"""

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from embed_networks import NETWORKS, embedder
from embed_ours import decoding, find, forwarding, stack
from photos import files
from timeline import Timeline, since_start

BATCH = 32
_WARM_UPS = 3  # calls before the clock runs: compiling, tuning, caches


def rate(work: Callable[[], Any], images: int, seconds: float) -> float:
    """Images/s of ``work``, which handles ``images``, called for ``seconds``."""
    for _ in range(_WARM_UPS):
        work()
    calls, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        work()
        calls += 1
    return calls * images / (time.perf_counter() - started)


def eager(network: str, weights: Path, pixels: np.ndarray) -> Callable[[], Any]:
    """The forward pass of a plain script, fp32, from normalised values in memory."""
    import torch  # noqa: PLC0415

    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = embedder(NETWORKS[network], weights).to(device)
    values = torch.from_numpy(np.ascontiguousarray(pixels)).to(device).float() / 127.5
    values -= 1

    def forward() -> Any:
        with torch.inference_mode():
            return module(values).cpu()

    return forward


_cores = os.cpu_count() or 1
_EACH = 2 * _cores  # batches of one call of on_each_core
_pool = ThreadPoolExecutor(_cores, initializer=lambda: set_threads(1))


def set_threads(number: int) -> None:
    """How many cores one forward pass uses."""
    import torch  # noqa: PLC0415

    torch.set_num_threads(number)


def on_each_core(forward: Callable[[np.ndarray], Any], pixels: np.ndarray) -> None:
    """Two batches for every core, each batch on one core."""
    list(_pool.map(forward, [pixels] * _EACH))


def main() -> None:
    """Measure the three rates for one network."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--network", choices=NETWORKS)
    arguments.add_argument("--weights", type=Path)
    arguments.add_argument("--encoder")
    arguments.add_argument("--photos", type=Path)
    arguments.add_argument("--seconds", type=float)
    arguments.add_argument("--out", type=Path)
    asked = arguments.parse_args()
    photos = files(asked.photos)
    encoder = find(asked.encoder, asked.out / "store")
    decode = decoding(encoder)
    pixels = stack(decode(photos[:BATCH]))
    forward = forwarding(encoder)
    plain = eager(asked.network, asked.weights, pixels)
    some = photos[: 8 * BATCH]
    # Threads that decode have set the number for all that start after them.
    set_threads(os.cpu_count() or 1)
    together = rate(lambda: forward(pixels), BATCH, asked.seconds)
    apart = rate(lambda: on_each_core(forward, pixels), _EACH * BATCH, asked.seconds)
    set_threads(os.cpu_count() or 1)
    rates = {
        "forward": max(together, apart),
        "eager": rate(plain, BATCH, asked.seconds),
        "decode": rate(lambda: decode(some), len(some), asked.seconds),
    }
    Timeline().save(asked.out, since_start(), **rates)


if __name__ == "__main__":
    main()

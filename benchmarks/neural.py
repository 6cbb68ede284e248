"""The head `mlp` against a PyTorch script with a DataLoader: seconds an epoch.

``.venv/bin/python benchmarks/neural.py [--rows 20000] [--widths 4096 512]`` trains the
notebooks' network (codes -> 256 -> 43 classes) for the same number of epochs, each time
in a process of its own, in turn, and records medians in RESULTS.md. Same rows, batch
size, AdamW, dropout, float32 and number of epochs; nothing is held out; both
standardise before the time starts to run. The codes are made up, like those of a ReLU.
The limit is what the matrix products of an epoch alone take: without them no loop
learns the same.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from results import machine, processor, record
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tl_pipeline.embedding.devices import devices
from tl_pipeline.heads.neural.layers import initialise, network
from tl_pipeline.heads.neural.training import Course, Examples, train
from tl_pipeline.heads.threads import alone

CLASSES, HIDDEN, BATCH, DROPOUT, RATE, DECAY = 43, 256, 256, 0.5, 1e-3, 1e-4
TESTED = 5000  # further rows, for the accuracy
Score = Callable[[torch.Tensor], torch.Tensor]


def codes(rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Standardised codes, half of them 0 before, and their classes."""
    chance = np.random.default_rng(0)
    centres = chance.standard_normal((CLASSES, width), np.float32) * 12 / width**0.5
    y = chance.integers(CLASSES, size=rows)
    x = chance.standard_normal((rows, width), np.float32)
    x += centres[y]
    np.maximum(x, 0, out=x)
    x -= x.mean(axis=0)
    x /= x.std(axis=0)
    return x, y


def plain(x: torch.Tensor, y: torch.Tensor, epochs: int, workers: int) -> Score:
    """The loop that people write."""
    (device, *_) = devices()
    model = nn.Sequential(
        nn.Linear(x.shape[1], HIDDEN),
        nn.ReLU(),
        nn.Dropout(DROPOUT),
        nn.Linear(HIDDEN, CLASSES),
    ).to(device)
    loss = nn.CrossEntropyLoss()
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    loader = DataLoader(
        TensorDataset(x, y), batch_size=BATCH, shuffle=True, num_workers=workers
    )
    for _ in range(epochs):
        for rows, targets in loader:
            optimiser.zero_grad()
            loss(model(rows.to(device)), targets.to(device)).backward()
            optimiser.step()
    return model.cpu().eval()


def ours(x: torch.Tensor, y: torch.Tensor, epochs: int) -> Score:
    """What the head `mlp` does once its rows are standardised."""
    (device, *_) = devices()
    layers = network(x.shape[1], [HIDDEN], CLASSES)
    chance = torch.Generator().manual_seed(0)
    initialise(layers, chance)
    layers.to(device)
    course = Course(
        optimiser="adamw",
        learning_rate=RATE,
        weight_decay=DECAY,
        schedule="constant",
        max_epochs=epochs,
        patience=epochs,
        refined=False,
        batch_size=BATCH,
        dropout=DROPOUT,
        label_smoothing=0.0,
        mixup=0.0,
        seed=0,
    )
    examples = Examples(x.to(device), y.to(device), None)
    kept, none = torch.arange(len(x)), torch.arange(0)
    alone(lambda: train(layers, course, examples, kept, none, chance))
    return layers.cpu().eval()


def products(x: torch.Tensor, y: torch.Tensor, epochs: int) -> Score:  # noqa: ARG001
    """Only the two large products of each batch, on rows that lie in the cache."""
    (device, *_) = devices()
    rows, weight = x[:BATCH].to(device), torch.rand(HIDDEN, x.shape[1], device=device)
    for _ in range(epochs * -(-len(x) // BATCH)):
        hidden = rows @ weight.T
        hidden.T @ rows
    if device.type == "cuda":
        torch.cuda.synchronize()
    return lambda rows: torch.zeros(len(rows), CLASSES)


METHODS: dict[str, Callable[[torch.Tensor, torch.Tensor, int], Score]] = {
    "DataLoader, num_workers=0": lambda x, y, epochs: plain(x, y, epochs, 0),
    "DataLoader, num_workers=2": lambda x, y, epochs: plain(x, y, epochs, 2),
    "ours": ours,
    "limit: two products a batch": products,
}


def child(method: str, rows: int, width: int, epochs: int) -> None:
    """Train, and print seconds an epoch and the accuracy on further rows."""
    torch.manual_seed(0)
    table, labels = codes(rows + TESTED, width)
    x, y = torch.from_numpy(table), torch.from_numpy(labels)
    METHODS[method](x[:1024], y[:1024], 1)  # libraries load, threads start
    started = time.perf_counter()
    score = METHODS[method](x[:rows], y[:rows], epochs)
    took = (time.perf_counter() - started) / epochs
    with torch.inference_mode():
        right = score(x[rows:]).argmax(dim=1) == y[rows:]
    print(json.dumps([took, right.double().mean().item()]))


def measure(method: str, asked: argparse.Namespace, width: int) -> list[float]:
    """``child`` in a process of its own."""
    numbers = map(str, (asked.rows, width, asked.epochs))
    command = [sys.executable, __file__, "--child", method, *numbers]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def case(asked: argparse.Namespace, width: int) -> str:
    """All methods in turn on codes of one width: the rows of a table."""
    found: dict[str, list[list[float]]] = {name: [] for name in METHODS}
    for _ in range(asked.rounds):
        for name, measured in found.items():
            measured.append(measure(name, asked, width))
    medians = {n: statistics.median(s for s, _ in m) for n, m in found.items()}
    accuracy = {n: statistics.median(a for _, a in m) for n, m in found.items()}
    limit = medians["limit: two products a batch"]
    operations = 4 * asked.rows * width * HIDDEN
    lines = [
        f"| {width:,} | {name} | {seconds:.3f} | {1 / seconds:.2f} | "
        f"{medians['ours'] / seconds:.2f} | {operations / seconds / 1e9:,.0f} | "
        + ("" if name.startswith("limit") else f"{accuracy[name]:.3f}")
        + " |"
        for name, seconds in medians.items()
    ]
    print(f"width {width}: ours takes {medians['ours'] / limit:.2f} times the limit")
    return "\n".join(lines)


def main() -> None:
    """Measure and record."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=20_000)
    arguments.add_argument("--widths", type=int, nargs="*", default=[4096, 512])
    arguments.add_argument("--epochs", type=int, default=5)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--unrecorded", action="store_true", help="only print")
    arguments.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.child:
        method, *numbers = asked.child
        child(method, *map(int, numbers))
        return
    rows = "\n".join(case(asked, width) for width in asked.widths)
    if asked.unrecorded:
        print(rows)
        return
    record(
        "Training the head mlp against a DataLoader",
        f"`python benchmarks/neural.py`, {asked.rows:,} rows, codes -> {HIDDEN} -> "
        f"{CLASSES} classes, batches of {BATCH}, AdamW, float32, {asked.epochs} epochs,"
        f" {asked.rounds} rounds in turn, medians; {machine(('torch',))}; "
        f"{processor()}; {torch.get_num_threads()} threads; "
        f"{devices()[0].type}.\n\n"
        "| width | | s/epoch | epochs/s | speed relative to ours | GFLOP/s | accuracy "
        f"|\n|---|---|---|---|---|---|---|\n{rows}\n\n"
        "GFLOP/s are those of the two large products, x W and its gradient for W, over "
        "the whole time. The limit is these products alone on one batch that stays in "
        "the cache: no loop at this batch size and precision can be faster.",
    )


if __name__ == "__main__":
    main()

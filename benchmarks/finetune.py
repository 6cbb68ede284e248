"""A step of fine-tuning beside a plain torch loop, and of a tail beside the whole.

``.venv/bin/python benchmarks/finetune.py`` trains squeezenet1_0 (random weights) at 128
pixels on 1,024 small JPEGs: batch 64, AdamW, bf16 where the processor is fast at it,
turned, scaled, moved and recoloured images. The plain loop is a DataLoader with as many
workers as cores, torchvision's v2 transforms an image, and the network on all cores.
Then the last block of resnet18 (random weights) learns from the same images as they
are, once as a whole network, once from what its frozen blocks gave. Rounds in turn,
medians; the first epoch of each is not counted.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from photos import small
from PIL import Image
from results import machine, processor, record
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import squeezenet1_0
from torchvision.transforms import v2

from tl_pipeline.config.encoder_specs import EncoderSpec
from tl_pipeline.config.finetune_specs import FinetuneSpec
from tl_pipeline.data.identity import image_id
from tl_pipeline.encoders import resolution
from tl_pipeline.finetuning import activations, computing, pixels, training
from tl_pipeline.finetuning.images import Images
from tl_pipeline.finetuning.network import Classifier, LinearHead
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.store.artifacts import Store

DEGREES: Any = 10  # torchvision asks for an abstract Number
SIDE, BATCH, CLASSES, WIDTH, EPOCHS = 128, 64, 10, 512, 3


class Files(Dataset):
    """Image files and their class numbers, each changed by torchvision."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files
        self._change = v2.Compose(
            [
                v2.ToImage(),
                v2.Resize(SIDE),
                v2.CenterCrop(SIDE),
                v2.RandomAffine(DEGREES, (0.08, 0.08), (0.9, 1.1)),
                v2.ColorJitter(0.25, 0.25, 0.25),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
        image = Image.open(self._files[at]).convert("RGB")
        return self._change(image), int(self._files[at].parent.name[-1])


def plain(files: list[Path], kind: torch.dtype) -> float:
    """Images a second of the plain loop."""
    trunk = squeezenet1_0().features
    network = nn.Sequential(
        trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, CLASSES)
    ).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimiser = torch.optim.AdamW(network.parameters(), 1e-4)
    workers = torch.get_num_threads()
    loader = DataLoader(
        Files(files), BATCH, shuffle=True, num_workers=workers, persistent_workers=True
    )
    seconds = []
    for _ in range(EPOCHS):
        started = time.perf_counter()
        for images, targets in loader:
            batch = images.to(memory_format=torch.channels_last)
            with torch.autocast("cpu", kind, enabled=kind != torch.float32):
                loss = nn.functional.cross_entropy(network(batch), targets)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        seconds.append(time.perf_counter() - started)
    return len(files) / min(seconds[1:])


def ours(
    files: list[Path], backbone: str, how: str, *, divided: bool = False
) -> tuple[float, float]:
    """Images a second of ``training.train``, and seconds of the frozen blocks.

    Those are computed once before; decoding is in neither.
    """
    with tempfile.TemporaryDirectory() as place:
        store = Store.open(Path(place) / "store")
        spec = EncoderSpec.parse(f"{backbone}:weights=random:0,side={SIDE}")
        encoder = resolution.resolve(spec, store)
        assert isinstance(encoder.preprocess, Preprocess)
        references = [(image_id(file.read_bytes()), str(file)) for file in files]
        rows = pixels.decoded(
            references, lambda uri: Path(uri).read_bytes(), encoder.preprocess
        )
        targets = np.array([int(file.parent.name[-1]) for file in files])
        zeros, ones = np.zeros(WIDTH, "f4"), np.ones(WIDTH, "f4")
        weight = np.zeros((CLASSES, WIDTH), "f4")
        head = LinearHead(weight, np.zeros(CLASSES, "f4"), zeros, ones)
        asked = FinetuneSpec.parse(f"{how},epochs={EPOCHS},lr=1e-4")
        network = Classifier(encoder, head, asked)
        numbers, values = np.arange(len(files)), torch.from_numpy(rows)
        started = time.perf_counter()
        if divided:
            prefix = network.divided()
            assert prefix is not None
            at = {reference: number for number, reference in enumerate(references)}
            values = activations.keep(
                Path(place),
                references,
                lambda some: rows[[at[one] for one in some]],
                rows.shape[1:],
                prefix,
                computing.precision(asked),
            ).opened()
        once = time.perf_counter() - started
        file = Path(place) / "checkpoint.pt"
        options = training.Options(asked, mirror=False, seed=0, checkpoint=file)
        found = training.train(network, options, Images(values, targets, numbers), None)
        return len(files) / min(point.seconds for point in found.curve[1:]), once


def main() -> None:
    """Measure, and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--only", choices=["step", "tail"])
    asked = parser.parse_args()
    kind = computing.precision(FinetuneSpec())
    typed = f"`python benchmarks/finetune.py --rounds {asked.rounds}"
    with tempfile.TemporaryDirectory() as place:
        folder = small(Path(place), asked.images)
        files = sorted(folder.rglob("*.jpg"))
        if asked.only != "tail":
            found = [
                (ours(files, "squeezenet1_0", "all")[0], plain(files, kind))
                for _ in range(asked.rounds)
            ]
            record(
                "A step of fine-tuning beside a plain loop",
                f"{typed}`; {machine()}; {processor()}; "
                f"{str(kind).removeprefix('torch.')}.\n\n"
                + table(found, "fine-tuning", "plain loop"),
            )
        if asked.only != "step":
            tails(files, asked.rounds, typed)


def tails(files: list[Path], rounds: int, typed: str) -> None:
    """Measure the last block of resnet18, and record."""
    said = []
    for precision in ("auto", "fp32"):
        how = f"blocks=1,augment=none,precision={precision}"
        found = [
            (
                ours(files, "resnet18", how, divided=True),
                ours(files, "resnet18", how)[0],
            )
            for _ in range(rounds)
        ]
        kind = computing.precision(FinetuneSpec.parse(how))
        once = statistics.median(seconds for (_, seconds), _ in found)
        said.append(
            f"{str(kind).removeprefix('torch.')}, the frozen blocks once: {once:.1f} s"
            "\n\n"
            + table([(mine, other) for (mine, _), other in found], "tail", "whole")
        )
    record(
        "The last block of resnet18, its frozen blocks computed once",
        f"{typed} --images {len(files)} --only tail`; {machine()}; {processor()}; "
        f"{SIDE} px, batches of {BATCH}.\n\n" + "\n\n".join(said),
    )


def table(found: list[tuple[float, float]], mine: str, other: str) -> str:
    """Medians of two, and of their ratio."""
    ratios = [one / two for one, two in found]
    first, second = (statistics.median(each) for each in zip(*found, strict=True))
    return (
        "| | images/s |\n|---|---|\n"
        f"| {mine} | {first:.0f} |\n| {other} | {second:.0f} |\n"
        f"| ratio | {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f}-{max(ratios):.2f}) |"
    )


if __name__ == "__main__":
    main()

"""A step of fine-tuning beside a plain torch loop of the same recipe.

``.venv/bin/python benchmarks/finetune.py`` trains squeezenet1_0 (random weights) at 128
pixels on 1,024 small JPEGs: batch 64, AdamW, bf16 where the processor is fast at it,
turned, scaled, moved and recoloured images. The plain loop is a DataLoader with as many
workers as cores, torchvision's v2 transforms an image, and the network on all cores.
Rounds in turn, medians; the first epoch of each is not counted.
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
from tl_pipeline.finetuning import pixels, training
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


def ours(files: list[Path]) -> float:
    """Images a second of ``training.train``, decoding for its first epoch apart."""
    with tempfile.TemporaryDirectory() as place:
        store = Store.open(Path(place) / "store")
        spec = f"squeezenet1_0:weights=random:0,side={SIDE}"
        encoder = resolution.resolve(EncoderSpec.parse(spec), store)
        assert isinstance(encoder.preprocess, Preprocess)
        references = [(image_id(file.read_bytes()), str(file)) for file in files]
        rows = pixels.decoded(
            references,
            lambda uri: Path(uri).read_bytes(),
            encoder.preprocess,
            Path(place) / "pixels.npy",
        )
        targets = np.array([int(file.parent.name[-1]) for file in files])
        zeros, ones = np.zeros(WIDTH, "f4"), np.ones(WIDTH, "f4")
        weight = np.zeros((CLASSES, WIDTH), "f4")
        head = LinearHead(weight, np.zeros(CLASSES, "f4"), zeros, ones)
        how = FinetuneSpec(epochs=EPOCHS, learning_rate=1e-4)
        found = training.train(
            Classifier(encoder, head, how),
            how,
            training.Images(rows, targets),
            {},
            mirror=False,
            seed=0,
            checkpoint=Path(place) / "checkpoint.pt",
        )
        return len(files) / min(point.seconds for point in found.curve[1:])


def main() -> None:
    """Measure, and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1024)
    asked = parser.parse_args()
    kind = training.precision(FinetuneSpec())
    with tempfile.TemporaryDirectory() as place:
        folder = small(Path(place), asked.images)
        files = sorted(folder.rglob("*.jpg"))
        found = [(ours(files), plain(files, kind)) for _ in range(asked.rounds)]
    mine, theirs = (statistics.median(each) for each in zip(*found, strict=True))
    ratios = [one / other for one, other in found]
    record(
        "A step of fine-tuning beside a plain loop",
        f"`python benchmarks/finetune.py --rounds {asked.rounds}`; {machine()}; "
        f"{processor()}; {str(kind).removeprefix('torch.')}.\n\n"
        "| | images/s |\n|---|---|\n"
        f"| fine-tuning | {mine:.0f} |\n| plain loop | {theirs:.0f} |\n"
        f"| ratio | {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f}-{max(ratios):.2f}) |",
    )


if __name__ == "__main__":
    main()

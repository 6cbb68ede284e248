"""Train LeNet-5 on letters rendered in many fonts: the bundled source weights.

The 26 classes are the letters A to Z, upper and lower case merged. No digit is ever
drawn, so a target task of digits shares no class with this source task. Fonts are
split into training and validation by family: no face of a validation family, and no
near copy of one under another name, is seen in training.

    python scripts/train_lenet5.py --out tl_pipeline/weights/lenet5-letters.safetensors

Equal fonts, seed and library versions give equal weights on one kind of processor.
"""

import argparse
import importlib.util
import re
import string
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFont
from safetensors.torch import save_file
from torch.nn import functional

from tl_pipeline.encoders.lenet import LeNet5

LETTERS = string.ascii_uppercase + string.ascii_lowercase
CANVAS, GLYPH = 48, 34
# Fonts that draw symbols, Greek or framed letters in the places of Latin letters.
NOT_LETTERS = re.compile(r"(?i)symbol|dingbat|D050000L|keyboard|inverted")
# Sides of the pictures before they are enlarged to the input size.
SIZES = (8, 8, 8, 10, 12, 12, 14, 16, 16, 20, 24, 32)


@dataclass(frozen=True)
class Face:
    """One font file: names, and its letters as uint8 bitmaps (52, 48, 48)."""

    name: str
    family: str
    bitmaps: NDArray[np.uint8]


def draw(font: ImageFont.FreeTypeFont, character: str) -> NDArray[np.uint8]:
    """Draw one character, bright on dark, scaled to fit the middle: (48, 48)."""
    mask, _ = font.getmask2(character, mode="L")
    canvas = np.zeros((CANVAS, CANVAS), np.uint8)
    box = mask.getbbox()
    if box is None:
        return canvas
    pixels = np.array(mask, np.uint8).reshape(mask.size[::-1])
    glyph = Image.fromarray(pixels).crop(box)
    scale = GLYPH / max(glyph.size)
    width, height = (max(1, round(side * scale)) for side in glyph.size)
    left, top = (CANVAS - width) // 2, (CANVAS - height) // 2
    fitted = np.asarray(glyph.resize((width, height), Image.Resampling.BOX))
    canvas[top : top + height, left : left + width] = fitted
    return canvas


def load_face(path: Path) -> Face | None:
    """Draw all letters of one font file; None where it lacks Latin letters."""
    try:
        font = ImageFont.truetype(path, 72, layout_engine=ImageFont.Layout.BASIC)
        name = " ".join(part or "" for part in font.getname())
        bitmaps = np.stack([draw(font, letter) for letter in LETTERS])
        missing = draw(font, chr(0x10FFFF))  # a code point that no font maps
    except (OSError, ValueError):
        return None
    blank = not bitmaps.any(axis=(1, 2)).all()
    boxes = (bitmaps == missing).all(axis=(1, 2)).any()
    distinct = len({bitmap.tobytes() for bitmap in bitmaps[:26]}) == 26
    word = re.match(r"[^\W\d_]+", name)
    if blank or boxes or not distinct or not word or NOT_LETTERS.search(name):
        return None
    return Face(name, word.group().lower(), bitmaps)


def bank(faces: list[Face]) -> torch.Tensor:
    """Stack the bitmaps of ``faces`` to uint8 (n, 52, 48, 48)."""
    return torch.from_numpy(np.stack([face.bitmaps for face in faces]))


def find_faces(folders: list[Path]) -> list[Face]:
    """Load the usable faces below ``folders``, each once, at most eight a family."""
    paths = {p for d in folders for e in ("ttf", "otf") for p in d.rglob(f"*.{e}")}
    loaded = [face for path in sorted(paths) if (face := load_face(path))]
    unique = {face.bitmaps.tobytes(): face for face in loaded}
    families: defaultdict[str, list[Face]] = defaultdict(list)
    for _, face in sorted(unique.items(), key=lambda item: (item[1].name, item[0])):
        families[face.family].append(face)
    # Evenly spaced, so that a large family keeps light, bold and slanted faces.
    thinned = [faces[:: -(-len(faces) // 8)] for _, faces in sorted(families.items())]
    return [face for faces in thinned for face in faces]


def split(faces: list[Face], seed: int) -> tuple[list[Face], list[Face]]:
    """Give a fifth of the families to validation; drop near copies from training."""
    # Three letters, because one design may be sold under names like OCRA and OCRABold.
    starts = sorted({face.family[:3] for face in faces})
    order = np.random.default_rng(seed).permutation(len(starts))
    chosen = {starts[i] for i in order[: len(starts) // 5]}
    training = [face for face in faces if face.family[:3] not in chosen]
    validation = [face for face in faces if face.family[:3] in chosen]
    own, theirs = (
        functional.avg_pool2d(bank(faces).float() / 255, 4).flatten(1)
        for faces in (training, validation)
    )
    distance = torch.cdist(own, theirs, p=1).amin(1) / own.shape[1]
    return [training[i] for i in torch.where(distance > 0.03)[0].tolist()], validation


def uniform(n: int, low: float, high: float, g: torch.Generator) -> torch.Tensor:
    """Draw n values from [low, high) with generator ``g``: (n, 1, 1, 1)."""
    return torch.rand((n, 1, 1, 1), generator=g) * (high - low) + low


def strokes(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Thicken or thin the strokes of ``x`` (n, 1, 48, 48), then blur some a little."""
    thick = functional.max_pool2d(x, 3, 1, 1)
    thin = -functional.max_pool2d(-x, 3, 1, 1)
    enough = thin.sum((1, 2, 3), keepdim=True) > 0.4 * x.sum((1, 2, 3), keepdim=True)
    amount = uniform(len(x), -0.7, 1.0, g)
    amount = torch.where(enough, amount, amount.abs())
    x = x + amount.clamp(min=0) * (thick - x) - (-amount).clamp(min=0) * (x - thin)
    blurred = functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return torch.lerp(x, blurred, uniform(len(x), 0, 1, g))


def warp(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Turn, shear, scale, move and bend ``x`` (n, 1, 48, 48) at random."""
    n = len(x)
    turn, shear, zoom, aspect, across, down = (
        uniform(n, -bound, bound, g).flatten() for bound in (0.3, 0.3, 1, 0.2, 1, 1)
    )
    grow = torch.exp(0.3 * zoom + 0.07)
    wide, high = grow * torch.exp(aspect), grow * torch.exp(-aspect)
    # The grid maps output to input positions, so scales divide.
    cos, sin = torch.cos(turn), torch.sin(turn)
    rows = [(cos + shear * sin) / wide, (shear * cos - sin) / wide, 0.12 * across]
    rows += [sin / high, cos / high, 0.12 * down]
    theta = torch.stack(rows, 1).view(n, 2, 3)
    grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
    bends = 0.06 * torch.randn((n, 2, 4, 4), generator=g)
    bends = functional.interpolate(bends, x.shape[2:], mode="bilinear")
    grid = grid + bends.permute(0, 2, 3, 1)
    return functional.grid_sample(x, grid, align_corners=False)


def photograph(x: torch.Tensor, size: int, g: torch.Generator) -> torch.Tensor:
    """Take 8-bit grey pictures ``size`` wide; resize, normalise: (n, 1, 32, 32)."""
    n = len(x)
    small = functional.interpolate(x, (size, size), mode="bilinear", antialias=True)
    small = small / small.amax((1, 2, 3), keepdim=True).clamp(min=0.2)
    bright = uniform(n, 0.6, 1.0, g)
    dark = uniform(n, -0.3, 0.3, g).clamp(min=0) * bright
    picture = dark + (bright - dark) * small ** uniform(n, 0.7, 1.4, g)
    picture = torch.where(uniform(n, 0, 1, g) < 0.75, picture, 1 - picture)
    noise = torch.randn(picture.shape, generator=g)
    picture = picture + noise * uniform(n, -0.08, 0.08, g).clamp(min=0)
    grey = (picture.clamp(0, 1) * 255).round()
    resized = functional.interpolate(grey, (32, 32), mode="bilinear", antialias=True)
    return (resized.round() / 255 - 0.5) / 0.5


def augment(bitmaps: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Make network input (n, 1, 32, 32) from bitmaps (n, 48, 48) in random order."""
    x = warp(strokes(bitmaps[:, None].float() / 255, g), g)
    pairs = zip(x.tensor_split(len(SIZES)), SIZES, strict=True)
    return torch.cat([photograph(part, size, g) for part, size in pairs])


def evaluate(model: LeNet5, bitmaps: torch.Tensor) -> float:
    """Measure the accuracy on each glyph of ``bitmaps`` (n, 52, 48, 48) varied once."""
    g = torch.Generator().manual_seed(1)
    order = torch.randperm(len(bitmaps) * 52, generator=g)
    flat, hits = bitmaps.flatten(0, 1), 0
    with torch.inference_mode():
        for chosen in order.split(2048):
            found = model(augment(flat[chosen], g)).argmax(1)
            hits += int((found == chosen % 26).sum())
    return hits / len(flat)


def train(
    training: list[Face], held_out: torch.Tensor, epochs: int, seed: int
) -> tuple[LeNet5, float]:
    """Fit with AdamW and a cosine schedule; 200 batches of 512 make an epoch."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    model, glyphs = LeNet5(), bank(training)
    sizes = Counter(face.family for face in training)
    weights = torch.tensor([sizes[face.family] ** -0.5 for face in training])
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * 200)
    accuracy, start = 0.0, time.monotonic()
    for epoch in range(1, epochs + 1):
        for _ in range(200):
            fonts = torch.multinomial(weights, 512, replacement=True, generator=g)
            letters = torch.randint(52, (512,), generator=g)
            logits = model(augment(glyphs[fonts, letters], g))
            loss = functional.cross_entropy(logits, letters % 26)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        accuracy = evaluate(model, held_out)
        print(f"epoch {epoch}, {time.monotonic() - start:.0f} s: {accuracy:.4f}")
    return model, accuracy


def main() -> None:
    """Read the command line, train, report and write the weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fonts", type=Path, action="append", metavar="DIR")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    # One thread, because sums in another order would change the weights.
    torch.set_num_threads(1)
    matplotlib = importlib.util.find_spec("matplotlib")
    shipped = matplotlib.submodule_search_locations if matplotlib else None
    folders = args.fonts or [Path("/usr/share/fonts"), *map(Path, shipped or [])]
    training, validation = split(find_faces(folders), args.seed)
    print(f"{len(training)} training fonts, {len(validation)} validation fonts")
    model, accuracy = train(training, bank(validation), args.epochs, args.seed)
    metadata = {
        "architecture": "tl_pipeline.encoders.lenet.LeNet5(n_classes=26)",
        "source_task": "single rendered letters, 26 classes, both cases; no digits",
        "training_fonts": str(len(training)),
        "training_families": ", ".join(sorted({f.family for f in training})),
        "validation_fonts": str(len(validation)),
        "validation_families": ", ".join(sorted({f.family for f in validation})),
        "validation_accuracy": f"{accuracy:.4f}",
        "seed": str(args.seed),
        "torch_version": torch.__version__,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), args.out, metadata)
    print(f"validation accuracy on unseen fonts: {accuracy:.4f}")


if __name__ == "__main__":
    main()

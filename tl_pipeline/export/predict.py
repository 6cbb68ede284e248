"""Classify image files with the network in this folder: python predict.py FILE...

Needs numpy, Pillow and onnxruntime (for model.onnx) or torch (for model.pt2).
"""

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# The weight by distance in pixels, and how far it reaches.
FILTERS = {
    "bilinear": (lambda x: np.clip(1 - x, 0, None), 1),
    "bicubic": (
        lambda x: np.where(
            x < 1,
            (1.5 * x - 2.5) * x * x + 1,
            np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0),
        ),
        2,
    ),
}
# Pillow drops the lower bits of these, or reads them in ways of its own.
DEEP = re.compile(
    rb"\x89PNG\r\n\x1a\n.{4}IHDR.{8}\x10"  # of 16 bits
    rb"|P[56](?:\s|#[^\n]*\n)+[0-9]+(?:\s|#[^\n]*\n)+[0-9]+(?:\s|#[^\n]*\n)+"
    rb"(?!25[0-5]\s|2[0-4][0-9]\s|1?[0-9]{1,2}\s)"
    rb"|II\*\0|MM\0\*|II\+\0|MM\0\+"  # TIFF
    rb"|\0\0\0\x0cjP  |\xff\x4f\xff\x51",  # JPEG 2000
    re.DOTALL,
)


class Classifier:
    """The network of an exported folder."""

    def __init__(self, folder):
        folder = Path(folder)
        self.labels = json.loads((folder / "labels.json").read_text("utf-8"))
        self.how = json.loads((folder / "preprocessing.json").read_text("utf-8"))
        if (folder / "model.onnx").exists():
            import onnxruntime

            options = onnxruntime.SessionOptions()
            # threads that wait leave the cores to others
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            file = folder / "model.onnx"
            session = onnxruntime.InferenceSession(file, options)
            self._run = lambda pixels: session.run(None, {"pixels": pixels})[0]
        else:
            import torch

            module = torch.export.load(folder / "model.pt2").module()
            self._run = lambda pixels: module(torch.from_numpy(pixels)).numpy()

    def __call__(self, data):
        """The probability of each label, (K,), for the bytes of one file."""
        return self.network(self.prepare(data)[None])[0]

    def network(self, pixels) -> np.ndarray:
        """Probabilities (n, K) of what ``prepare`` gives, uint8 (n, channels, S, S)."""
        return np.asarray(self._run(pixels))

    def prepare(self, data):
        """The bytes of one file as the network takes them: uint8 (channels, S, S)."""
        how, image = self.how, decode(data)
        if how["grey"]:
            image = image.convert("L")
        size = self.resized(*image.size)
        if how["interpolation"] == "nearest":
            height, width = size
            image = image.resize((width, height), Image.Resampling.NEAREST)
            pixels = np.asarray(image).reshape(height, width, -1)
        else:
            pixels = np.asarray(image).reshape(image.height, image.width, -1)
            pixels = resize(pixels, *size, *FILTERS[how["interpolation"]])
        around = np.rint(np.multiply(how["mean"], 255)) if how["pad"] else 0
        cropped = crop(pixels, how["crop"], around)
        return np.ascontiguousarray(cropped.transpose(2, 0, 1))

    def resized(self, width, height):
        """Height and width before the crop."""
        how, side = self.how, self.how["resize"]
        if how["squash"]:
            return side, side
        if how["pad"]:
            scale = side / max(width, height)
            return max(1, round(height * scale)), max(1, round(width * scale))
        longer = int(side * max(width, height) / min(width, height))
        return (side, longer) if height <= width else (longer, side)


def decode(data):
    """The upright image in 8-bit RGB, transparency laid on white."""
    if DEEP.match(data):
        raise ValueError("16 bits, TIFF and JPEG 2000 are not read here")
    image = Image.open(io.BytesIO(data))
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        raise ValueError("more than 8 bits are not read here")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def resize(pixels, height, width, weight, reach):
    """Antialiased, to the very values of torch, which differ from Pillow's by 1."""
    along = one_axis(pixels.transpose(0, 2, 1), width, weight, reach)  # (h, c, width)
    return one_axis(along.transpose(2, 1, 0), height, weight, reach).transpose(2, 0, 1)


def one_axis(pixels, new, weight, reach):
    """The last axis to ``new`` values: whole weights of 16 bits, rounded to uint8."""
    old, step = pixels.shape[-1], 16
    scale = old / new
    stretch = max(scale, 1.0)
    centre = scale * (np.arange(new) + 0.5)
    first = np.maximum((centre - reach * stretch + 0.5).astype(int), 0)
    last = np.minimum((centre + reach * stretch + 0.5).astype(int), old)
    place = first[:, None] + np.arange((last - first).max())
    shares = weight(np.abs(place - centre[:, None] + 0.5) / stretch)
    shares *= place < last[:, None]
    shares /= shares.sum(axis=1, keepdims=True)
    bits = max(b for b in range(23) if int(shares.max() * 2**b + 0.5) < 1 << 15)
    units = np.copysign(np.floor(np.abs(shares * 2**bits) + 0.5), shares)
    found = np.empty((*pixels.shape[:-1], new), np.uint8)
    for at in range(0, new, step):  # neighbours share what they look at
        rows = slice(at, min(at + step, new))
        begin, end = first[at], last[rows].max()
        matrix = np.zeros((end - begin, rows.stop - at))
        for column, row in enumerate(range(at, rows.stop)):
            some = units[row, : last[row] - first[row]]
            matrix[first[row] - begin : last[row] - begin, column] = some
        sums = pixels[..., begin:end].astype(float) @ matrix
        found[..., rows] = np.clip(np.floor(sums / 2**bits + 0.5), 0, 255)
    return found


def crop(pixels, side, around):
    """The middle ``side`` x ``side``; what is missing is ``around``."""
    height, width = pixels.shape[:2]
    room = np.empty((max(height, side), max(width, side), pixels.shape[2]), np.uint8)
    room[:] = around
    top, left = (room.shape[0] - height) // 2, (room.shape[1] - width) // 2
    room[top : top + height, left : left + width] = pixels
    top, left = (round((length - side) / 2) for length in room.shape[:2])
    return room[top : top + side, left : left + side]


def main():
    """Print the most probable label of each file, or say why it is none."""
    classify, failed = Classifier(Path(__file__).parent), False
    for file in sys.argv[1:]:
        try:
            probabilities = classify(Path(file).read_bytes())
        except (OSError, ValueError, SyntaxError) as error:
            sys.stderr.write(f"{file}: {error}\n")
            failed = True
            continue
        best = int(probabilities.argmax())
        sys.stdout.write(
            f"{file}\t{classify.labels[best]}\t{probabilities[best]:.4f}\n"
        )
    sys.exit(3 if failed else 0)


if __name__ == "__main__":
    main()

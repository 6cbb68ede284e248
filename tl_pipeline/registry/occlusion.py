"""Which places of an image a prediction rests on.

A square is covered with the mean colour of the image, place after place, and the model
asked again each time: Zeiler & Fergus 2014, "Visualizing and Understanding
Convolutional Networks", section 4.2. It needs no gradient, so any network and any head
will do.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tl_pipeline.config.dataset_entry import PixelSpec
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.inputs import pixels
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.inputs.modalities import Input
from tl_pipeline.registry.model import Model

# Cells along a side of the image, and how many along a side of the square.
CELLS, COVERED = 8, 2


class Occluded(NamedTuple):
    """What covering a part of the image ``file`` changes, decoded as ``pixels`` says.

    ``drops`` (CELLS, CELLS) tells how much less probable the label is on average where
    a square covers the cell, top row first; below 0 it is more probable.
    """

    file: Path
    pixels: PixelSpec
    label: str
    confidence: float
    drops: np.ndarray


def occlude(model: Model, file: Path) -> Occluded:
    """What ``model`` says of the image ``file``, and which places it rests on.

    Raises:
        InvalidSpec: the model takes no images.
        RefusedImage: ``file`` is none.
        OSError: it cannot be read.
        WeightsError: the weights of one of the model's encoders are gone or changed.
    """
    ways: dict[Input, Preprocess] = {}
    for encoder in model.encoders:
        if not isinstance(encoder.preprocess, Preprocess):
            raise InvalidSpec(
                f"{encoder.label} takes no images: where a prediction comes from is "
                "shown of images alone"
            )
        ways[encoder.preprocess] = encoder.preprocess
    read_as = next(iter(ways.values())).pixels
    image = pixels.decode(file.read_bytes(), read_as)
    fed: list[Mapping[Input, Any]] = [
        {how: pixels.preprocess(one, how) for how in ways.values()}
        for one in (image, *_covered(image))
    ]
    said = model.predictor.probabilities(fed)
    label = int(said[0].argmax())
    places = CELLS - COVERED + 1
    changes = (said[0, label] - said[1:, label]).reshape(places, places)
    name, confidence = model.classes[label], float(said[0, label])
    return Occluded(file, read_as, name, confidence, _cells(changes))


def _covered(image: torch.Tensor) -> Iterator[torch.Tensor]:
    """``image`` (3, height, width), uint8, with each square covered, row by row."""
    height, width = image.shape[1:]
    colour = image.float().mean(dim=(1, 2), keepdim=True).round().to(torch.uint8)
    rows, columns = (
        np.linspace(0, length, CELLS + 1).round().astype(int)
        for length in (height, width)
    )
    for top in range(CELLS - COVERED + 1):
        for left in range(CELLS - COVERED + 1):
            one = image.clone()
            down = slice(rows[top], rows[top + COVERED])
            across = slice(columns[left], columns[left + COVERED])
            one[:, down, across] = colour
            yield one


def _cells(changes: np.ndarray) -> np.ndarray:
    """The mean of the squares over each cell."""
    total, number = np.zeros((2, CELLS, CELLS))
    for (top, left), change in np.ndenumerate(changes):
        place = np.s_[top : top + COVERED, left : left + COVERED]
        total[place] += change
        number[place] += 1
    return total / number

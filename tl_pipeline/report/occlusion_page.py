"""A page of images with the places that a model's predictions of them rest on."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tl_pipeline.inputs.images import decode
from tl_pipeline.registry.occlusion import Occluded
from tl_pipeline.report.page import TEMPLATES
from tl_pipeline.report.thumbnails import data_uri, fitted

_SIDE = 224  # pixels of the longer side of a picture
_STRONGEST = 0.75  # opacity
# Changes of probability by less are not drawn as strong as that.
_LEAST = 0.05


class Cell(NamedTuple):
    """A rectangle in shares of the picture, red or blue, with its opacity."""

    x: float
    y: float
    width: float
    height: float
    red: bool
    opacity: float


class Shown(NamedTuple):
    """One image of the page: its size in pixels, its source, what lies over it."""

    found: Occluded
    src: str
    width: int
    height: int
    cells: list[Cell]

    @property
    def points(self) -> tuple[float, float]:
        """What covering a cell takes from the label at most, and what it adds."""
        drops = 100 * self.found.drops
        return -max(drops.max(), 0.0) + 0.0, max(-drops.min(), 0.0)


def occlusion_page(model: str, found: Sequence[Occluded]) -> str:
    """The page as text, of images and what covering their parts changes."""
    shown = list(map(_shown, found))
    return TEMPLATES.get_template("occlusion.html").render(model=model, shown=shown)


def _shown(found: Occluded) -> Shown:
    image = decode(found.file.read_bytes(), found.pixels)
    width, height = fitted(image.size, _SIDE)
    return Shown(found, data_uri(image, _SIDE), width, height, _over(found.drops))


def _over(drops: np.ndarray) -> list[Cell]:
    """All cells, the strongest of the image at ``_STRONGEST``."""
    rows, columns = drops.shape
    most = max(float(abs(drops).max()), _LEAST)
    return [
        Cell(
            column / columns,
            row / rows,
            1 / columns,
            1 / rows,
            red=drop > 0,
            opacity=round(_STRONGEST * abs(float(drop)) / most, 3),
        )
        for (row, column), drop in np.ndenumerate(drops)
    ]

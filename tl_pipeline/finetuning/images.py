"""The images that a network learns from, with their classes. Imports torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tl_pipeline.finetuning import pixels


@dataclass(frozen=True)
class Images:
    """What a network is given for n images, with their class numbers ``targets`` (n,).

    ``values`` are pixels, uint8 (m, channels, side, side), or what frozen blocks give
    for them; image i has the row ``rows[i]`` of them. ``weights`` (n,) multiply the
    losses of their images and have mean 1. ``teacher`` is what another classifier says
    of them: probabilities, float32 (n, K); None where there is none.
    """

    values: torch.Tensor
    targets: np.ndarray
    rows: np.ndarray
    weights: np.ndarray | None = None
    teacher: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, some: np.ndarray) -> torch.Tensor:
        """The values of the images of these numbers."""
        kind = self.values.dtype  # numpy gathers rows faster, and has no bfloat16
        held = self.values.view(torch.int16) if kind == torch.bfloat16 else self.values
        return torch.from_numpy(held.numpy()[self.rows[some]]).view(kind)

    def part(self, wanted: np.ndarray) -> "Images":
        """Those that are ``wanted``, bool (n,); values stay where they lie."""
        return Images(
            self.values,
            self.targets[wanted],
            self.rows[wanted],
            None if self.weights is None else self.weights[wanted],
            None if self.teacher is None else self.teacher[wanted],
        )


def of_pixels(file: Path) -> torch.Tensor:
    """The values of images that ``pixels.keep`` wrote to ``file``."""
    return torch.from_numpy(pixels.opened(file))

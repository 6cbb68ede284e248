"""A detector reduced to the maps that its heads look at. Imports torch."""

from collections.abc import Iterable

import torch
from torch import nn


class FeaturePyramid(nn.Module):
    """The pyramid of ``detector``: (n, 3, height, width) to maps by level.

    It holds all parts of the detector under their names, so that weights of the whole
    fit it, but runs the backbone alone. ``level0`` is what torchvision calls "0". Each
    level ends in a module of its own, ``levels.NAME``, for feature extraction to name.
    """

    def __init__(self, detector: nn.Module, levels: Iterable[str]) -> None:
        super().__init__()
        for name, part in detector.named_children():
            self.add_module(name, part)
        self.levels = nn.ModuleDict({level: nn.Identity() for level in levels})

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every level's map (n, channels, height, width), normalised ``images`` in."""
        maps = self.get_submodule("backbone")(images)
        return {
            level: end(maps[level.removeprefix("level")])
            for level, end in self.levels.items()
        }

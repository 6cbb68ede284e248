"""What a call of the engine did, and how fast. Without torch."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tl_pipeline.store.timings import Clock, Timings


@dataclass
class EmbedStats:
    """What one call of ``engine.embed`` did for one encoder.

    ``width`` is of an embedding. ``timings`` holds its share of the time, loading
    apart; ``seconds_per_image`` what an image cost after the first batch, under this
    encoder alone, None where there were too few images to tell. ``rounding`` is the
    greatest share of its length that an embedding lost where it is kept in float16.
    """

    images: int = 0
    refused: int = 0
    width: int = 0
    timings: Timings = field(default_factory=Timings)
    seconds_per_image: float | None = None
    rounding: float = 0.0

    def __add__(self, other: "EmbedStats") -> "EmbedStats":
        return EmbedStats(
            images=self.images + other.images,
            refused=self.refused + other.refused,
            width=other.width or self.width,
            timings=self.timings + other.timings,
            seconds_per_image=other.seconds_per_image or self.seconds_per_image,
            rounding=max(self.rounding, other.rounding),
        )


class Pace:
    """What an image costs from the end of the first batch to the end of the last.

    The first one also pays for what a network prepares when it first runs.
    """

    _IMAGES = 128  # enough to outweigh those that were decoded meanwhile

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began: float | None = None
        self._images, self._seconds = 0, 0.0

    def add(self, images: int) -> None:
        """Count the images of a batch that is done."""
        now = time.perf_counter()
        if self._began is None:
            self._began = now
        else:
            self._images, self._seconds = self._images + images, now - self._began

    def seconds_per_image(self, keys: Sequence[str]) -> dict[str, float]:
        """The share of each encoder, by what its network worked; {} with too few."""
        if self._images < self._IMAGES:
            return {}
        own = {key: self._clock.of("forward", key) for key in keys}
        each = self._seconds / self._images
        total = sum(own.values()) or 1.0
        return {key: each * seconds / total for key, seconds in own.items()}

"""Samples of more than 8 bits, and bands without a name, to 8-bit RGB.

Which value is black and which is white is decided by the first of these that says it:

1. ``range`` of the dataset's entry (``PixelSpec``);
2. the file's own tags: SMinSampleValue and SMaxSampleValue, MinSampleValue and
   MaxSampleValue, a depth of 9 to 15 bits (TIFF, JPEG 2000), a maximum (PGM, PPM),
   significant bits (PNG);
3. the type of the samples, if they use it: unsigned integers whose largest is in the
   upper half of what their 16 or 32 bits hold, floating numbers from 0 to 1 whose
   largest is above 0.5.

Nothing else is guessed: 12-bit values in 16 bits, signed integers and other floating
numbers are refused without a ``range``. MinIsWhite turns whatever range it is around.
Values outside are clipped, NaN is black. Samples of 8 bits need no range.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tl_pipeline.config.dataset_entry import PixelSpec
from tl_pipeline.inputs.refusals import RefusedImage

Range = tuple[float, float]  # black, white

GREY, RGB, CMYK = 1, 3, 4  # how many bands a file names
_STRIP = 1 << 20  # samples scaled at once
_DEPTHS = (8, 10, 12, 14, 16, 24, 32)  # to propose a range by
_CONTAINERS = (16, 32, 64)  # bits that say nothing of the values in them


@dataclass(frozen=True)
class Layout:
    """What a file says of its samples.

    ``kind`` is u (unsigned), i (signed) or f (floating), ``bits`` those of one sample.
    Of ``bands`` the first ``named`` are GREY, RGB or CMYK; 0 where the file names none.
    ``alpha`` tells of the band behind them: straight, premultiplied or "" (there is
    none). ``told`` is the range that the file tells.
    """

    kind: str
    bits: int
    bands: int
    named: int
    alpha: str = ""
    told: Range | None = None
    min_is_white: bool = False

    def chosen(self, how: PixelSpec) -> list[int]:
        """The bands to be shown, from 0.

        Raises:
            RefusedImage: nobody says which.
        """
        if self.named:
            return list(range(self.named))
        if how.channels is None:
            raise RefusedImage(
                "unknown bands",
                f"{self.bands} bands of {self.bits} bits, and the file does not say "
                "which are red, green and blue. Say it in the entry of the dataset, as "
                f"in channels: {'[3, 2, 1]' if self.bands >= 3 else '[1]'}"
                + ("" if self.known_range(how) else ", and range: [BLACK, WHITE]"),
            )
        if max(how.channels) > self.bands:
            raise RefusedImage(
                "unknown bands",
                f"there are {self.bands}, and the entry asks for "
                f"channels: {list(how.channels)}",
            )
        return [channel - 1 for channel in how.channels]

    def known_range(self, how: PixelSpec) -> Range | None:
        """Black and white, if that is known without a look at the samples."""
        if self.kind == "u" and self.bits <= 8:
            return 0, 2**self.bits - 1
        if how.range is not None:
            return how.range
        if self.told is not None:
            return self.told
        if self.kind == "u" and self.bits not in _CONTAINERS:
            return 0, 2**self.bits - 1
        return None

    @property
    def full_range(self) -> Range:
        """What the type of the samples holds, floating numbers 0 to 1."""
        if self.kind == "u":
            return 0, 2**self.bits - 1
        half = 2 ** (self.bits - 1)
        return (-half, half - 1) if self.kind == "i" else (0, 1)


def to_rgb(values: np.ndarray, layout: Layout, how: PixelSpec) -> Image.Image:
    """``values``, of shape (height, width, bands), as 8-bit RGB.

    Transparency is laid on white.

    Raises:
        RefusedImage: nobody says which bands, or which range.
    """
    chosen = layout.chosen(how)
    shown = values[..., chosen]
    black, white = layout.known_range(how) or _used_range(shown, layout)
    if layout.min_is_white:
        black, white = white, black
    eight = _scaled(shown, black, white)
    if layout.named == CMYK:
        eight = np.asarray(Image.fromarray(eight, "CMYK").convert("RGB"))
    if eight.shape[2] == GREY:
        eight = np.repeat(eight, RGB, axis=2)
    if not layout.alpha:
        return Image.fromarray(eight)
    opacity = _scaled(values[..., layout.named, None], *layout.full_range)
    if layout.alpha == "premultiplied":
        lit = eight.astype(np.uint16) + (255 - opacity)
        return Image.fromarray(np.minimum(lit, 255).astype(np.uint8))
    return on_white(Image.fromarray(np.concatenate([eight, opacity], axis=2)))


def on_white(rgba: Image.Image) -> Image.Image:
    """An image with transparency as RGB on a white ground."""
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _used_range(values: np.ndarray, layout: Layout) -> Range:
    """The range of the type, if ``values`` use it.

    Raises:
        RefusedImage: they do not.
    """
    black, white = layout.full_range
    if layout.kind == "f":
        values = values[np.isfinite(values)]
    if not values.size:
        raise RefusedImage("unknown range", "no sample is a finite number")
    low, high = float(values.min()), float(values.max())
    if layout.kind != "i" and black <= low and white / 2 < high <= white:
        return black, white
    top = next((2**n - 1 for n in _DEPTHS if high < 2**n), high)
    guess = [0, top] if layout.kind == "u" else [_short(low), _short(high)]
    what = {"u": "integers", "i": "signed integers", "f": "floating numbers"}
    raise RefusedImage(
        "unknown range",
        f"{layout.bits}-bit {what[layout.kind]} from {_short(low)} to {_short(high)}, "
        "and the file does not say which value is white. Say it in the entry of the "
        f"dataset: range: [BLACK, WHITE], such as {guess}",
    )


def _short(value: float) -> float:
    return int(value) if value == int(value) else float(f"{value:.4g}")


def _scaled(values: np.ndarray, black: float, white: float) -> np.ndarray:
    """Black to 0 and white to 255, rounded and clipped."""
    if values.dtype == np.uint8 and (black, white) == (0, 255):
        return values
    if values.dtype in (np.uint8, np.uint16):
        every = np.arange(np.iinfo(values.dtype).max + 1)
        return _computed(every, black, white)[values]
    found = np.empty(values.shape, np.uint8)
    for rows in _strips(values.shape):
        found[rows] = _computed(values[rows], black, white)
    return found


def _computed(values: np.ndarray, black: float, white: float) -> np.ndarray:
    shares = (values.astype(np.float64) - black) * (255.0 / (white - black))
    return np.rint(np.nan_to_num(shares.clip(0, 255))).astype(np.uint8)


def _strips(shape: tuple[int, ...]) -> Iterator[slice]:
    rows = max(1, _STRIP // (shape[1] * shape[2]))
    return (slice(top, top + rows) for top in range(0, shape[0], rows))

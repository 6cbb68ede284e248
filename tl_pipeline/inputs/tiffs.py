"""TIFF: which of its pages is the image, and what tifffile reads that Pillow cannot.

Pillow reads images of up to 8 bits whose bands have names. Of more bits it drops the
lower ones, garbles planes, takes MinIsWhite for MinIsBlack and wraps what is signed;
those, and files of many bands, are read by tifffile (see ``samples`` for their range).
"""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tl_pipeline.config.dataset_entry import PixelSpec
from tl_pipeline.inputs.refusals import DEVELOP, UNSUPPORTED, RefusedImage
from tl_pipeline.inputs.samples import Layout, Range, to_rgb

_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Its warnings name no file: nobody could act on them.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)
# Photometric interpretations, and the bands that they name: MinIsWhite, MinIsBlack,
# RGB, a palette, CMYK, YCbCr, CIELab.
_NAMED = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}
_OF_SAMPLES = {0: 1, 1: 1, 2: 3, 5: 4}  # those that ``samples`` knows
_RAW = (32803, 34892)  # colour filter array, linear raw
_BITS_PER_SAMPLE, _DNG_VERSION, _SUB_IFDS = 258, 50706, 330
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_ALPHA = {1: "premultiplied", 2: "straight"}  # ExtraSamples
_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}  # SampleFormat
_RANGES = ((340, 341), (280, 281))  # SMin- and SMaxSampleValue, Min- and MaxSampleValue
_UNCOMPRESSED = 1
_MOST_BYTES = 1 << 31  # of samples in memory
_LYING = (5, 6, 7, 8)


def is_tiff(data: bytes) -> bool:
    """Whether ``data`` begins as TIFF or BigTIFF does."""
    return data.startswith(_STARTS)


class _Found(NamedTuple):
    """The page that is the image, by tifffile, and its place in the file."""

    page: Any
    place: int


def size(data: bytes, how: PixelSpec) -> tuple[int, int]:
    """Width and height in pixels of the upright image.

    Samples are read only if it depends on them whether their range is known.

    Raises:
        RefusedImage: it is none, see ``decode``.
    """
    with _opened(data, how) as (page, _):
        if not _for_pillow(page):
            layout = _layout(page)
            layout.chosen(how)
            if layout.known_range(how) is None:
                return _decoded(page, how).size
        width, height = page.imagewidth, page.imagelength
        return (height, width) if _orientation(page) in _LYING else (width, height)


def decode(data: bytes, how: PixelSpec) -> Image.Image:
    """The image, whose orientation is that of the file if Pillow reads it.

    Raises:
        RefusedImage: several pages, bands or a range that nobody names, a kind of
            pixels that is not known, or damage.
    """
    with _opened(data, how) as (page, place):
        if not _for_pillow(page):
            return _decoded(page, how)
    image = Image.open(io.BytesIO(data))
    image.seek(place)
    return image


@contextmanager
def _opened(data: bytes, how: PixelSpec) -> Iterator[_Found]:
    import tifffile  # noqa: PLC0415 - takes a tenth of a second

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            found = _image(data, tiff, how)
            _check_bits(found.page)
            yield found
    except RefusedImage:
        raise
    # Decoders of damaged data raise what they please; each is this image's fault.
    except Exception as error:  # noqa: BLE001
        raise RefusedImage("undecodable", f"{error}"[:200]) from None


def _image(data: bytes, tiff: Any, how: PixelSpec) -> _Found:
    """The page that is the image: not a thumbnail, a mask or one of several."""
    if _is_raw(data, tiff):
        raise RefusedImage(UNSUPPORTED, f"it is a raw photo of a camera; {DEVELOP}")
    pages = [_Found(page, place) for place, page in enumerate(tiff.pages)]
    whole = [f for f in pages if not f.page.subfiletype & (_REDUCED | _MASK)] or pages
    stacked = int((tiff.imagej_metadata or {}).get("images", 1))
    number = max(len(whole), stacked)
    if number > 1 and how.page is None:
        raise RefusedImage(
            "several pages",
            f"{number} images in one TIFF. Say in the entry of the dataset which is "
            "meant, as in page: 1, or write each to a file of its own",
        )
    place = (how.page or 1) - 1
    if number == 1:
        return whole[0]
    if place >= len(whole):
        raise RefusedImage(
            "several pages",
            f"there are {len(whole)}, and the entry asks for page: {how.page}",
        )
    return whole[place]


def _check_bits(page: Any) -> None:
    """Refuse bits per sample that are lost; their default, 1, is for black and white.

    Raises:
        RefusedImage: the tag is missing or damaged.
    """
    row = -(-page.imagewidth // 8)
    bilevel = page.samplesperpixel == 1 and (
        int(page.compression) != _UNCOMPRESSED
        or sum(page.databytecounts) <= row * page.imagelength
    )
    if _BITS_PER_SAMPLE not in page.tags and not bilevel:
        raise RefusedImage("undecodable", "it does not say how many bits a sample has")


def _is_raw(data: bytes, tiff: Any) -> bool:
    """Whether this is what a sensor measured, beside a thumbnail or a preview."""
    first = tiff.pages[0]
    if data[8:10] == b"CR" or _DNG_VERSION in first.tags:
        return True
    if first.subfiletype & _REDUCED and _SUB_IFDS in first.tags:
        return True
    return int(first.photometric) in _RAW


def _for_pillow(page: Any) -> bool:
    """Whether Pillow gives the pixels of ``page`` as they are meant."""
    named = _NAMED.get(int(page.photometric))
    bands, bits = page.samplesperpixel, page.bitspersample
    if named is None or int(page.sampleformat) != 1:
        return False
    if not (bits == 8 or (bands == 1 and bits in (1, 2, 4))):
        return False
    extra = tuple(map(int, page.extrasamples))
    if bands == named + 1:
        return named == 3 or extra in ((1,), (2,))
    return bands == named


def _layout(page: Any) -> Layout:
    """What the tags say of samples that Pillow does not read.

    Raises:
        RefusedImage: they are of a kind that is not known.
    """
    photometric, bits = int(page.photometric), page.bitspersample
    kind = _KINDS.get(int(page.sampleformat))
    named, bands = _OF_SAMPLES.get(photometric), page.samplesperpixel
    if kind is None or named is None or not isinstance(bits, int) or bands < named:
        name = getattr(page.photometric, "name", photometric)
        raise RefusedImage(
            UNSUPPORTED,
            f"a TIFF of {bands} bands of {bits} bits, {name}; convert it to PNG",
        )
    if page.imagewidth * page.imagelength * bands * -(-bits // 8) > _MOST_BYTES:
        raise RefusedImage(
            "too many pixels", f"{page.imagewidth}x{page.imagelength}x{bands}"
        )
    extra = tuple(map(int, page.extrasamples))
    alpha = _ALPHA.get(extra[0], "") if len(extra) == bands - named and extra else ""
    # Grey and something else: nobody says which band is meant.
    if named == 1 and bands > 1 + bool(alpha):
        named, alpha = 0, ""
    layout = Layout(kind, bits, bands, named, alpha, min_is_white=photometric == 0)
    return Layout(**{**vars(layout), "told": _told(page, layout)})


def _told(page: Any, layout: Layout) -> Range | None:
    """The range that the tags tell, unless it is merely what the type holds."""
    for low, high in _RANGES:
        if high not in page.tags:
            continue
        whites = np.atleast_1d(page.tags[high].value)
        blacks = np.atleast_1d(page.tags[low].value if low in page.tags else 0)
        found = float(blacks.min()), float(whites.max())
        signed = layout.kind == "i" and low not in page.tags
        if found[0] < found[1] and found != layout.full_range and not signed:
            return found
    return None


def _decoded(page: Any, how: PixelSpec) -> Image.Image:
    """The upright image, by tifffile."""
    layout = _layout(page)
    layout.chosen(how)
    values = page.asarray(maxworkers=1)
    axes = page.axes
    if axes == "SYX":
        values, axes = np.moveaxis(values, 0, -1), "YXS"
    if axes not in ("YX", "YXS"):
        raise RefusedImage(UNSUPPORTED, f"a TIFF whose axes are {axes}")
    if values.dtype == bool:
        values = values.astype(np.uint8)
    values = values.reshape(*values.shape[:2], -1)
    return upright(to_rgb(values, layout, how), _orientation(page))


def _orientation(page: Any) -> int:
    tag = page.tags.get(274)
    return int(tag.value) if tag else 1


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """``image`` turned as its orientation, 1 to 8, says."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)

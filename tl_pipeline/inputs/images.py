"""What bytes are an image: probe and decode, and how networks are fed.

Pillow decodes what has 8 bits. What has more, or bands without a name, becomes 8-bit
RGB by the rule in ``samples``.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from PIL import (
    ExifTags,
    Image,
    ImageFile,
    ImageOps,
    PngImagePlugin,
    UnidentifiedImageError,
)
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler
from pydantic import model_serializer as serializer

from tl_pipeline.config.dataset_entry import PixelSpec
from tl_pipeline.inputs import tiffs
from tl_pipeline.inputs.headers import jpeg_size
from tl_pipeline.inputs.refusals import UNSUPPORTED, RefusedImage, unknown
from tl_pipeline.inputs.samples import Layout, on_white, to_rgb

# PIL warns of decompression bombs from 89 Mpixel and refuses from twice that. Photos of
# 100 Mpixel exist, so only the refusal counts here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# "Corrupt EXIF data" and the like name no file: nobody could act on them.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# A workflow or a prompt in a PNG may be larger than 1 MB; all texts of one are limited
# to 64 MB as ever.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
AS_IS = PixelSpec()
_ORIENTATION, _LYING = ExifTags.Base.Orientation, (5, 6, 7, 8)
_TURNED = range(2, 9)
# What bytes say of how an image is turned, wherever they stand in the file.
_MARKS = (b"Exif", b"eXIf", b"tiff:Orientation", b"Raw profile type exif")
MOST_PIXELS = 2 * 89_478_485  # where PIL refuses to decode


class Preprocess(BaseModel):
    """How an image becomes the input of a network, field by field.

    The shorter side is resized to ``resize`` pixels, both are if ``squash``, the longer
    one if ``pad``; the centre ``crop`` x ``crop`` is cut out, values go to [0, 1] and
    then to (value - mean) / std per channel. What is missing around a smaller image is
    black, and the mean if ``pad``. ``pixels`` is what the entry of the dataset says of
    how its files are read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    resize: int
    crop: int
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    antialias: Literal[True] = True  # always so; it stands in every key
    grey: bool = False
    mean: tuple[float, ...]
    std: tuple[float, ...]
    squash: bool = False
    pad: bool = False
    pixels: PixelSpec = AS_IS

    @serializer(mode="wrap")
    def _fields(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The last three only where they are set: keys are older than they."""
        fields = dump(self)
        for name in ("squash", "pad"):
            if not fields[name]:
                del fields[name]
        del fields["pixels"]
        if self.pixels != AS_IS:
            fields["pixels"] = self.pixels.model_dump(exclude_defaults=True)
        return fields


def probe(data: bytes, how: PixelSpec = AS_IS) -> tuple[int, int]:
    """Width and height in pixels of the upright image, from the header alone.

    The pixels are read where it depends on them whether their range is known.

    Raises:
        RefusedImage: empty, not an image, zero-sized, over the pixel limit, or of
            pages, bands or a range that nobody names.
    """
    width, height = jpeg_size(data) or _size(data, how)
    check_size(width, height)
    if width < 1 or height < 1:
        raise RefusedImage("zero-sized", f"{width}x{height} pixels")
    return width, height


def check_size(width: int, height: int) -> None:
    """Refuse what is over the pixel limit.

    Raises:
        RefusedImage: it is.
    """
    if width * height > MOST_PIXELS:
        raise RefusedImage("too many pixels", f"{width}x{height}")


def decode(data: bytes, how: PixelSpec = AS_IS) -> Image.Image:
    """The upright image in 8-bit RGB.

    EXIF orientation is applied, transparency is laid on white, an animation gives its
    first frame, more than 8 bits are scaled as ``samples`` says. ``how`` decides what
    a file does not say itself.

    Raises:
        RefusedImage: as ``probe``, or the pixels are truncated or damaged.
    """
    with _opened(data, how) as image:
        try:
            found = _loaded(image, data, how)
            _turn_upright(found)
            return _rgb(found, how)
        except Image.DecompressionBombError as error:
            raise RefusedImage("too many pixels", str(error)) from None
        except RefusedImage:
            raise
        # Decoders of damaged data raise what they please; each is this image's fault.
        except Exception as error:  # noqa: BLE001
            raise _damaged(error) from None


def orientation(data: bytes) -> int | None:
    """How EXIF says that a JPEG must be turned, 2 to 8; None where it is upright."""
    if jpeg_size(data) or not any(mark in data for mark in _MARKS):
        return None
    with _opened(data, AS_IS) as image:
        found = _told_orientation(image)
        return found if found in _TURNED else None


def as_ppm(values: np.ndarray) -> bytes:
    """Pixels as a binary PGM or PPM: uint8 of shape (height, width) or (..., 3).

    For sources that hold arrays and not files: unlike PNG, its bytes do not depend on
    the version of a compressor, so neither do image ids.
    """
    grey = values.ndim == 2
    header = f"{'P5' if grey else 'P6'}\n{values.shape[1]} {values.shape[0]}\n255\n"
    return header.encode() + np.ascontiguousarray(values, np.uint8).tobytes()


def _opened(data: bytes, how: PixelSpec) -> Image.Image:
    """The image, not yet decoded where Pillow decodes it, perhaps not yet upright."""
    if not data:
        raise RefusedImage("empty", "no bytes")
    try:
        if tiffs.is_tiff(data):
            return tiffs.decode(data, how)
        deep = _deep(data)
        return deep(data, how) if deep else Image.open(io.BytesIO(data))
    except RefusedImage:
        raise
    except UnidentifiedImageError:
        raise unknown(data) from None
    except Image.DecompressionBombError as error:
        raise RefusedImage("too many pixels", str(error)) from None
    except Exception as error:  # noqa: BLE001 - see decode
        raise _damaged(error) from None


def _damaged(error: Exception) -> RefusedImage:
    cure = ""
    if "truncated" in str(error) or "broken data stream" in str(error):
        cure = "; copy it anew, or say truncated: accept in the entry of the dataset"
    return RefusedImage("undecodable", f"{error}"[:200] + cure)


def _loaded(image: Image.Image, data: bytes, how: PixelSpec) -> Image.Image:
    """``image`` decoded; of a cut one what there is, where the entry accepts that."""
    try:
        image.load()
    except OSError as error:
        if how.truncated == "refuse" or "truncated" not in str(error):
            raise
        if image.format in ("JPEG", "MPO"):  # it gives its last rows at the end only
            image = Image.open(io.BytesIO(data + b"\xff\xd9"))
            image.load()
        elif isinstance(image, ImageFile.ImageFile):
            image.tile = []  # what was decoded is taken for all
    return image


def _size(data: bytes, how: PixelSpec) -> tuple[int, int]:
    if tiffs.is_tiff(data):
        return tiffs.size(data, how)
    with _opened(data, how) as image:
        width, height = image.size
        told = {"exif", "xmp"} & image.info.keys()
        if told or any(mark in data for mark in _MARKS):
            lying = _told_orientation(image) in _LYING
            return (height, width) if lying else (width, height)
        return width, height


def _told_orientation(image: Image.Image) -> int | None:
    # Damaged EXIF raises what it pleases; as in a viewer, it then says nothing.
    with contextlib.suppress(Exception):
        return image.getexif().get(_ORIENTATION)
    return None


def _turn_upright(image: Image.Image) -> None:
    # In place: a copy of a photo of 100 Mpixel is 400 MB. Damaged EXIF: as above.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


def _rgb(image: Image.Image, how: PixelSpec) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith(("I", "F")):
        return to_rgb(np.asarray(image)[..., None], _of_mode(image), how)
    if image.has_transparency_data:
        return on_white(image.convert("RGBA"))
    return image.convert("RGB")


def _of_mode(image: Image.Image) -> Layout:
    """What is known of grey of more than 8 bits as Pillow gives it."""
    if image.mode == "F":
        return Layout("f", 32, 1, 1)
    if image.mode.startswith("I;16") or image.format == "PPM":
        return Layout("u", 16, 1, 1)
    return Layout("i", 32, 1, 1)


Decoder = Callable[[bytes, PixelSpec], Image.Image]
_PNG = re.compile(rb"\x89PNG\r\n\x1a\n....IHDR(.{4})(.{4})\x10([\0\2\4\6])", re.DOTALL)
_PNM = re.compile(rb"P([56])" + rb"(?:\s|#[^\n]*\n)+([0-9]{1,9})" * 3 + rb"\s")
_JP2 = re.compile(rb"\xff\x4f\xff\x51.{36}(..)(.)", re.DOTALL)
_JP2_STARTS = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")


def _deep(data: bytes) -> Decoder | None:
    """What decodes formats of which Pillow drops, or garbles, all but 8 bits."""
    if _PNG.match(data):
        return _png
    pnm = _PNM.match(data)
    if pnm and int(pnm[4]) > 255:
        return _pnm
    if data.startswith(_JP2_STARTS):
        siz = _JP2.search(data)
        if siz and siz[2][0] != 7:  # not unsigned of 8 bits
            return _jp2
    return None


def _png(data: bytes, how: PixelSpec) -> Image.Image:
    """A PNG of 16 bits."""
    import imagecodecs  # noqa: PLC0415 - seldom needed

    header = _PNG.match(data)
    assert header  # noqa: S101 - see _deep
    check_size(*(int.from_bytes(side, "big") for side in header.group(1, 2)))
    values = imagecodecs.png_decode(data)
    values = values.reshape(*values.shape[:2], -1)
    bands = values.shape[2]
    layout = Layout(
        "u",
        16,
        bands,
        1 if bands < 3 else 3,
        alpha="" if bands % 2 else "straight",
        told=_significant(data, values),
    )
    return _with_exif(to_rgb(values, layout, how), data)


def _significant(data: bytes, values: np.ndarray) -> tuple[int, int] | None:
    """The range of a PNG that says how many of its 16 bits are significant.

    They should be the upper ones; where no value needs them, they are the lower ones.
    """
    at = data.find(b"sBIT", 0, data.find(b"IDAT"))
    bits = data[at + 4] if at > 0 else 16
    if at < 0 or not 0 < bits <= 16:
        return None
    lower = values.max(initial=0) < 1 << bits
    if bits < 16 and lower and (values % (1 << (16 - bits))).any():
        return 0, (1 << bits) - 1
    return 0, 65535


def _with_exif(image: Image.Image, data: bytes) -> Image.Image:
    """``image`` as the metadata of the PNG ``data`` turn it."""
    if not any(mark in data for mark in _MARKS):
        return image
    with Image.open(io.BytesIO(data)) as told:
        found = _told_orientation(told)
    return tiffs.upright(image, found or 1)


def _pnm(data: bytes, how: PixelSpec) -> Image.Image:
    """A binary PGM or PPM of more than 8 bits."""
    header = _PNM.match(data)
    assert header  # noqa: S101 - see _deep
    bands = 1 if header[1] == b"5" else 3
    width, height, top = map(int, header.group(2, 3, 4))
    check_size(width, height)
    samples = width * height * bands
    if how.truncated == "accept":
        data = data.ljust(header.end() + 2 * samples, b"\0")
    if top > 65535 or len(data) - header.end() < 2 * samples:
        raise OSError("image file is truncated")
    values = np.frombuffer(data, ">u2", samples, header.end()).astype(np.uint16)
    told = (0, top) if top < 65535 else None
    layout = Layout("u", 16, bands, bands, told=told)
    return to_rgb(values.reshape(height, width, bands), layout, how)


def _jp2(data: bytes, how: PixelSpec) -> Image.Image:
    """A JPEG 2000 whose samples are not unsigned of 8 bits."""
    import imagecodecs  # noqa: PLC0415 - seldom needed

    siz = _JP2.search(data)
    assert siz  # noqa: S101 - see _deep
    first, bands = siz[2][0], int.from_bytes(siz[1], "big")
    if set(data[siz.start(2) : siz.start(2) + 3 * bands : 3]) != {first}:
        raise RefusedImage(UNSUPPORTED, "a JPEG 2000 whose bands differ in their bits")
    bits, kind = (first & 127) + 1, "i" if first & 128 else "u"
    with Image.open(io.BytesIO(data)) as image:
        check_size(*image.size)
    values = imagecodecs.jpeg2k_decode(data)
    values = values.reshape(*values.shape[:2], -1)
    named = {1: 1, 2: 1, 3: 3, 4: 3}.get(bands, 0)
    alpha = "straight" if bands in (2, 4) else ""
    return to_rgb(values, Layout(kind, bits, bands, named, alpha), how)

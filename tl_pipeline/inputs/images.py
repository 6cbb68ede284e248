"""What bytes are an image: probe and decode by PIL, and how networks are fed."""

import contextlib
import io
import warnings
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler
from pydantic import model_serializer as serializer

from tl_pipeline.inputs.headers import jpeg_size

# PIL warns of decompression bombs from 89 Mpixel and refuses from twice that. Photos of
# 100 Mpixel exist, so only the refusal counts here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# "Corrupt EXIF data" and the like name no file: nobody could act on them.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
_ORIENTATION, _LYING = ExifTags.Base.Orientation, (5, 6, 7, 8)
_TURNED, _MARKS = range(2, 9), (b"Exif", b"tiff:Orientation")
MOST_PIXELS = 2 * 89_478_485  # where PIL refuses to decode


class RefusedImage(Exception):
    """These bytes are no image that can be embedded; ``reason`` is a word or two."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class Preprocess(BaseModel):
    """How an image becomes the input of a network, field by field.

    The shorter side is resized to ``resize`` pixels, or both are if ``squash``; the
    centre ``crop`` x ``crop`` is cut out, values go to [0, 1] and then to
    (value - mean) / std per channel.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    resize: int
    crop: int
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    antialias: bool = True
    grey: bool = False
    mean: tuple[float, ...]
    std: tuple[float, ...]
    squash: bool = False

    @serializer(mode="wrap")
    def _fields(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """``squash`` only where it is so: keys are older than the field."""
        fields = dump(self)
        return (
            fields
            if self.squash
            else {k: v for k, v in fields.items() if k != "squash"}
        )


def probe(data: bytes) -> tuple[int, int]:
    """Width and height in pixels of the upright image, from the header alone.

    Raises:
        RefusedImage: empty, not an image, zero-sized, or over the pixel limit.
    """
    width, height = jpeg_size(data) or _size(data)
    if width * height > MOST_PIXELS:
        raise RefusedImage("too many pixels", f"{width}x{height}")
    if width < 1 or height < 1:
        raise RefusedImage("zero-sized", f"{width}x{height} pixels")
    return width, height


def decode(data: bytes) -> Image.Image:
    """The upright image in 8-bit RGB.

    EXIF orientation is applied, transparency is laid on white, 16-bit and floating grey
    is scaled to 8 bit, an animation gives its first frame.

    Raises:
        RefusedImage: as ``probe``, or the pixels are truncated or damaged.
    """
    with _opened(data) as image:
        try:
            image.load()
            _turn_upright(image)
            return _rgb(image)
        except Image.DecompressionBombError as error:
            raise RefusedImage("too many pixels", str(error)) from None
        # Decoders of damaged data raise what they please; each is this image's fault.
        except Exception as error:  # noqa: BLE001
            raise RefusedImage("undecodable", f"{error}"[:200]) from None


def orientation(data: bytes) -> int | None:
    """How EXIF says that a JPEG must be turned, 2 to 8; None where it is upright."""
    if jpeg_size(data) or not any(mark in data for mark in _MARKS):
        return None
    with _opened(data) as image, contextlib.suppress(Exception):  # as in _turn_upright
        found = image.getexif().get(_ORIENTATION)
        return found if found in _TURNED else None
    return None


def as_ppm(values: np.ndarray) -> bytes:
    """Pixels as a binary PGM or PPM: uint8 of shape (height, width) or (..., 3).

    For sources that hold arrays and not files: unlike PNG, its bytes do not depend on
    the version of a compressor, so neither do image ids.
    """
    grey = values.ndim == 2
    header = f"{'P5' if grey else 'P6'}\n{values.shape[1]} {values.shape[0]}\n255\n"
    return header.encode() + np.ascontiguousarray(values, np.uint8).tobytes()


def _opened(data: bytes) -> Image.Image:
    if not data:
        raise RefusedImage("empty", "no bytes")
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise RefusedImage(
            "not an image", f"{len(data)} bytes, no known format"
        ) from None
    except Image.DecompressionBombError as error:
        raise RefusedImage("too many pixels", str(error)) from None
    except Exception as error:  # noqa: BLE001 - see decode
        raise RefusedImage("undecodable", f"{error}"[:200]) from None


def _size(data: bytes) -> tuple[int, int]:
    with _opened(data) as image:
        width, height = image.size
        if _lies_on_its_side(image):
            width, height = height, width
    return width, height


def _lies_on_its_side(image: Image.Image) -> bool:
    if "exif" not in image.info and image.format != "TIFF":
        return False
    # Damaged EXIF raises what it pleases; as in a viewer, it then says nothing.
    try:
        return image.getexif().get(_ORIENTATION, 1) in _LYING
    except Exception:  # noqa: BLE001
        return False


def _turn_upright(image: Image.Image) -> None:
    # In place: a copy of a photo of 100 Mpixel is 400 MB. Damaged EXIF: as above.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        grey = np.clip(
            np.rint(values * (255.0 / _white(image.mode, values))), 0, 255
        ).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _white(mode: str, values: np.ndarray) -> float:
    """The value that means white in a grey image of more than 8 bits.

    Modes that begin with ``I;16`` say so; 32-bit integers and floats do not, and are
    read as the smallest of 1, 8-bit and 16-bit white that holds all their values.
    """
    if mode.startswith("I;16"):
        return 65535.0
    top = values.max(initial=0)
    whites = (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0)
    return next((white for white in whites if top <= white), float(top))

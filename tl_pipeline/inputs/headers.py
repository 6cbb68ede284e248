"""What a few bytes of their header say of the commonest images.

PIL's own probe of a JPEG costs more than reading and hashing a small file; this one
costs next to nothing, and whatever it does not understand it leaves to PIL.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

_START = b"\xff\xd8\xff"
_JFIF, _EXIF, _ADOBE, _SCAN = 0xE0, 0xE1, 0xEE, 0xDA
# Baseline, extended and progressive frames: what libjpeg decodes.
_FRAMES = (0xC0, 0xC1, 0xC2)
# Segments without a length: after the start of an image they do not belong.
_OTHER = (0x01, *range(0xD0, 0xDA))
_OTHER_FRAMES = frozenset({*range(0xC1, 0xD0)} - {0xC4})
_COLOURS, _BITS, _FRAME_OF_COLOUR = 3, 8, 15


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a plain JPEG; None for anything else, or one with EXIF.

    EXIF, which may follow the frame, may say that the image lies on its side (ITU-T
    T.81, annex B, has the format).
    """
    size = None
    for marker, at in _segments(data):
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            size = width, height
        elif marker == _EXIF:
            return None
        elif marker == _SCAN:
            return size
    return None


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """The marker of each segment of a JPEG and where it is, the scan the last."""
    if not data.startswith(_START):
        return
    at, last = 2, len(data) - 9
    while at <= last and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _OTHER:
            return
        else:
            yield marker, at
            if marker == _SCAN:
                return
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")


class Baseline(NamedTuple):
    """A JPEG of the baseline process, its colours YCbCr and all of them in one scan.

    ``sampling`` is how many values of luma there are for one of each chroma, down and
    across. ``exif`` is whether there is some.
    """

    height: int
    width: int
    sampling: tuple[int, int]
    exif: bool


def baseline(data: bytes) -> Baseline | None:
    """What the header of such a JPEG says; None of anything else."""
    told, exif, frame = False, False, None
    for marker, at in _segments(data):
        if marker == _SCAN:
            whole = data[at + 4] == _COLOURS
            return Baseline(*frame, exif) if frame and whole else None
        if marker == _FRAMES[0]:
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            frame = _of_colour(data[at + 4 : end], told=told)
        elif marker in _OTHER_FRAMES:
            return None
        elif marker == _ADOBE and data[at + 4 : at + 9] == b"Adobe":
            if data[at + 15 : at + 16] != b"\x01":  # its colours are not YCbCr
                return None
            told = True
        told |= marker == _JFIF
        exif |= marker == _EXIF
    return None


def _of_colour(frame: bytes, *, told: bool) -> tuple[int, int, tuple[int, int]] | None:
    """Height, width and sampling of a frame whose components are Y, Cb and Cr.

    Without a JFIF segment (``told``) only their usual numbers say that they are.
    """
    if len(frame) != _FRAME_OF_COLOUR or frame[0] != _BITS or frame[5] != _COLOURS:
        return None
    names, factors = frame[6::3], frame[7::3]
    if not (told or names == bytes((1, 2, 3))) or factors[1:] != b"\x11\x11":
        return None
    height, width = struct.unpack_from(">HH", frame, 1)
    return height, width, (factors[0] & 15, factors[0] >> 4)

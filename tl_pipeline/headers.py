"""The size of the commonest images from a few bytes of their header.

PIL's own probe of a JPEG costs more than reading and hashing a small file; this one
costs next to nothing, and whatever it does not understand it leaves to PIL.
"""

import struct

_START = b"\xff\xd8\xff"
_EXIF = 0xE1
# Baseline, extended and progressive frames: what libjpeg decodes.
_FRAMES = (0xC0, 0xC1, 0xC2)
# Segments without a length, and those after which no frame header comes.
_OTHER = (0x01, *range(0xD0, 0xDB))


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a plain JPEG; None for anything else, or one with EXIF.

    EXIF may say that the image lies on its side (ITU-T T.81, annex B, has the format).
    """
    if not data.startswith(_START):
        return None
    at, last = 2, len(data) - 9
    while at <= last and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == _EXIF or marker in _OTHER:
            return None
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None

"""Why bytes are refused, and what a file is that no decoder here knows."""

from typing import NamedTuple


class RefusedImage(Exception):
    """These bytes are no image that can be embedded; ``reason`` is a word or two."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


UNSUPPORTED = "unsupported format"
NOT_AN_IMAGE = "not an image"
_CONVERT = "convert it to JPEG or PNG"
DEVELOP = "develop it to JPEG or 16-bit PNG"


class _Kind(NamedTuple):
    """What a file is that has ``magic`` at ``offset``, and what to do about it."""

    offset: int
    magic: bytes
    reason: str
    name: str
    cure: str


_KINDS = (
    *(
        _Kind(8, brand, UNSUPPORTED, "a HEIC photo", f"{_CONVERT} (heif-convert)")
        for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
    ),
    *(
        _Kind(8, brand, UNSUPPORTED, "an AVIF image that Pillow cannot read", _CONVERT)
        for brand in (b"avif", b"avis")
    ),
    _Kind(8, b"crx ", UNSUPPORTED, "a raw photo of a camera (CR3)", DEVELOP),
    _Kind(4, b"ftyp", NOT_AN_IMAGE, "a video", "take frames out of it"),
    _Kind(0, b"\xff\x0a", UNSUPPORTED, "a JPEG XL image", f"{_CONVERT} (djxl)"),
    _Kind(0, b"\0\0\0\x0cJXL ", UNSUPPORTED, "a JPEG XL image", f"{_CONVERT} (djxl)"),
    _Kind(128, b"DICM", UNSUPPORTED, "a DICOM file", "write its pixels to 16-bit PNG"),
    _Kind(0, b"8BPS", UNSUPPORTED, "a Photoshop document", f"flatten and {_CONVERT}"),
    _Kind(0, b"FUJIFILMCCD-RAW", UNSUPPORTED, "a raw photo of a camera (RAF)", DEVELOP),
    _Kind(0, b"IIRO", UNSUPPORTED, "a raw photo of a camera (ORF)", DEVELOP),
    _Kind(0, b"IIU\0", UNSUPPORTED, "a raw photo of a camera (RW2)", DEVELOP),
    _Kind(
        0, b"v/1\x01", UNSUPPORTED, "an OpenEXR image", f"map its tones and {_CONVERT}"
    ),
    _Kind(0, b"\x89HDF", NOT_AN_IMAGE, "an HDF5 file", "write its arrays to images"),
    _Kind(0, b"\x93NUMPY", NOT_AN_IMAGE, "a numpy array", "write it to an image"),
    _Kind(
        0, b"PK\x03\x04", NOT_AN_IMAGE, "a zip archive", "unpack it, or name it itself"
    ),
    _Kind(0, b"\x1f\x8b", NOT_AN_IMAGE, "a gzip file", "unpack it"),
    _Kind(0, b"7z\xbc\xaf'\x1c", NOT_AN_IMAGE, "a 7z archive", "unpack it"),
    _Kind(0, b"Rar!", NOT_AN_IMAGE, "a rar archive", "unpack it"),
    _Kind(0, b"%PDF", NOT_AN_IMAGE, "a PDF document", "render its pages (pdftoppm)"),
    _Kind(
        0,
        b"version https://git-lfs.github.com/spec/",
        NOT_AN_IMAGE,
        "a pointer of Git LFS and not the file itself",
        "run `git lfs pull`",
    ),
)
_SHOWN = 40  # characters of a text


def unknown(data: bytes) -> RefusedImage:
    """The refusal of ``data``, which no decoder knows: what it is, and the cure."""
    if kind := _kind(data):
        return RefusedImage(kind.reason, f"it is {kind.name}; {kind.cure}")
    start = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if b"<svg" in start:
        return RefusedImage(UNSUPPORTED, "it is an SVG drawing; render it to PNG")
    if start.startswith((b"<!doctype html", b"<html")):
        return RefusedImage(
            NOT_AN_IMAGE, "it is an HTML page, as failed downloads leave; download anew"
        )
    if not any(data[:1024]):
        return RefusedImage(
            NOT_AN_IMAGE,
            f"{len(data)} bytes that begin with nothing but zeros: "
            "an interrupted copy; copy it anew",
        )
    if _is_text(data[:1024]):
        shown = " ".join(data[:200].decode(errors="replace").split())[:_SHOWN]
        return RefusedImage(NOT_AN_IMAGE, f"it is a text that begins with {shown!r}")
    return RefusedImage(NOT_AN_IMAGE, f"{len(data)} bytes, no known format")


def kind_of(data: bytes) -> str | None:
    """What a file is that begins with ``data`` and is no image, with its article."""
    kind = _kind(data)
    return kind.name if kind else None


def _kind(data: bytes) -> _Kind | None:
    starts = (kind for kind in _KINDS if data.startswith(kind.magic, kind.offset))
    return next(starts, None)


def _is_text(start: bytes) -> bool:
    """Whether it is UTF-8, perhaps cut inside a character, without control codes."""
    try:
        text = start.decode()
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:
            return False
        text = start[: error.start].decode()
    return all(c.isprintable() or c in "\t\r\n\f" for c in text)

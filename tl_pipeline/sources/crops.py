"""Boxes cut out of photos, for sources whose inputs are annotated objects."""

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl_pipeline.config.datasets import BoxedEntry
from tl_pipeline.inputs.images import RefusedImage, as_ppm, decode, orientation
from tl_pipeline.sources.entry import Entry, printable, raise_if_refused, refused

_NUMBER = r"(-?[0-9]{1,9})"
_CUT = re.compile(
    rf"(.+)#box={_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}"
    r"(?:&margin=([0-9.e-]+))?(?:&size=([0-9]+)x([0-9]+))?(?:&copy=[0-9]+)?",
    re.DOTALL,
)
_KEPT = 1 << 26  # bytes of decoded photos
_LARGEST = 10**9 - 1
_LYING = (5, 6, 7, 8)  # orientations that swap width and height
Stamp = tuple[str | None, int | None]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


@dataclass(frozen=True, slots=True)
class Labelled:
    """One annotated object: its class, and its box in pixels from the corner (0, 0).

    ``left`` and ``top`` are the first pixels inside, ``right`` and ``bottom`` the first
    outside. A ``fault`` is why there is no box; then the four mean nothing.
    """

    label: str | None
    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0
    fault: str = ""


def labelled(
    label: str | None, left: Any, top: Any, width: Any, height: Any
) -> Labelled:
    """The object of a box given in fractions of pixels, rounded as PIL's crop does.

    What is not four finite numbers becomes a ``fault``.
    """
    box = (left, top, width, height)
    numbers = all(type(value) in (int, float) for value in box)
    if not numbers or not all(abs(value) <= _LARGEST / 2 for value in box):
        return Labelled(label, fault=f"its box is not four numbers: {box!r}"[:200])
    ends = (round(left), round(top), round(left + width), round(top + height))
    return Labelled(label, *ends)


def inside(folder: str, name: str) -> str:
    """The normal path of ``name`` below ``folder``, without asking the disk.

    ``os.path`` and not pathlib: this is asked once per photo of up to 10^6.
    """
    return printable(os.path.normpath(os.path.join(folder, name)))  # noqa: PTH118


class Photos:
    """Lists and cuts the boxes of the photos in some folders; threads may share it.

    The photos decoded last stay in memory, up to 64 MiB (always one): objects are
    listed photo by photo, so that each photo is decoded once while ingesting.
    """

    def __init__(self, folders: Sequence[str], spec: BoxedEntry) -> None:
        self._folders = tuple(f"{folder.rstrip(os.sep)}{os.sep}" for folder in folders)
        self._margin, self._clip = spec.margin, spec.boxes == "clip"
        self._how = spec.pixels
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, Stamp], _Photo] = OrderedDict()
        self._turned: set[str] = set()

    def entries(
        self,
        photo: str,
        annotation: str,
        objects: Sequence[Labelled],
        split: str | None,
        group: str,
        size: tuple[int, int] | None = None,
    ) -> Iterator[Entry]:
        """One entry per object of ``photo``; ``size`` is what ``annotation`` tells.

        The uri tells all that ``read`` needs but whether to clip, which the version
        tells: ``<photo>#box=<left>,<top>,<width>,<height>``, then ``&margin=`` and
        ``&size=``, and ``&copy=`` for a box that the photo has again. An object without
        a box is ``<annotation>#refused=<why>``.
        """
        version, modified = _stamp(photo)
        version = f"{version}:clip" if version and self._clip else version
        tail = f"&margin={self._margin!r}" if self._margin else ""
        tail += f"&size={size[0]}x{size[1]}" if size else ""
        seen: set[str] = set()
        for number, found in enumerate(objects):
            if found.fault:
                uri = refused(annotation, f"object {number} of {photo}: {found.fault}")
                yield Entry(uri, found.label, None, split, group)
                continue
            width, height = found.right - found.left, found.bottom - found.top
            uri = f"{photo}#box={found.left},{found.top},{width},{height}{tail}"
            uri += f"&copy={number}" if uri in seen else ""
            seen.add(uri)
            yield Entry(uri, found.label, version, split, group, modified)

    def read(self, uri: str) -> bytes:
        """The pixels inside the box as a binary PPM (see ``images.as_ppm``).

        Raises:
            PermissionError: the photo lies outside the folders of this source.
            OSError: there is no such photo, or no such box in it.
            RefusedImage: the photo cannot be decoded, or the box is no image.
        """
        raise_if_refused(uri)
        cut = _CUT.fullmatch(uri)
        if cut is None:
            raise OSError(f"{uri}: no such object")
        path, *ends, margin, wide, high = cut.groups()
        if not path.startswith(self._folders) or os.path.normpath(path) != path:
            raise PermissionError(f"{uri}: leaves {' and '.join(self._folders)}")
        left, top, width, height = map(int, ends)
        if width < 1 or height < 1:
            raise RefusedImage("zero-sized", f"a box of {width}x{height} pixels")
        photo = self._photo(path, uri)
        photo.check_size((int(wide), int(high)) if wide else None)
        box = photo.checked((left, top, left + width, top + height), clip=self._clip)
        left, top, right, bottom = box
        share = float(margin or 0)
        across, down = round((right - left) * share), round((bottom - top) * share)
        rows = slice(max(top - down, 0), bottom + down)
        return as_ppm(photo.pixels[rows, max(left - across, 0) : right + across])

    def notes(self) -> list[str]:
        """What is to be said of the photos that were read."""
        if not self._turned:
            return []
        said = f"{len(self._turned):,} photos are turned by EXIF, such as "
        return [f"{said}{min(self._turned)}: boxes are read for the upright photo"]

    def _photo(self, path: str, uri: str) -> "_Photo":
        try:
            stamp = _stamp(path)
            with self._lock:
                if (path, stamp) in self._kept:
                    self._kept.move_to_end((path, stamp))
                    return self._kept[path, stamp]
            if not Path(path).is_file():  # as a pipe is none: reading it would hang
                raise FileNotFoundError("no such photo")
            data = Path(path).read_bytes()
            pixels = np.asarray(decode(data, self._how))
            photo = _Photo(pixels, orientation(data))
        except (OSError, ValueError) as error:  # a NUL in a name is a ValueError
            raise OSError(f"{uri}: {error}") from None
        with self._lock:
            if photo.orientation:
                self._turned.add(path)
            self._kept[path, stamp] = photo
            held = sum(kept.pixels.nbytes for kept in self._kept.values())
            while len(self._kept) > 1 and held > _KEPT:
                held -= self._kept.popitem(last=False)[1].pixels.nbytes
        return photo


class _Photo(NamedTuple):
    """Upright pixels, uint8 (rows, columns, 3), and how EXIF turned them, 2 to 8."""

    pixels: np.ndarray
    orientation: int | None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def check_size(self, annotated: tuple[int, int] | None) -> None:
        """Refuse a photo of another size than it had when it was ``annotated``."""
        if annotated and annotated != self.size:
            why = self._turned() or "it was resized or replaced"
            raise RefusedImage(
                "wrong box",
                f"it is for a photo of {_by(annotated)} pixels, this has "
                f"{_by(self.size)}: {why}",
            )

    def checked(self, box: Box, *, clip: bool) -> Box:
        """``box`` if it is inside; with ``clip`` what of it is."""
        columns, rows = self.size
        left, top, right, bottom = box
        inside: Box = (
            *(max(left, 0), max(top, 0)),
            *(min(right, columns), min(bottom, rows)),
        )
        some = inside[0] < inside[2] and inside[1] < inside[3]
        if inside != box and not (clip and some):
            over = max(
                inside[0] - left, inside[1] - top, right - columns, bottom - rows
            )
            cure = "" if clip or not some else "; 'boxes: clip' takes what is inside"
            turned = self._turned()
            raise RefusedImage(
                "wrong box",
                f"it is not inside {_by(self.size)}, by {over} px"
                + (f": {turned}" if turned else cure),
            )
        return inside

    def _turned(self) -> str:
        if not self.orientation:
            return ""
        width, height = self.size
        stored = (height, width) if self.orientation in _LYING else self.size
        return (
            f"EXIF orientation {self.orientation} turns the photo, which is stored as "
            f"{_by(stored)}. Boxes are read for the upright photo; if they are for the "
            "stored one, remove the tag, such as by 'exiftool -Orientation= FILE'"
        )


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _stamp(path: str) -> Stamp:
    try:
        stat = os.stat(path)  # noqa: PTH116 - a Path costs as much as the call
    except (OSError, ValueError):
        return None, None  # reading it will tell
    return f"{stat.st_size}:{stat.st_mtime_ns}", stat.st_mtime_ns

"""Boxes cut out of photos, for sources whose inputs are annotated objects."""

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tl_pipeline.config.catalog_entry import PixelSpec
from tl_pipeline.inputs.images import RefusedImage, as_ppm, decode
from tl_pipeline.sources.entry import Entry
from tl_pipeline.sources.tar_members import printable

_NUMBER = r"(-?[0-9]{1,9})"
_CUT = re.compile(
    rf"(.+)#box={_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}"
    r"(?:&margin=([0-9.e-]+))?(?:&size=([0-9]+)x([0-9]+))?(?:&copy=[0-9]+)?",
    re.DOTALL,
)
_REFUSED = re.compile(r"(.+?)#refused=(.*)", re.DOTALL)
_KEPT = 1 << 26  # bytes of decoded photos
_LARGEST = 10**9 - 1
Stamp = tuple[str | None, int | None]


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
    given = (left, top, width, height)
    numbers = all(type(value) in (int, float) for value in given)
    if not numbers or not all(abs(value) <= _LARGEST / 2 for value in given):
        return Labelled(label, fault=f"its box is not four numbers: {given!r}"[:200])
    ends = (round(left), round(top), round(left + width), round(top + height))
    return Labelled(label, *ends)


def listed(
    photo: str,
    annotation: str,
    objects: Sequence[Labelled],
    split: str | None,
    group: str,
    margin: float = 0.0,
    size: tuple[int, int] | None = None,
) -> Iterator[Entry]:
    """One entry per object of ``photo``; ``size`` is what the annotation says of it.

    The uri tells all that ``Photos.read`` needs:
    ``<photo>#box=<left>,<top>,<width>,<height>``, then ``&margin=`` and ``&size=``, and
    ``&copy=`` for a box that the photo has again. An object without a box is
    ``<annotation>#refused=<why>``.
    """
    version, modified = _stamp(photo)
    tail = f"&margin={margin!r}" if margin else ""
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


def refused(annotation: str, why: str) -> str:
    """The uri of an input that ``annotation`` names, but that no one can read."""
    return f"{annotation}#refused={why}"


def inside(folder: str, name: str) -> str:
    """The normal path of ``name`` below ``folder``, without asking the disk.

    ``os.path`` and not pathlib: this is asked once per photo of up to 10^6.
    """
    return printable(os.path.normpath(os.path.join(folder, name)))  # noqa: PTH118


class Photos:
    """Cuts boxes out of the photos of some folders; safe to call from any thread.

    The photos decoded last stay in memory, up to 64 MiB (always one): objects are
    listed photo by photo, so that each photo is decoded once while ingesting.
    """

    def __init__(self, folders: Sequence[str], how: PixelSpec) -> None:
        self._how = how
        self._folders = tuple(f"{folder.rstrip(os.sep)}{os.sep}" for folder in folders)
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, Stamp], np.ndarray] = OrderedDict()

    def read(self, uri: str) -> bytes:
        """The pixels inside the box as a binary PPM (see ``images.as_ppm``).

        Raises:
            PermissionError: the photo lies outside the folders of this source.
            OSError: there is no such photo, or no such box in it.
            RefusedImage: the photo cannot be decoded, or the box is no image.
        """
        cut = _CUT.fullmatch(uri)
        if cut is None:
            told = _REFUSED.fullmatch(uri)
            raise OSError(f"{told[1]}: {told[2]}" if told else f"{uri}: no such object")
        path, *ends, margin, wide, high = cut.groups()
        if not path.startswith(self._folders) or os.path.normpath(path) != path:
            raise PermissionError(f"{uri}: leaves {' and '.join(self._folders)}")
        left, top, width, height = map(int, ends)
        if width < 1 or height < 1:
            raise RefusedImage("zero-sized", f"a box of {width}x{height} pixels")
        pixels = self._photo(path, uri)
        rows, columns = pixels.shape[:2]
        if wide and (int(wide), int(high)) != (columns, rows):
            raise RefusedImage(
                "wrong box",
                f"it is for a photo of {wide}x{high} pixels, this has "
                f"{columns}x{rows}: it was resized or replaced",
            )
        if left < 0 or top < 0 or left + width > columns or top + height > rows:
            raise RefusedImage("wrong box", f"it is not inside {columns}x{rows}")
        share = float(margin or 0)
        across, down = round(width * share), round(height * share)
        bottom, right = top + height + down, left + width + across
        cropped = pixels[max(top - down, 0) : bottom, max(left - across, 0) : right]
        return as_ppm(cropped)

    def _photo(self, path: str, uri: str) -> np.ndarray:
        try:
            stamp = _stamp(path)
            with self._lock:
                if (path, stamp) in self._kept:
                    self._kept.move_to_end((path, stamp))
                    return self._kept[path, stamp]
            if not Path(path).is_file():  # as a pipe is none: reading it would hang
                raise FileNotFoundError("no such photo")
            pixels = np.asarray(decode(Path(path).read_bytes(), self._how))
        except (OSError, ValueError) as error:  # a NUL in a name is a ValueError
            raise OSError(f"{uri}: {error}") from None
        with self._lock:
            self._kept[path, stamp] = pixels
            held = sum(kept.nbytes for kept in self._kept.values())
            while len(self._kept) > 1 and held > _KEPT:
                held -= self._kept.popitem(last=False)[1].nbytes
        return pixels


def _stamp(path: str) -> Stamp:
    try:
        stat = os.stat(path)  # noqa: PTH116 - a Path costs as much as the call
    except (OSError, ValueError):
        return None, None  # reading it will tell
    return f"{stat.st_size}:{stat.st_mtime_ns}", stat.st_mtime_ns

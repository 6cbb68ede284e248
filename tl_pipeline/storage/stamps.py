"""What a look at a file tells without reading it: its size and its version."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from tl_pipeline.config.locations import scheme


@dataclass(frozen=True, slots=True)
class Stamp:
    """Size, version and modification time as ``Entry`` has them."""

    size: int | None = None
    version: str | None = None
    modified_ns: int | None = None


UNKNOWN = Stamp()


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object that a store holds: its bytes, and when it was last written.

    ``written`` is in seconds since 1970 by the clock of the store.
    """

    bytes: int
    written: float


@dataclass(frozen=True, slots=True)
class Found:
    """A file or a folder in a listing; ``path`` is its URL."""

    path: str
    name: str
    folder: bool
    stamp: Stamp


def found_in(inside: str, info: dict[str, Any]) -> Found | None:
    """What fsspec says of something in the folder ``inside``, which ends in a slash.

    None for the folder itself.
    """
    url = f"{scheme(inside)}://{info['name'].lstrip('/')}"
    name = url.removeprefix(inside)
    folder = info["type"] == "directory"
    if url.rstrip("/") == inside.rstrip("/"):
        # The folder itself, by its marker, or a folder in it without a name, which
        # "a//b" is in to an object store: it gets a row, which nobody can read.
        nameless = folder and url == inside
        return Found(f"{inside}/", "/", False, UNKNOWN) if nameless else None
    return Found(url, name, folder, UNKNOWN if folder else stamp_of(info))


def stamp_of(info: dict[str, Any]) -> Stamp:
    """What fsspec says of a file: by its ETag or generation, else its time."""
    size = info.get("size")
    marks: Iterable[Any] = map(info.get, ("ETag", "generation", "etag"))
    if mark := next(filter(None, marks), None):
        return Stamp(size, f"{size}:{str(mark).strip(chr(34))}")
    when = info.get("Last-Modified") or info.get("mtime")
    if isinstance(when, str):
        with contextlib.suppress(ValueError):
            when = parsedate_to_datetime(when)
    if not isinstance(when, datetime):
        return Stamp(size)
    modified_ns = int(when.timestamp() * 1e9)
    return Stamp(size, f"{size}:{modified_ns}", modified_ns)


def info_of(info: dict[str, Any]) -> ObjectInfo | None:
    """What fsspec says of an object; None where it does not tell the time."""
    times = map(info.get, ("LastModified", "updated", "mtime"))
    when = next(filter(None, times), None)
    if isinstance(when, str):
        when = datetime.fromisoformat(when)
    if not isinstance(when, datetime):
        return None
    return ObjectInfo(info.get("size") or 0, when.timestamp())

"""Single files and folders of a store: published whole, hashed, set aside.

What is published outlives a power cut: its bytes and its name are on the disk before
anybody can find it.
"""

import hashlib
import os
import uuid
from datetime import UTC, datetime
from pathlib import Path

from tl_pipeline import progress

_ASIDE, _WHY = ".damaged-", ".why-"


def write_atomically(path: Path, data: str | bytes) -> None:
    """Replace ``path`` by ``data`` so that a reader sees the old or the new, whole."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    beside.write_bytes(data.encode() if isinstance(data, str) else data)
    publish(beside, path)


def publish(building: Path, target: Path) -> None:
    """Rename a finished file, or a folder that nobody has, to ``target``.

    All its bytes are on the disk before, and the new name is after.
    """
    for path in (*building.rglob("*"), building):
        _sync(path)
    building.replace(target)
    _sync(target.parent)


def make_folder(folder: Path) -> None:
    """Make ``folder`` and those above it, where they are missing, and their names."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(file: Path) -> str:
    """The hash of the bytes of ``file``, in hex."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def set_aside(path: Path, fault: str) -> Path:
    """Rename a damaged file or folder so that nobody reads it, and say so in one line.

    The reason lies beside it: see ``why``.
    """
    aside = path.with_name(f"{_ASIDE}{path.name}-{uuid.uuid4().hex[:8]}")
    path.rename(aside)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_atomically(reason(aside), f"{now} {fault}\n")
    progress.notice(f"{path}: {fault}; set aside as {aside.name}")
    return aside


def why(aside: Path) -> str | None:
    """When and why ``set_aside`` renamed something to ``aside``; None if not noted."""
    try:
        return reason(aside).read_text(errors="replace").strip()
    except FileNotFoundError:
        return None


def reason(aside: Path) -> Path:
    """The file that says why ``aside`` was set aside."""
    return aside.with_name(f"{_WHY}{aside.name.removeprefix(_ASIDE)}.txt")

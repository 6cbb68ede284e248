"""The local folder of a mirror: where it is, and what in it waits to be sent."""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from tl_pipeline.store.files import write_atomically

# Made from the rest, or about one machine: not in the object store.
_OF_HERE = {"speed.json"}
_STALE_S = 86_400  # after which a note about what never came is dropped


class Unsent:
    """Notes about what is finished in the mirror ``root`` and not yet sent.

    Each is a file of ``.unsent/``, so that it outlives its process.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = root / ".unsent"

    def __contains__(self, path: Path) -> bool:
        return self._note(path).exists()

    def add(self, path: Path) -> None:
        """Note ``path``, which may be about to come."""
        write(self._note(path), path.relative_to(self._root).as_posix().encode())

    def drop(self, path: Path) -> None:
        """Forget ``path``: it was sent, or never came."""
        self._note(path).unlink(missing_ok=True)

    def found(self) -> Iterator[Path]:
        """What is there of what was noted."""
        for note in sorted(self._folder.glob("[!.]*")):
            with contextlib.suppress(FileNotFoundError):  # sent meanwhile
                path = self._root / note.read_text()
                if path.exists():
                    yield path
                elif time.time() - note.stat().st_mtime > _STALE_S:
                    note.unlink()

    def _note(self, path: Path) -> Path:
        place = path.relative_to(self._root).as_posix()
        return self._folder / hashlib.sha256(place.encode()).hexdigest()[:32]


def of(url: str) -> Path:
    """The folder of the mirror of the store at ``url``: one for each URL and server."""
    servers = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "STORAGE_EMULATOR_HOST")
    said = "\n".join([url, *(os.environ.get(name, "") for name in servers)])
    last = url.rpartition("/")[2]
    return _cache() / f"{last}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"


def files(folder: Path) -> Iterator[Path]:
    """Those below ``folder`` that have objects of the same names."""
    for file in folder.rglob("[!.]*"):
        if file.is_file() and file.name not in _OF_HERE:
            yield file


def write(file: Path, data: bytes) -> None:
    """Make or replace ``file`` so that a reader sees the old or the new, whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, data)


def _cache() -> Path:
    """The folder of all mirrors: $TL_CACHE, else the usual one of the user."""
    usual = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    found = os.environ.get("TL_CACHE") or Path(usual) / "tl-pipeline"
    return Path(found).expanduser().resolve()

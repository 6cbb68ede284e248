"""Locks of one machine: ``flock`` on files, which end with their process."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def held(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock ``name``, a file in ``folder``; wait while another holds it."""
    with _file(folder, name) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def held_if_free(folder: Path, name: str) -> Iterator[bool]:
    """Hold the lock ``name`` unless another does; whether this process holds it."""
    with _file(folder, name) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _file(folder: Path, name: str) -> TextIO:
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / name).open("w")

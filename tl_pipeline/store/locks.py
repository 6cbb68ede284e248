"""Locks of one machine: ``flock`` on files, which end with their process."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from tl_pipeline import progress


@contextmanager
def held(folder: Path, name: str, waits_for: str = "") -> Iterator[None]:
    """Hold the lock ``name``, a file in ``folder``; wait while another holds it.

    Where there is a wait, ``waits_for`` says in words for what, in one line.
    """
    with _file(folder, name) as handle:
        if waits_for and not _taken(handle):
            progress.notice(f"waiting for {waits_for} ...")
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def held_if_free(folder: Path, name: str) -> Iterator[bool]:
    """Hold the lock ``name`` unless another does; whether this process holds it."""
    with _file(folder, name) as handle:
        yield _taken(handle)


def _taken(handle: TextIO) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _file(folder: Path, name: str) -> TextIO:
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / name).open("w")

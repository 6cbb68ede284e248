"""How far a long stage has come, told to whoever is watching.

A stage calls ``progress.track``; the command line or a flow installs a reporter. With
none installed progress is not shown, and notices go to standard error.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Reporter(Protocol):
    """Receives the progress of stages, from any thread."""

    def start(self, task: str, total: int) -> None:
        """``task`` will handle ``total`` images (or heads)."""

    def advance(self, task: str, done: int) -> None:
        """``done`` more of them are finished."""

    def finish(self, task: str) -> None:
        """``task`` is over, whether whole or broken off."""

    def notice(self, text: str) -> None:
        """Show one line that a person should read."""


class _Silent:
    def start(self, task: str, total: int) -> None: ...
    def advance(self, task: str, done: int) -> None: ...
    def finish(self, task: str) -> None: ...
    def notice(self, text: str) -> None:
        sys.stderr.write(f"{text}\n")


_reporter: Reporter = _Silent()


@contextmanager
def reporting(reporter: Reporter) -> Iterator[None]:
    """Send all progress of this process to ``reporter`` while the block runs."""
    global _reporter  # noqa: PLW0603 - one console per process, many threads
    before, _reporter = _reporter, reporter
    try:
        yield
    finally:
        _reporter = before


def notice(text: str) -> None:
    """Tell whoever is watching one line, such as what is damaged or waited for."""
    _reporter.notice(text)


def watched() -> bool:
    """Whether a reporter is installed."""
    return not isinstance(_reporter, _Silent)


def duration(seconds: float) -> str:
    """``0.4 s``, ``52 s``, ``1 min 40 s``, ``3 h 05 min``."""
    whole = round(seconds)
    if whole < 10:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


class Track:
    """The handle through which a stage reports."""

    def __init__(self, task: str) -> None:
        self._task = task
        self._to = _reporter

    def advance(self, done: int = 1) -> None:
        """Report ``done`` more items as finished."""
        self._to.advance(self._task, done)


@contextmanager
def track(task: str, total: int) -> Iterator[Track]:
    """Announce ``total`` items of ``task`` and yield the handle to count them."""
    handle = Track(task)
    _reporter.start(task, total)
    try:
        yield handle
    finally:
        _reporter.finish(task)

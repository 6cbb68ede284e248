"""Progress of long stages as lines of the flow run's log."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from prefect.logging import get_run_logger

from tl_pipeline import progress

SECONDS_BETWEEN_LINES = 30


@dataclass
class _Bar:
    total: int
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)


class LoggedProgress:
    """Says every half minute how far a stage is, how fast, and how long it will take.

    A stage of a few seconds says nothing; how it ended stands in its state.
    """

    def __init__(self, logger: logging.Logger | logging.LoggerAdapter) -> None:
        self._logger = logger
        self._bars: dict[str, _Bar] = {}

    def start(self, task: str, total: int) -> None:
        """Begin to count ``task``; a ``total`` of 0 means unknown."""
        self._bars[task] = _Bar(total)

    def advance(self, task: str, done: int) -> None:
        """Count, and log if the last line is old enough."""
        bar, now = self._bars[task], time.monotonic()
        bar.done += done
        if now - bar.said < SECONDS_BETWEEN_LINES:
            return
        bar.said = now
        rate = bar.done / (now - bar.started)
        left = f", {(bar.total - bar.done) / rate:,.0f} s left" if bar.total else ""
        of = f" of {bar.total:,}" if bar.total else ""
        self._logger.info("%s: %s%s, %.1f/s%s", task, f"{bar.done:,}", of, rate, left)

    def finish(self, task: str) -> None:
        """Forget ``task``."""
        self._bars.pop(task)

    def notice(self, text: str) -> None:
        """Log one line."""
        self._logger.warning(text)


@contextmanager
def logged() -> Iterator[None]:
    """Log progress while the block runs, unless somebody watches already."""
    if progress.watched():
        yield
        return
    with progress.reporting(LoggedProgress(get_run_logger())):
        yield

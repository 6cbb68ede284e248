"""Where the time of embedding went: the answer to "what is my bottleneck"."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields

SHARED = ""
BUSY = 0.8  # of the time: then the network is what everything waits for


@dataclass(frozen=True)
class Timings:
    """Seconds that one encoder cost; what several share is split equally among them.

    All but ``elapsed`` add up the threads that did so. ``idle`` is how long the network
    waited for batches, be it that those who drive it decoded them; ``transfer`` is
    normalising and, with a GPU, moving pixels there. ``elapsed`` is the encoder's share
    of the whole pass by the clock.
    """

    read: float = 0.0
    decode: float = 0.0
    transfer: float = 0.0
    forward: float = 0.0
    write: float = 0.0
    idle: float = 0.0
    elapsed: float = 0.0

    def __add__(self, other: "Timings") -> "Timings":
        mine, theirs = asdict(self), asdict(other)
        return Timings(**{name: mine[name] + theirs[name] for name in mine})

    @property
    def busy(self) -> float:
        """The fraction of the time in which the network worked."""
        worked = self.forward + self.transfer
        return worked / max(worked + self.idle, 1e-9)

    @property
    def bottleneck(self) -> str:
        """What would have to be faster."""
        if self.busy >= BUSY:
            return "the network"
        waits = {"decoding": self.decode, "reading": self.read, "writing": self.write}
        return max(waits, key=waits.__getitem__)


class Clock:
    """Adds up seconds by what was done and for which encoder; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: defaultdict[tuple[str, str], float] = defaultdict(float)

    @contextmanager
    def time(self, what: str, owner: str = SHARED) -> Iterator[None]:
        """Count how long the block takes as ``what``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(what, time.perf_counter() - started, owner)

    def add(self, what: str, seconds: float, owner: str = SHARED) -> None:
        """Count ``seconds`` as ``what``."""
        with self._lock:
            self._seconds[what, owner] += seconds

    def of(self, what: str, owner: str = SHARED) -> float:
        """The seconds counted so far."""
        return self._seconds[what, owner]

    def split(self, owners: list[str]) -> dict[str, Timings]:
        """The timings of each of ``owners``, the shared seconds split equally."""
        names = [field.name for field in fields(Timings)]
        return {
            owner: Timings(
                **{
                    name: self.of(name, owner) + self.of(name) / len(owners)
                    for name in names
                }
            )
            for owner in owners
        }

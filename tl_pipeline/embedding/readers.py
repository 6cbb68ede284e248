"""Processes that read and check images for a GPU that decodes them itself.

Threads wait for the lock of the interpreter five times an image; processes have a lock
each. What they read lies in memory that both sides map (Linux), and of a batch only a
few numbers an image travel. They import no torch, and end with who started them.
"""

import mmap
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from tl_pipeline.data.reading import Image, Read, checked
from tl_pipeline.errors import WorkerLost
from tl_pipeline.inputs import nvjpeg_support
from tl_pipeline.inputs.images import RefusedImage
from tl_pipeline.inputs.nvjpeg_support import Sampling, Size

# What a child runs: it finds what its parent finds, and nothing of __main__ runs twice.
_CHILD = (
    "import sys; sys.path[:] = {}; "
    "from tl_pipeline.embedding import readers; readers.main()"
)
_PATIENCE = 5  # seconds that one may take to end


class Looked(NamedTuple):
    """An image: its bytes or why not, and its size if the hardware can be given it."""

    data: bytes | memoryview | RefusedImage
    size: Size | None


def look(image: Image, read: Read, samplings: frozenset[Sampling]) -> Looked:
    """Read an image and look whether it is for the hardware."""
    try:
        data = checked(image, read)
    except RefusedImage as refusal:
        return Looked(refusal, None)
    return Looked(data, nvjpeg_support.size(data, samplings))


def suit(images: Sequence[Image]) -> bool:
    """Whether processes can read ``images`` here, and each without its neighbours.

    What lies in a table or a tar is read by one, which keeps what is near.
    """
    ends = (images[0], images[-1])
    return hasattr(os, "memfd_create") and all(Path(uri).is_file() for _, uri in ends)


class Readers:
    """Does ``look`` of many images in a process of the calling thread's own.

    ``read`` has to be the method of a source. To be closed when no thread calls it.
    """

    def __init__(self, read: Read, samplings: frozenset[Sampling]) -> None:
        self._given = pickle.dumps((read, samplings))
        self._thread = threading.local()
        self._lock, self._all = threading.Lock(), list[_Reader]()

    def enlist(self) -> None:
        """Called once by each thread: its process begins to begin."""
        self._thread.reader = reader = _Reader(self._given)
        with self._lock:
            self._all.append(reader)

    def __call__(self, images: Sequence[Image]) -> tuple[list[Looked], float]:
        """What they are, and the seconds that reading took.

        Raises:
            WorkerLost: the process died.
        """
        return self._thread.reader(images)

    def close(self) -> None:
        """Let all processes end."""
        for reader in self._all:
            reader.close()


class _Reader:
    """One process, for one thread."""

    def __init__(self, given: bytes) -> None:
        self._connection, theirs = Pipe()
        command = [sys.executable, "-c", _CHILD.format(sys.path), str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - this program
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        self._connection.send_bytes(given)

    def __call__(self, images: Sequence[Image]) -> tuple[list[Looked], float]:
        memory = os.memfd_create("images")
        try:
            told = self._asked((images, f"/proc/{os.getpid()}/fd/{memory}"))
            if isinstance(told, Exception):
                raise told
            rows, seconds = told
            return _mapped(memory, rows), seconds
        finally:
            os.close(memory)

    def _asked(self, question: Any) -> Any:
        try:
            self._connection.send(question)
            return self._connection.recv()
        except (EOFError, ConnectionError):
            code = self._process.wait()
            raise WorkerLost(
                f"a process that read images ended with {code} (-9: killed, mostly for "
                "want of memory); run again: what was embedded is kept"
            ) from None

    def close(self) -> None:
        self._connection.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


# Of an image that was read, its bytes and size; of another, the reason and detail.
_Row = tuple[int, Size | None] | tuple[str, str]


def _mapped(memory: int, rows: Sequence[_Row]) -> list[Looked]:
    """The images whose bytes lie one after another in the file ``memory``."""
    total = sum(first for first, _ in rows if isinstance(first, int))
    # Views of it keep it alive.
    held = memoryview(mmap.mmap(memory, total)) if total else memoryview(b"")
    found, at = list[Looked](), 0
    for first, second in rows:
        if isinstance(first, str):
            found.append(Looked(RefusedImage(first, str(second)), None))
        else:
            size = None if isinstance(second, str) else second
            found.append(Looked(held[at : at + first], size))
            at += first
    return found


def main() -> None:
    """Answer until the parent is gone."""
    # An interrupt is for the parent, which then closes the connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Connection(int(sys.argv[1])) as parent:
        try:
            read, samplings = parent.recv()
            while True:
                images, memory = parent.recv()
                parent.send(_answer(images, memory, read, samplings))
        except (EOFError, ConnectionError):
            return


def _answer(
    images: Sequence[Image], memory: str, read: Read, samplings: frozenset[Sampling]
) -> Any:
    started = time.perf_counter()
    rows: list[_Row] = []
    try:
        with Path(memory).open("wb", buffering=0) as file:
            for image in images:
                data, size = look(image, read, samplings)
                if isinstance(data, RefusedImage):
                    rows.append((data.reason, data.detail))
                else:
                    file.write(data)
                    rows.append((len(data), size))
    except Exception as error:  # noqa: BLE001 - raised by the parent
        return _portable(error)
    return rows, time.perf_counter() - started


def _portable(error: Exception) -> Exception:
    """``error``, or what it says where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - made just now
    except Exception:  # noqa: BLE001 - whatever its author did not think of
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error

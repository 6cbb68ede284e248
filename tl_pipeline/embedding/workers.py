"""Threads that read, decode, drive networks and write. Imports torch.

Threads and not processes: forked children of a Prefect task die, and all heavy work of
the embedding loop releases Python's lock.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from typing import TypeVar

import torch

from tl_pipeline.embedding.forward import Forward
from tl_pipeline.embedding.process import cores

PER_GPU = 2
# On a processor with fewer cores than this each core takes a batch of its own. Each
# batch needs memory for its activations, so that more cores share batches.
_SHARED = 8
_BATCHES = 4

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def use_threads(number: int) -> None:
    """Let torch compute in so many threads when it is called from this one."""
    # At its first use in a thread torch takes the number that was set last in any
    # thread, so the first use has to come before.
    torch.get_num_threads()
    torch.set_num_threads(number)


def _use_one_thread() -> None:
    use_threads(1)


@contextmanager
def pool(
    name: str,
    threads: int,
    begin: Callable[[], None] = _use_one_thread,
    *,
    finish: bool = False,
) -> Iterator[ThreadPoolExecutor]:
    """A pool that drops waiting work when the block ends by an error.

    Each thread calls ``begin`` once. With ``finish`` waiting work is done even then.
    """
    usual = torch.get_num_threads()
    threaded = ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=begin)
    with ExitStack() as stack:
        # torch gives new threads the number that was set last, in any thread
        stack.callback(torch.set_num_threads, usual)
        stack.callback(threaded.shutdown, cancel_futures=not finish)
        yield threaded


def prefetched(
    threads: ThreadPoolExecutor,
    work: Callable[[_In], _Out],
    items: Iterable[_In],
    most: int,
) -> Iterator[_Out]:
    """``work`` of each item in a thread, at most ``most`` ahead; yields in order.

    What comes before a fault is yielded before the fault is raised.
    """
    waiting: deque[Future[_Out]] = deque()
    fault: Exception | None = None
    source = iter(items)
    while True:
        try:
            item = next(source)
        except StopIteration:
            break
        except Exception as error:  # noqa: BLE001 - raised below
            fault = error
            break
        waiting.append(threads.submit(work, item))
        if len(waiting) >= most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
    if fault is not None:
        raise fault


def threads_of_batches(available: int) -> list[int]:
    """How many threads compute each of the batches that a processor has under way.

    A batch shared among cores makes them wait for each other after every layer, so
    that few cores take a batch each. No core is left without work.
    """
    if available < _SHARED:
        return [1] * available
    each, more = divmod(available, _BATCHES)
    return [each + (at < more) for at in range(_BATCHES)]


class NetworkThreads:
    """Gives each thread that drives a device the networks that lie there.

    A GPU has two such threads, so that it computes one batch while the next one moves.

    Attributes:
        number: how many threads there are to be.
        decode: whether they are to decode what they drive. Each has a core of its own
            then, which further threads that decode would only share.
    """

    def __init__(self, networks: Sequence[Sequence[Forward]]) -> None:
        self._free: SimpleQueue[tuple[Sequence[Forward], int]] = SimpleQueue()
        self._thread = threading.local()
        self.number, self.decode = 0, False
        for forwards in networks:
            on_gpu = forwards[0].device.type == "cuda"
            counts = [1] * PER_GPU if on_gpu else threads_of_batches(cores())
            self.decode = not on_gpu and max(counts) == 1
            for threads in counts:
                self._free.put((forwards, threads))
            self.number += len(counts)

    def begin(self) -> None:
        """Called once by each thread."""
        self._thread.networks, threads = self._free.get()
        use_threads(threads)
        device = self._thread.networks[0].device
        if device.type == "cuda":
            torch.cuda.set_device(device)
            torch.cuda.set_stream(torch.cuda.Stream(device))

    @property
    def networks(self) -> Sequence[Forward]:
        """Those of the calling thread."""
        return self._thread.networks

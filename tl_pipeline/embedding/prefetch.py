"""Pools of threads that work a bounded number of items ahead of who takes them.

Threads and not processes: forked children of a Prefect task die, and all heavy work of
the embedding loop releases Python's lock. Imports torch.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def single() -> None:
    """Let torch use one thread in this one: for those that work side by side."""
    torch.set_num_threads(1)


@contextmanager
def pool(
    name: str,
    threads: int,
    enlist: Callable[[], None] = single,
    *,
    finish: bool = False,
) -> Iterator[ThreadPoolExecutor]:
    """A pool that drops what is still waiting when the block ends by an error.

    ``enlist`` is called once by each thread. With ``finish`` what waits is done even
    then.
    """
    usual = torch.get_num_threads()
    threaded = ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=enlist)
    with ExitStack() as stack:
        # torch gives new threads the number that was set last, in whatever thread
        stack.callback(torch.set_num_threads, usual)
        stack.callback(threaded.shutdown, cancel_futures=not finish)
        yield threaded


def ahead(
    threaded: ThreadPoolExecutor,
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
        waiting.append(threaded.submit(work, item))
        if len(waiting) >= most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
    if fault is not None:
        raise fault

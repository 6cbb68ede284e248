"""Threads that seldom meet: else they wait for longer than they work.

After every operation all threads of torch meet. On a machine that does other work too,
each meeting waits for the slowest: a grid of 24 heads on 5,160 x 512 rows took 5-7 s on
one thread of two busy cores, 26-207 s on two. So torch uses one thread here, but for
large products, and work is cut into shares (``run_together``) that meet at their end.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock, local
from typing import TypeVar

import torch

LARGE = 1 << 28  # multiplications of a product that is worth meeting for
_T = TypeVar("_T")
_lock = Lock()
_running = 0
_usual = 1
_thread = local()


def single_threaded(work: Callable[[], _T]) -> _T:
    """What ``work`` returns, computed in a thread in which torch uses one thread.

    The number is torch's for each thread of Python and for those that start; the last
    one out puts back what new threads get.
    """
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(_single, work).result()


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``left @ right``; a large one by all threads, also inside ``single_threaded``."""
    large = left.numel() * right.shape[1] >= LARGE
    if not (large and hasattr(_thread, "helpers")):
        return left @ right
    torch.set_num_threads(_usual)
    try:
        return left @ right
    finally:
        torch.set_num_threads(1)


def thread_count() -> int:
    """How many shares ``run_together`` computes at once; 1 unless single-threaded."""
    return _usual if hasattr(_thread, "helpers") else 1


def run_together(shares: Sequence[Callable[[], _T]]) -> list[_T]:
    """What each of ``shares`` returns, in order; in ``single_threaded`` all at once."""
    if thread_count() == 1 or len(shares) < 2:
        return [share() for share in shares]
    others = [_thread.helpers.submit(share) for share in shares[1:]]
    return [shares[0](), *(other.result() for other in others)]


def _single(work: Callable[[], _T]) -> _T:
    global _running, _usual  # noqa: PLW0603 - so is torch's number
    with _lock:
        if not _running:
            _usual = torch.get_num_threads()
        _running += 1
        torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(
            max(1, _usual - 1), initializer=torch.set_num_threads, initargs=(1,)
        ) as _thread.helpers:
            return work()
    finally:
        with _lock:
            _running -= 1
            if not _running:
                torch.set_num_threads(_usual)

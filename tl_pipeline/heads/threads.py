"""Torch's threads for large products only: else they wait for longer than they work.

After every operation all threads of torch meet. On a machine that does other work too,
each meeting waits for the slowest: a grid of 24 heads on 5,160 x 512 rows took 5-7 s on
one thread of two busy cores, 26-207 s on two.
"""

from collections.abc import Callable
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


def alone(work: Callable[[], _T]) -> _T:
    """What ``work`` returns, computed in a thread in which torch uses one thread.

    The number is torch's for each thread of Python and for those that start; the last
    one out puts back what new threads get.
    """
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(_single, work).result()


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``left @ right``; a large one by all threads, also inside ``alone``."""
    large = left.numel() * right.shape[1] >= LARGE
    if not (large and getattr(_thread, "single", False)):
        return left @ right
    torch.set_num_threads(_usual)
    try:
        return left @ right
    finally:
        torch.set_num_threads(1)


def _single(work: Callable[[], _T]) -> _T:
    global _running, _usual  # noqa: PLW0603 - so is torch's number
    with _lock:
        if not _running:
            _usual = torch.get_num_threads()
        _running += 1
        torch.set_num_threads(1)
        _thread.single = True
    try:
        return work()
    finally:
        with _lock:
            _running -= 1
            if not _running:
                torch.set_num_threads(_usual)

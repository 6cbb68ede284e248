"""One thread for small products: others cost more to wait for than they bring.

After every operation all threads of torch meet. On a machine that does other work too,
each meeting waits for the slowest: a grid of 24 heads on 5,160 x 512 rows took 5-7 s on
one thread of two busy cores, 26-207 s on two.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

import torch

_T = TypeVar("_T")
_lock = Lock()
_running = 0
_usual = 1


def alone(work: Callable[[], _T]) -> _T:
    """What ``work`` returns, computed in a thread in which torch uses one thread.

    The number is torch's for each thread of Python and for those that start; the last
    one out puts back what new threads get.
    """
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(_single, work).result()


def _single(work: Callable[[], _T]) -> _T:
    global _running, _usual  # noqa: PLW0603 - so is torch's number
    with _lock:
        if not _running:
            _usual = torch.get_num_threads()
        _running += 1
        torch.set_num_threads(1)
    try:
        return work()
    finally:
        with _lock:
            _running -= 1
            if not _running:
                torch.set_num_threads(_usual)

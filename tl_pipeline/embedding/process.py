"""What this process may use, and what it may change of itself. Without torch."""

import ctypes
import os
import platform
from functools import cache

from tl_pipeline.errors import InvalidSpec

# From glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT = 1 << 30  # bytes


def cores() -> int:
    """The processor cores that this process may use.

    ``TL_CORES``, or else what affinity (``taskset``, Slurm) and the quota of a
    container leave of the machine.

    Raises:
        InvalidSpec: the variable holds no number of cores.
    """
    given = os.environ.get("TL_CORES", "").strip()
    if not given:
        import joblib  # noqa: PLC0415 - takes a tenth of a second

        return joblib.cpu_count()
    if not given.isdecimal() or int(given) < 1:
        raise InvalidSpec(f"TL_CORES={given!r} is no number of cores; give 1 or more")
    return int(given)


def memory() -> int:
    """The bytes of memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class _Process:
    """Whether this process runs nothing but this package."""

    own = False


def claim() -> None:
    """Say that this process runs nothing but this package.

    Called where such a process begins: by the command line, by a flow and by a worker
    of a cluster. Without it nothing of the process is changed.
    """
    _Process.own = True


def keep_freed_memory() -> None:
    """Let glibc keep what a network frees for its next batch, in a process of our own.

    By default large blocks go back to the kernel, which hands them out anew page by
    page and zeroed: ResNet-50 spent 40 % of its time so. Without glibc nothing is done.
    """
    if _Process.own:
        _keep_freed_memory()


@cache
def _keep_freed_memory() -> None:
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _KEPT)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)

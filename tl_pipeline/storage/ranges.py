"""An object that is fetched in parts, as a file."""

import io
import os
from collections.abc import Callable
from typing import Any


class Ranges(io.RawIOBase):
    """``size`` bytes as a file, each read by ``fetch(offset, length)``."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._fetch, self._size, self._at = fetch, size, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position, in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move there; nothing is fetched."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(22, "negative seek")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer``, but for the end of the file."""
        length = min(len(buffer), self._size - self._at)
        data = self._fetch(self._at, length)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

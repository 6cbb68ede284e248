"""The places of a dataset: local files as they are, and objects through fsspec.

Errors of libraries become ``OSError`` without credentials. Transient ones are retried
by s3fs (5 times, on top of botocore's 5) and gcsfs (6); for HTTP, where fsspec does
not, up to 3 times here.
"""

import functools
import io
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import has_magic
from pathlib import Path
from typing import IO, Any, TypeVar

from tl_pipeline.config.locations import (
    StorageSpec,
    folder_of,
    is_url,
    on_web,
    parts,
    scheme,
)
from tl_pipeline.errors import DatasetError
from tl_pipeline.storage.connection import connect, fault, is_transient
from tl_pipeline.storage.ranges import Ranges
from tl_pipeline.storage.stamps import UNKNOWN, Found, Stamp, found_in, stamp_of

Place = Path | str  # a string is a URL
_Answer = TypeVar("_Answer")
_BUFFER = 1 << 20  # bytes that one request asks for at least, where more will be read
_WAITS = (0.2, 1.0)  # seconds before HTTP is tried again
_GIVE_UP = 3  # requests in a row that failed for no fault of their object
_REST = 5  # seconds after which one more is tried
_HEADS = 16  # threads that ask for stamps where there is no listing


class Storage:
    """The places of one dataset. Threads may share it; it does not travel.

    ``spec`` is about the URLs among ``homes``: their scheme or, behind HTTP, their
    host. Other hosts are never sent credentials. With ``allowed`` HTTP is redirected
    only to URLs of which it is true.
    """

    # What helps where access is denied, other than what a catalogue may say.
    cure: str | None = None

    def __init__(
        self,
        spec: StorageSpec,
        *homes: Place | None,
        allowed: Callable[[str], bool] | None = None,
    ) -> None:
        self._spec, self._allowed = spec, allowed
        self._homes = {_authority(home) for home in homes if is_url(home)}
        self._connections: dict[str, Any] = {}
        self._looked: dict[str, tuple[float, Stamp]] = {}
        self._lock = threading.Lock()
        self._failures = 0
        self._failed_at, self._fault = 0.0, OSError()

    @property
    def lost(self) -> bool:
        """Whether nothing answers any more, so that going on is in vain."""
        rested = time.monotonic() - self._failed_at > _REST
        return self._failures >= _GIVE_UP and not rested

    def stamp(self, place: Place, *, seconds: float = 0) -> Stamp:
        """What is there now, or was ``seconds`` ago if it is behind a URL.

        Raises:
            OSError: nothing is there, or it cannot be looked at.
        """
        if isinstance(place, Path):
            stat = place.stat()
            version = f"{stat.st_size}:{stat.st_mtime_ns}"
            return Stamp(stat.st_size, version, stat.st_mtime_ns)
        when, stamp = self._looked.get(place, (float("-inf"), UNKNOWN))
        if time.monotonic() - when > seconds:
            stamp = self._look(place)
            self._looked[place] = (time.monotonic(), stamp)
        return stamp

    def find_folder(self, folder: str) -> None:
        """See that an object store has anything in it.

        Raises:
            FileNotFoundError: there is no such folder or bucket.
            OSError: it cannot be looked at.
        """
        self._ask(folder, lambda files: files.info(folder))

    def stamps(
        self, places: Sequence[Place | None], listings: dict[str, dict[str, Stamp]]
    ) -> list[Stamp]:
        """Those of many files; UNKNOWN for what is not there, reading it will tell.

        Objects are looked up in the listing of their folder, which ``listings`` keeps
        (some 300 bytes an object); behind HTTP each is asked for.

        Raises:
            OSError: a folder cannot be listed, or nothing answers any more.
        """

        def look(place: Place | None) -> Stamp:
            try:
                if is_url(place):
                    return self._look(place)
                return self.stamp(place) if place else UNKNOWN
            except (OSError, ValueError):
                return UNKNOWN

        def listed(place: Place | None) -> Stamp:
            if not is_url(place):
                return look(place)
            folder = folder_of(place)
            if folder not in listings:
                listings[folder] = self._listing(folder)
            return listings[folder].get(place, UNKNOWN)

        if any(is_url(place) and on_web(place) for place in places):
            with ThreadPoolExecutor(_HEADS) as threads:
                return list(threads.map(look, places))
        return [listed(place) for place in places]

    def children(self, folder: str) -> list[Found]:
        """What is in a folder, sorted by name; one request for every 1,000.

        Raises:
            FileNotFoundError: there is no such folder or bucket.
            OSError: it cannot be listed.
        """
        infos = self._ask(folder, lambda files: files.ls(folder, detail=True))
        inside = folder.rstrip("/") + "/"
        found = (found_in(inside, info) for info in infos)
        return sorted(filter(None, found), key=lambda child: child.name)

    def matches(self, place: str) -> list[str]:
        """``place`` itself or, failing that, the files that it means as a pattern.

        Raises:
            FileNotFoundError: there are none.
            OSError: it cannot be looked at.
        """
        try:
            self.stamp(place)
        except FileNotFoundError:
            if not has_magic(place) or on_web(place):
                raise
        else:
            return [place]
        infos = self._ask(place, lambda files: files.glob(place, detail=True))
        names = [n for n, info in infos.items() if info["type"] != "directory"]
        if not names:
            raise FileNotFoundError(f"{place}: nothing matches")
        return sorted(f"{scheme(place)}://{name.lstrip('/')}" for name in names)

    def read(self, place: Place) -> bytes:
        """All of a file.

        Raises:
            OSError: it cannot be read.
            DatasetError: nothing answers any more.
        """
        if isinstance(place, Path):
            return place.read_bytes()
        if place.endswith("/"):
            raise FileNotFoundError(f"{place}: a folder, not a file")
        return self._ask(place, lambda files: files.cat_file(place))

    def fetch(self, place: Place, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``, fewer at the end. Shares no position.

        Raises:
            OSError: they cannot be read, or a web server knows no ranges.
        """
        if isinstance(place, Path):
            with place.open("rb", buffering=0) as file:
                return os.pread(file.fileno(), length, offset)
        if length <= 0:
            return b""
        span = {"start": offset, "end": offset + length}
        data = self._ask(place, lambda files: files.cat_file(place, **span))
        if len(data) > length:
            raise OSError(
                f"{place}: the server sends whole files only, so that an archive there "
                "cannot be read in parts; download it and give its local path"
            )
        return data

    def open(self, place: Place, *, buffer: int = _BUFFER) -> IO[bytes]:
        """For random access.

        Raises:
            OSError: see ``fetch``, also while reading.
        """
        if isinstance(place, Path):
            return place.open("rb")
        size = self.stamp(place).size
        if size is None:
            raise OSError(f"{place}: the server does not tell its size; download it")
        ranges: Any = Ranges(functools.partial(self.fetch, place), size)
        return io.BufferedReader(ranges, buffer) if buffer else ranges

    def arrow(self, place: Place) -> Any:
        """What pyarrow opens for random access; a local file it reads by itself."""
        return place if isinstance(place, Path) else self.open(place, buffer=0)

    def stream(self, place: Place) -> IO[bytes]:
        """For reading from the start; of a web server through a temporary file."""
        if isinstance(place, Path) or not on_web(place):
            return self.open(place, buffer=2 * _BUFFER)

        def spool(files: Any) -> IO[bytes]:
            spooled = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
            try:
                files.get_file(place, spooled)
            except BaseException:
                spooled.close()
                raise
            return spooled

        spooled = self._ask(place, spool)
        spooled.seek(0)
        return spooled

    def _look(self, url: str) -> Stamp:
        info = self._ask(url, lambda files: files.info(url))
        if info["type"] == "directory":
            raise IsADirectoryError(f"{url}: a folder")
        return stamp_of(info)

    def _listing(self, folder: str) -> dict[str, Stamp]:
        try:
            return {child.path: child.stamp for child in self.children(folder)}
        except FileNotFoundError:
            return {}

    def _ask(self, url: str, ask: Callable[[Any], _Answer]) -> _Answer:
        if self.lost:
            raise DatasetError(
                f"{url}: not asked for, since the last {_GIVE_UP} requests failed; "
                "look at the network and run again"
            ) from self._fault
        waits = iter(_WAITS if on_web(url) else ())
        while True:
            try:
                answer = ask(self._connection(url))
            except DatasetError:
                raise
            # Each library has errors of its own, many of which are no OSError.
            except Exception as error:  # noqa: BLE001
                wait = next(waits, None)
                if wait is None or not is_transient(error):
                    told = self._failed(url, error)
                    if self.lost:
                        said = f"{told}; so did {_GIVE_UP} requests in a row"
                        raise DatasetError(said) from told
                    raise told from None
                time.sleep(wait)
            else:
                self._failures = 0
                return answer

    def _failed(self, url: str, error: Exception) -> OSError:
        told = fault(url, error, self._spec, self.cure)
        # One of many hosts that rows name may be gone without the rest being so.
        about_it = isinstance(told, FileNotFoundError | PermissionError)
        about_it = about_it or _authority(url) not in self._homes
        self._failures = 0 if about_it else self._failures + 1
        self._failed_at, self._fault = time.monotonic(), told
        return told

    def _connection(self, url: str) -> Any:
        home = _authority(url) in self._homes
        key = f"{scheme(url)} {home}"
        with self._lock:
            if key not in self._connections:
                spec = self._spec if home else StorageSpec()
                self._connections[key] = self._connect(url, spec)
            return self._connections[key]

    def _connect(self, url: str, spec: StorageSpec) -> Any:
        return connect(url, spec, self._allowed)


def _authority(url: str) -> str:
    return "://".join(parts(url)[:2]) if on_web(url) else scheme(url)

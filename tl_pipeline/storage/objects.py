"""The objects below one URL of an object store: listed, fetched, written.

A write is one object, whole or absent. There is no rename, no folder and no lock; what
orders writers is ``create``, which only the first of several can do.
"""

import functools
import io
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

from tl_pipeline.config.locations import StorageSpec, is_url, parts, scheme
from tl_pipeline.errors import DatasetError, StoreError
from tl_pipeline.storage.connection import connect
from tl_pipeline.storage.places import Storage
from tl_pipeline.storage.ranges import Ranges
from tl_pipeline.storage.stamps import UNKNOWN, ObjectInfo, Stamp, info_of, stamp_of

SCHEMES = ("s3", "gs")
# Bytes that are asked for at once when a file is read in parts.
_BUFFER = 1 << 16
_THREADS = 16  # requests at a time
_Answer = TypeVar("_Answer")
_Item = TypeVar("_Item")


class Objects:
    """Objects by their names below ``url``, with the credentials of the environment.

    Threads may share it. Every method raises ``StoreError``, which names the object,
    where the store does not answer, or refuses.
    """

    def __init__(self, url: str) -> None:
        self.url = _checked(url)
        self._storage = _Writable(StorageSpec(), self.url)

    def exists(self) -> bool:
        """Whether anything is below the URL.

        Raises:
            StoreError: there is no such bucket.
        """
        try:
            return bool(self._do(self._storage.children, self.url))
        except FileNotFoundError:
            pass
        bucket = "://".join(parts(self.url)[:2])
        try:
            self._do(self._storage.find_folder, bucket)
        except FileNotFoundError as error:
            raise StoreError(f"{error}. Make the bucket first") from None
        return False

    def folders(self, folder: str) -> set[str]:
        """The names of the folders in ``folder``; one request for every 1,000."""
        try:
            found = self._do(self._storage.children, self._at(folder))
        except FileNotFoundError:
            return set()
        return {child.name.rstrip("/") for child in found if child.folder}

    def listing(self, folder: str) -> dict[str, Stamp]:
        """Name -> stamp of everything below ``folder``, however deep; "" is the top."""
        return {name: stamp_of(info) for name, info in self._below(folder)}

    def infos(self) -> dict[str, ObjectInfo]:
        """Name -> size and time of everything below the URL.

        Raises:
            StoreError: the store does not tell when an object was written.
        """
        return {name: self._told(name, info) for name, info in self._below("")}

    def look(self, name: str) -> ObjectInfo:
        """Size and time of one object.

        Raises:
            FileNotFoundError: there is none.
            StoreError: see ``infos``.
        """
        url = self._at(name)
        info = self._do(self._storage.ask, url, lambda files: files.info(url))
        return self._told(name, info)

    def read(self, name: str) -> bytes:
        """All of an object.

        Raises:
            FileNotFoundError: there is none.
        """
        return self._do(self._storage.read, self._at(name))

    def fetch(self, name: str, file: Path) -> None:
        """Write all of an object to ``file``.

        Raises:
            FileNotFoundError: there is none.
        """
        url, where = self._at(name), str(file)
        self._do(self._storage.ask, url, lambda files: files.get_file(url, where))

    def open(self, name: str, stamp: Stamp = UNKNOWN) -> IO[bytes]:
        """For random access; reading may raise what ``read`` does."""
        url = self._at(name)
        size = stamp.size if stamp.size is not None else self._size(url)
        fetch = functools.partial(self._do, self._storage.fetch, url)
        ranges: Any = Ranges(fetch, size)
        return io.BufferedReader(ranges, _BUFFER)

    def write(self, name: str, data: bytes) -> None:
        """Write an object, or replace it whole."""
        url = self._at(name)
        self._do(self._storage.ask, url, lambda files: files.pipe_file(url, data))

    def put(self, name: str, file: Path) -> None:
        """Write a file as an object, or replace that whole."""
        url, what = self._at(name), str(file)
        self._do(self._storage.ask, url, lambda files: files.put_file(what, url))

    def create(self, name: str, data: bytes) -> bool:
        """Write an object unless there is one; whether ``data`` is what is there.

        Amazon's and Google's stores decide between several writers. A server that does
        not know the condition lets the last one win: of two that do not write in the
        same moment the second still learns that it is late.
        """
        url = self._at(name)

        def write(files: Any) -> None:
            try:
                files.pipe_file(url, data, mode="create")
            except Exception as error:
                if not _is_taken(error):
                    raise

        try:
            there = self.read(name)
        except FileNotFoundError:
            self._do(self._storage.ask, url, write)
            # also tells whether our own first try came through, unanswered
            there = self.read(name)
        return there == data

    def remove(self, name: str) -> None:
        """Delete an object; nothing happens if it is gone."""
        url = self._at(name)
        try:
            self._do(self._storage.ask, url, lambda files: files.rm_file(url))
        except FileNotFoundError:
            return

    def _below(self, folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name, and what fsspec says, of each object below ``folder``."""
        inside = f"{self._at(folder).rstrip('/')}/"

        def find(files: Any) -> dict[str, Any]:
            return files.find(inside, detail=True)

        try:
            infos = self._do(self._storage.ask, inside, find)
        except FileNotFoundError:
            return
        for name, info in infos.items():
            path = f"{scheme(self.url)}://{name.lstrip('/')}"
            if path.startswith(inside) and path != inside and _plain(path):
                yield path.removeprefix(f"{self.url}/"), info

    def _told(self, name: str, info: dict[str, Any]) -> ObjectInfo:
        held = info_of(info)
        if held is None:
            raise StoreError(
                f"{self._at(name)}: the server does not tell when it was written"
            )
        return held

    def _size(self, url: str) -> int:
        size = self._do(self._storage.stamp, url).size
        if size is None:
            raise StoreError(f"{url}: the server does not tell its size")
        return size

    def _at(self, name: str) -> str:
        return f"{self.url}/{name}"

    def _do(self, ask: Callable[..., _Answer], *given: Any) -> _Answer:
        for last in (False, True):
            try:
                return ask(*given)
            except FileNotFoundError:
                raise
            except (OSError, DatasetError) as error:
                # Bytes that changed on their way are asked for once more.
                if last or "checksum" not in str(error):
                    raise StoreError(
                        f"the store {self.url} cannot be used: {error}"
                    ) from None
        raise AssertionError


def at_once(work: Callable[[_Item], object], items: Iterable[_Item]) -> None:
    """``work``, which asks a store, for each item; the first error is raised."""
    items = list(items)
    if len(items) == 1:
        work(items[0])
    elif items:
        with ThreadPoolExecutor(min(_THREADS, len(items))) as threads:
            for _ in threads.map(work, items):
                pass


class _Writable(Storage):
    """Connected so that it may write."""

    cure = "log in as usual: the credentials of a store come from the environment"

    def ask(self, url: str, ask: Callable[[Any], _Answer]) -> _Answer:
        """What the fsspec file system of ``url`` answers; see ``Storage``."""
        return self._ask(url, ask)

    def _connect(self, url: str, spec: StorageSpec) -> Any:
        return connect(url, spec, write=True)


def _checked(url: str) -> str:
    """``url`` without a slash at its end, if a store can be there.

    Raises:
        StoreError: it cannot.
    """
    found = f"{scheme(url)}://{url.partition('://')[2]}".rstrip("/")
    if not is_url(url) or scheme(url) not in SCHEMES:
        choices = " or ".join(f"{name}://" for name in SCHEMES)
        raise StoreError(
            f"{url}: a store lies in a local folder, or begins with {choices}"
        )
    if len(parts(found)) < 2 or not _plain(found) or re.search(r"[\s?#*\[\]@]", found):
        raise StoreError(f"{url}: write {scheme(url)}://BUCKET or .../BUCKET/FOLDER")
    return found


def _plain(url: str) -> bool:
    """Whether its names are safe as those of a local path."""
    names = url.partition("://")[2].split("/")
    odd = any(name in {"", ".", ".."} for name in names)
    return not odd and "\\" not in url and "\0" not in url


def _is_taken(error: Exception) -> bool:
    """Whether the store says that the object is there, or is being written."""
    response = getattr(error.__cause__, "response", None)
    code = response["Error"]["Code"] if isinstance(response, dict) else ""
    return isinstance(error, FileExistsError) or code in {
        "PreconditionFailed",
        "ConditionalRequestConflict",
    }

"""What is in an archive and where, without unpacking it; the reader of tar files."""

import bz2
import gzip
import lzma
import os
import shutil
import tarfile
import tempfile
import threading
import weakref
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tl_pipeline.errors import DatasetError
from tl_pipeline.storage import Place, Storage

_LARGEST = 1 << 30  # bytes of one member
_LONGEST_HEADER = 1 << 18  # bytes of a long name and of what else pax says of a member
_SMALL = 1 << 10  # bytes of a member, a label say, worth keeping to save a request
_FRESH = 10.0  # seconds that the stamp of an archive behind a URL is believed
_UNPACK = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


@dataclass(frozen=True, slots=True)
class Member:
    """One file or folder of an archive; ``refusal`` says why it is never read.

    ``name`` may occur twice, ``key`` does not: a second ``a.jpg`` has ``a.jpg#2``.
    ``packing`` is what else the reader of its archive needs.
    """

    key: str
    name: str
    size: int
    offset: int
    refusal: str
    folder: bool
    packing: tuple[int, ...] = ()

    @property
    def folders(self) -> list[str]:
        """The folders that hold it, outermost first; a folder holds itself."""
        path = _parts(self.name)
        return path if self.folder else path[:-1]


class Index(ABC):
    """The members of one archive by their key, in the archive's order.

    Names with a part that begins with a dot, and ``__MACOSX``, are left out.
    """

    def __init__(self, path: Place, storage: Storage) -> None:
        self.path, self.storage = path, storage
        self.stamp = storage.stamp(path, seconds=_FRESH)
        self.members: dict[str, Member] = {}
        self._copies: Counter[str] = Counter()

    @abstractmethod
    def load(self, member: Member) -> bytes:
        """The bytes of a member.

        Raises:
            OSError: they are damaged, encrypted, or in no supported form.
        """

    def version(self, member: Member) -> str | None:
        """Changes whenever the bytes of ``member`` may have changed."""
        whole = self.stamp.version
        return None if whole is None else f"{whole}:{member.offset}"

    def read(self, key: str) -> bytes:
        """The bytes of a member that may be read.

        Raises:
            PermissionError: it is a link, a device, or its path leaves the archive.
            OSError: it is not there, over 1 GiB, or see ``load``.
        """
        uri, member = printable(f"{self.path}#{key}"), self.members.get(key)
        if member is None:
            raise FileNotFoundError(f"{uri}: no such member")
        if member.refusal:
            raise PermissionError(f"{uri}: {member.refusal}")
        if member.size > _LARGEST:
            raise OSError(f"{uri}: {member.size} bytes, the most is {_LARGEST}")
        try:
            return self.load(member)
        except OSError as error:
            raise OSError(f"{uri}: {error}") from None

    def add(self, raw: str, *place: int, refusal: str, folder: bool) -> None:
        """Put a member in: its name, size and offset, and what else ``load`` needs."""
        name = printable(raw)
        path, stray = _parts(name), name.startswith("/") or ".." in name.split("/")
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in path)
        if not path or (hidden and not stray):
            return
        key = name
        while key in self.members:
            self._copies[name] += 1
            key = f"{name}#{self._copies[name] + 1}"
        size, offset, *packing = place
        refusal = "its path leads out of the archive" if stray else refusal
        self.members[key] = Member(
            key, name, size, offset, refusal, folder, tuple(packing)
        )


class Indexes:
    """The index of each archive: made once, and again when the archive changed.

    While reading, one behind a URL is looked at every ten seconds only.
    """

    def __init__(
        self, make: Callable[[Place, Storage], Index], storage: Storage
    ) -> None:
        self._make, self._storage = make, storage
        self._made: dict[Place, Index] = {}
        self._lock = threading.Lock()

    def of(self, path: Place, *, fresh: bool = False) -> Index:
        """The index of the archive as it is now.

        Raises:
            DatasetError: it is missing, truncated, or of another format.
        """
        try:
            now = self._storage.stamp(path, seconds=0 if fresh else _FRESH)
            made = self._made.get(path)
            if made is not None and made.stamp == now:
                return made
            with self._lock:
                made = self._made.get(path)
                if made is None or made.stamp != now:
                    made = self._make(path, self._storage)
                    self._made[path] = made
                return made
        # Parsers of damaged archives raise what they please.
        except Exception as error:  # noqa: BLE001
            fault = (str(error) or type(error).__name__).removeprefix(f"{path}: ")
            raise DatasetError(printable(f"{path} cannot be read: {fault}")) from None


class TarMembers(Index):
    """A tar file, indexed in one pass over its headers, read by offsets.

    A compressed tar has no random access. It is uncompressed once, as a stream, into a
    nameless temporary file (in TMPDIR, which needs the room of the plain tar) that
    vanishes with the index or the process.
    """

    def __init__(self, path: Place, storage: Storage) -> None:
        super().__init__(path, storage)
        self._spool: IO[bytes] | None = None
        self._small: dict[int, bytes] = {}
        head = storage.fetch(path, 0, 6)
        unpack = next((_UNPACK[m] for m in _UNPACK if head.startswith(m)), None)
        if unpack is None:
            with storage.open(path) as file:
                self._scan(file)
            return
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115 - see finalize
        weakref.finalize(self, self._spool.close)
        with storage.stream(path) as file, unpack(file, "rb") as packed:
            shutil.copyfileobj(packed, self._spool, 1 << 20)
        self._spool.flush()
        self._scan(self._spool)

    def load(self, member: Member) -> bytes:
        """One ``pread`` or one range request: threads share no position."""
        if member.offset in self._small:
            return self._small[member.offset]
        if self._spool is not None:
            data = os.pread(self._spool.fileno(), member.size, member.offset)
        else:
            data = self.storage.fetch(self.path, member.offset, member.size)
        if len(data) != member.size:
            raise OSError(f"{len(data)} of {member.size} bytes are there")
        return data

    def _scan(self, file: IO[bytes]) -> None:
        file.seek(0)
        headers: Any = _Headers(file)
        tar = tarfile.TarFile(fileobj=headers, encoding="utf-8")
        tar.offset = 0
        # TarFile.next() takes a damaged header for the end, and keeps all it has seen.
        while any(_block(file, tar.offset)):
            start = file.seek(tar.offset)
            info = tarfile.TarInfo.fromtarfile(tar)
            if info.size < 0 or tar.offset <= start:
                raise tarfile.ReadError("a member has a negative size")
            place, refusal = (info.size, info.offset_data), _refusal(info)
            self.add(info.name, *place, refusal=refusal, folder=info.isdir())
            if not isinstance(self.path, Path) and self._spool is None:
                self._keep(file, *place)
        file.seek(tar.offset)
        while block := file.read(1 << 20):
            if block.strip(b"\0"):
                raise tarfile.ReadError("data after the end, as in concatenated tars")

    def _keep(self, file: IO[bytes], size: int, offset: int) -> None:
        """Remember a small member, which the buffer of ``file`` holds anyway."""
        if 0 < size <= _SMALL:
            file.seek(offset)
            if len(data := file.read(size)) == size:
                self._small[offset] = data


class _Headers:
    """Lets a tar parser read headers only, whatever sizes they claim."""

    def __init__(self, file: IO[bytes]) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int) -> bytes:
        if size not in range(_LONGEST_HEADER):
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._read(size)


def printable(text: str) -> str:
    """``text`` with what is no UTF-8 escaped, which a table could not hold."""
    return text.encode(errors="backslashreplace").decode()


def _parts(name: str) -> list[str]:
    """The folders and the base name of a member."""
    return [part for part in name.split("/") if part not in ("", ".")]


def _block(file: IO[bytes], offset: int) -> bytes:
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("the tar has no end: it is truncated")
    return block


def _refusal(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return f"a link to {printable(info.linkname)}"
    if info.issparse():
        return "a sparse file"
    return "" if info.isdir() or info.isreg() else "neither a file nor a folder"

"""The reader of tar files."""

import bz2
import gzip
import lzma
import os
import shutil
import tarfile
import tempfile
import weakref
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from tl_pipeline.sources.archive_index import Index, Member
from tl_pipeline.sources.entry import printable
from tl_pipeline.sources.file_kinds import LENGTH, kind_of
from tl_pipeline.storage import Place, Storage

READ = "read are zip files, and tar plain or compressed by gzip, bzip2, xz or Zstandard"
_LONGEST_HEADER = 1 << 18  # bytes of a long name and of what else pax says of a member
_SMALL = 1 << 10  # bytes of a member, a label say, worth keeping to save a request
_UNPACK = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x28\xb5\x2f\xfd": lambda file, _: pa.CompressedInputStream(file, "zstd"),
}


class TarIndex(Index):
    """A tar file, indexed in one pass over its headers, read by offsets.

    A compressed tar has no random access. It is uncompressed once, as a stream, into a
    nameless temporary file (in TMPDIR, which needs the room of the plain tar) that
    vanishes with the index or the process.
    """

    def __init__(
        self,
        path: Place,
        storage: Storage,
        *,
        replace: bool = False,
        encoding: str | None = None,
    ) -> None:
        super().__init__(path, storage, replace=replace)
        self._encoding = encoding or "utf-8"
        self._spool: IO[bytes] | None = None
        self._small: dict[int, bytes] = {}
        head = storage.fetch(path, 0, LENGTH)
        unpack = next((_UNPACK[m] for m in _UNPACK if head.startswith(m)), None)
        if unpack is None:
            _check(head, "it")
            with storage.open(path) as file:
                self._scan(file)
            return
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115 - see finalize
        weakref.finalize(self, self._spool.close)
        with storage.stream(path) as file, unpack(file, "rb") as packed:
            shutil.copyfileobj(packed, self._spool, 1 << 20)
        self._spool.flush()
        self._spool.seek(0)
        _check(self._spool.read(LENGTH), f"it is {kind_of(head)}, and what is inside")
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
        tar = tarfile.TarFile(fileobj=headers, encoding=self._encoding)
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


def _check(head: bytes, what: str) -> None:
    """Refuse, by its name if it is known, what is no tar."""
    try:
        if any(head[: tarfile.BLOCKSIZE]):
            tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "replace")
    except tarfile.HeaderError:
        kind = kind_of(head)
        raise tarfile.ReadError(
            f"{what} is {kind or 'neither a zip nor a tar'}; {READ}"
        ) from None


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

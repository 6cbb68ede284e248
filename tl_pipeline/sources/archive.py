"""Archives of a folder of images: zip, tar, tar.gz, tar.bz2, tar.xz."""

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tl_pipeline.config.datasets import ArchiveSpec
from tl_pipeline.config.locations import is_url
from tl_pipeline.errors import DatasetError
from tl_pipeline.sources.entry import Entry
from tl_pipeline.sources.image_folder import SPLIT_FOLDERS
from tl_pipeline.sources.tar_members import (
    Index,
    Indexes,
    Member,
    TarMembers,
    printable,
)
from tl_pipeline.storage import Place, Storage

_ZIP = (b"PK\3\4", b"PK\5\6")
_LOCAL_HEADER = 30  # bytes before the name
_BEFORE = 1 << 9  # bytes that the local header, the name and so on seldom exceed


class Archive:
    """Every file of the archive is an input, read from it without unpacking.

    Labels and splits are those that ``ImageFolder`` would give to the unpacked folder;
    one folder that wraps everything, such as ``photos/train/cat/1.jpg``, is passed
    over. A uri is ``<archive>#<member>``. The version of a zip's member is its checksum
    and size, so that a new archive with old images is cheap; that of a tar's member is
    the archive's size and time and its offset. Members are listed in the archive's
    order; those that must not be read (links, devices, paths that lead out of the
    archive) have no label.
    """

    def __init__(self, spec: ArchiveSpec) -> None:
        self._spec = spec
        # resolve() would follow a link such as latest.zip, and every uri would change.
        local = not is_url(spec.path)
        self._path = Path(os.path.abspath(spec.path)) if local else spec.path  # noqa: PTH100
        self._prefix = printable(f"{self._path}#")
        self._storage = Storage(spec.storage, spec.path)
        self._indexes = Indexes(_index, self._storage)

    def __reduce__(self) -> tuple[type["Archive"], tuple[ArchiveSpec]]:
        return Archive, (self._spec,)

    def entries(self) -> Iterator[Entry]:
        """One entry per file of the archive.

        Raises:
            DatasetError: the archive is missing, damaged, or holds nothing.
        """
        index = self._indexes.of(self._path, fresh=True)
        members = index.members.values()
        layout = _Layout.of(member for member in members if not member.refusal)
        if all(member.folder for member in members):
            raise DatasetError(f"{self._path} is empty; expected class/image files")
        for member in members:
            if member.folder and not member.refusal:
                continue
            label, split = layout.place([] if member.refusal else member.folders)
            uri, version = self._prefix + member.key, index.version(member)
            yield Entry(uri, label, version, split, modified_ns=index.stamp.modified_ns)

    def read(self, uri: str) -> bytes:
        """The bytes of the member ``uri``.

        Raises:
            OSError: see ``Index.read``, or the archive itself cannot be read any more.
        """
        if not uri.startswith(self._prefix):
            raise FileNotFoundError(f"{uri}: not of this archive")
        try:
            index = self._indexes.of(self._path)
        except DatasetError as error:
            if self._storage.lost:
                raise
            raise OSError(f"{uri}: {error}") from None
        return index.read(uri.removeprefix(self._prefix))


@dataclass(frozen=True)
class _Layout:
    """Which folders of an archive are splits, and whether one folder wraps it all."""

    wrapped: bool
    splits: dict[str, str]

    @classmethod
    def of(cls, members: Iterable[Member]) -> "_Layout":
        top, below, loose = set[str](), set[str](), False
        for member in members:
            top.update(member.folders[:1])
            below.update(member.folders[1:2])
            loose = loose or not member.folders
        wrapped = len(top) == 1 and top != {"train"} and bool(below) and not loose
        folders = below if wrapped else top
        if "train" not in folders or not folders <= SPLIT_FOLDERS.keys():
            return cls(wrapped, {})
        splits = {name: SPLIT_FOLDERS[name] for name in folders}
        if "test" not in splits.values():
            splits = dict.fromkeys(folders, "test") | {"train": "train"}
        return cls(wrapped, splits)

    def place(self, folders: list[str]) -> tuple[str | None, str | None]:
        """Label and split of a file below these folders."""
        inner, split = folders[self.wrapped :], None
        if self.splits and inner:
            split, inner = self.splits[inner[0]], inner[1:]
        return (inner[0] if inner else None), split


class _ZipMembers(Index):
    """A zip file, indexed by its central directory, read by offsets."""

    def __init__(self, path: Place, storage: Storage) -> None:
        super().__init__(path, storage)
        with storage.open(path) as whole, zipfile.ZipFile(whole) as file:
            for info in file.infolist():
                place = info.file_size, info.header_offset, info.CRC, info.compress_size
                coding, refusal = (info.compress_type, info.flag_bits), _refusal(info)
                name, folder = info.filename, info.is_dir()
                self.add(name, *place, *coding, refusal=refusal, folder=folder)

    def version(self, member: Member) -> str:
        """Of the member alone: its checksum, which reading verifies, and its size."""
        return f"{member.packing[0]:08x}:{member.size}"

    def load(self, member: Member) -> bytes:
        """The bytes as the directory describes them; inflates no more."""
        crc, size, method, flags = member.packing
        if flags & 1:
            raise OSError("encrypted")
        # Deflating adds less than an eighth, even to what is dense already.
        length = min(size, member.size * 9 // 8 + 1024)
        near = self.storage.fetch(self.path, member.offset, _BEFORE + length)
        if len(near) < _LOCAL_HEADER or not near.startswith(_ZIP[0]):
            raise OSError("damaged: nothing where the directory says")
        start = _LOCAL_HEADER + sum(struct.unpack_from("<HH", near, 26))
        packed = near[start : start + length]
        if start > _BEFORE:
            packed = self.storage.fetch(self.path, member.offset + start, length)
        data = _inflated(packed, method, member.size + 1)
        if len(data) != member.size or zlib.crc32(data) != crc:
            raise OSError("damaged: not the size or the checksum of the directory")
        return data


def _inflated(packed: bytes, method: int, most: int) -> bytes:
    try:
        if method == zipfile.ZIP_STORED:
            return packed
        if method == zipfile.ZIP_DEFLATED:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, most)
    except zlib.error as error:
        raise OSError(f"damaged: {error}") from None
    raise OSError(f"compression method {method} is not supported")


def _refusal(info: zipfile.ZipInfo) -> str:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind in (0, stat.S_IFREG, stat.S_IFDIR):
        return ""
    return "a link" if kind == stat.S_IFLNK else "neither a file nor a folder"


def _index(path: Place, storage: Storage) -> Index:
    zipped = storage.fetch(path, 0, 4) in _ZIP
    return (_ZipMembers if zipped else TarMembers)(path, storage)

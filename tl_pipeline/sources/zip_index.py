"""The reader of zip files."""

import bz2
import stat
import struct
import zipfile
import zlib

from tl_pipeline.sources.archive_index import Index, Member
from tl_pipeline.storage import Place, Storage

_LOCAL_HEADER = 30  # bytes before the name
_BEFORE = 1 << 9  # bytes that the local header, the name and so on seldom exceed
_UTF8 = 1 << 11  # the flag of a name in UTF-8
_METHODS = {
    9: "Deflate64",
    14: "LZMA",
    93: "Zstandard",
    95: "XZ",
    98: "PPMd",
    1: "Shrink",
    6: "Implode",
    97: "WavPack",
    96: "JPEG",
}


class ZipIndex(Index):
    """A zip file, indexed by its central directory, read by offsets.

    What unpacks itself is one too, behind a program. Names that are not marked as UTF-8
    are read in the index's ``encoding``, else as UTF-8 if all of them are valid, else
    as code page 437, and then said.
    """

    def __init__(
        self, path: Place, storage: Storage, *, encoding: str | None = None
    ) -> None:
        super().__init__(path, storage, replace=True)
        with storage.open(path) as whole, zipfile.ZipFile(whole) as file:
            infos = file.infolist()
        names = self._names(infos, encoding)
        for info, name in zip(infos, names, strict=True):
            place = info.file_size, info.header_offset, info.CRC, info.compress_size
            coding, refusal = (info.compress_type, info.flag_bits), _refusal(info)
            self.add(name, *place, *coding, refusal=refusal, folder=info.is_dir())

    def version(self, member: Member) -> str:
        """Of the member alone: its checksum, which reading verifies, and its size."""
        return f"{member.packing[0]:08x}:{member.size}"

    def load(self, member: Member) -> bytes:
        """The bytes as the directory describes them; inflates no more."""
        crc, size, method, flags = member.packing
        if flags & 1:
            raise OSError("encrypted; unpack it with its password, and pack it without")
        # Deflating adds less than an eighth, even to what is dense already.
        length = min(size, member.size * 9 // 8 + 1024)
        near = self.storage.fetch(self.path, member.offset, _BEFORE + length)
        if len(near) < _LOCAL_HEADER or not near.startswith(b"PK\3\4"):
            raise OSError("damaged: nothing where the directory says")
        start = _LOCAL_HEADER + sum(struct.unpack_from("<HH", near, 26))
        packed = near[start : start + length]
        if start > _BEFORE:
            packed = self.storage.fetch(self.path, member.offset + start, length)
        data = _inflated(packed, method, member.size + 1)
        if len(data) != member.size or zlib.crc32(data) != crc:
            raise OSError("damaged: not the size or the checksum of the directory")
        return data

    def _names(self, infos: list[zipfile.ZipInfo], encoding: str | None) -> list[str]:
        """The names of all members, and a note where their encoding is guessed."""
        bare = [info.orig_filename for info in infos if not info.flag_bits & _UTF8]
        odd = [name for name in bare if not name.isascii()]
        if not encoding and all(map(_is_utf8, odd)):
            encoding = "utf-8"
        if not encoding:
            self.notes.append(
                f"{len(odd):,} names are not marked as UTF-8 and are read in code page "
                f"437, such as {odd[0]!r}; if that is not the name, say 'encoding: "
                "shift_jis' (or gbk, cp1252 ...) in the dataset entry"
            )
        return [_decoded(info, encoding or "cp437") for info in infos]


def _is_utf8(name: str) -> bool:
    try:
        name.encode("cp437").decode()
    except UnicodeDecodeError:
        return False
    return True


def _decoded(info: zipfile.ZipInfo, encoding: str) -> str:
    if info.flag_bits & _UTF8:
        return info.filename
    raw = info.filename.encode("cp437")
    return raw.decode(encoding, "backslashreplace")


def _inflated(packed: bytes, method: int, most: int) -> bytes:
    try:
        if method == zipfile.ZIP_STORED:
            return packed
        if method == zipfile.ZIP_DEFLATED:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, most)
        if method == zipfile.ZIP_BZIP2:
            return bz2.BZ2Decompressor().decompress(packed, most)
    except (zlib.error, OSError) as error:
        raise OSError(f"damaged: {error}") from None
    name = _METHODS.get(method, f"number {method}")
    raise OSError(f"compressed by {name}, which is not read; pack it by deflate")


def _refusal(info: zipfile.ZipInfo) -> str:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind in (0, stat.S_IFREG, stat.S_IFDIR):
        return ""
    return "a link" if kind == stat.S_IFLNK else "neither a file nor a folder"

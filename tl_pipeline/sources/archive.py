"""Archives of a folder of images: zip, and tar, plain or compressed."""

import os
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tl_pipeline.config.datasets import ArchiveSpec
from tl_pipeline.config.locations import is_url
from tl_pipeline.errors import DatasetError
from tl_pipeline.sources.archive_index import Index, Indexes
from tl_pipeline.sources.entry import Entry, Source, printable, state_of
from tl_pipeline.sources.layout import Declared, Holds, split_folders, split_named
from tl_pipeline.sources.tar_index import TarIndex
from tl_pipeline.sources.zip_index import ZipIndex
from tl_pipeline.storage import Place, Storage

_ZIP = (b"PK\3\4", b"PK\5\6")
_PROGRAM = b"MZ"


class Archive(Source):
    """Every file of the archive is an input, read from it without unpacking.

    Labels and splits are those that ``ImageFolder`` would give to the unpacked folder;
    one folder that wraps everything, such as ``photos/train/cat/1.jpg``, is passed
    over. A uri is ``<archive>#<member>``. The version of a zip's member is its checksum
    and size, so that a new archive with old images is cheap; that of a tar's member is
    the archive's size and time and its offset. Members are listed in the archive's
    order, the last of a name as where it is unpacked; those that must not be read
    (links, devices, paths that lead out of the archive) have no label.
    """

    def __init__(self, spec: ArchiveSpec) -> None:
        self._spec = spec
        # resolve() would follow a link such as latest.zip, and every uri would change.
        local = not is_url(spec.path)
        self._path = Path(os.path.abspath(spec.path)) if local else spec.path  # noqa: PTH100
        self._prefix = printable(f"{self._path}#")
        self._storage = Storage(spec.storage, spec.path)
        make = partial(_index, encoding=spec.encoding)
        self._indexes = Indexes(make, self._storage)
        self._notes: list[str] = []

    def __reduce__(self) -> tuple[type["Archive"], tuple[ArchiveSpec]]:
        return Archive, (self._spec,)

    def entries(self) -> Iterator[Entry]:
        """One entry per file of the archive.

        Raises:
            DatasetError: the archive is missing, damaged, of another kind, or holds
                nothing; or what are splits is not clear.
        """
        index = self._indexes.of(self._path, fresh=True)
        members = index.members.values()
        if all(member.folder for member in members):
            raise DatasetError(f"{self._path} is empty; expected class/image files")
        self._notes = _notes(index)
        files = [m.folders for m in members if not m.folder and not m.refusal]
        splits = self._spec.splits if self._spec.labelled else {}
        layout = _Layout.of(self._path, files, splits)
        for member in members:
            if member.folder and not member.refusal:
                continue
            place = layout.place([] if member.refusal else member.folders)
            if place is None:
                continue
            uri, version = self._prefix + member.key, index.version(member)
            label, split = place
            yield Entry(uri, label, version, split, modified_ns=index.stamp.modified_ns)

    def state(self) -> str | None:
        """See ``Source``: of the archive as a whole."""
        stamps = map(self._storage.stamp, [self._path])
        return state_of(zip([str(self._path)], stamps, strict=True))

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

    def notes(self) -> list[str]:
        """What was replaced, and which names are guessed."""
        return self._notes


@dataclass(frozen=True)
class _Layout:
    """How many folders wrap all files, and which folders inside are splits.

    ``doubled`` are those with only one folder inside, of a split's name too.
    """

    wraps: int
    splits: dict[str, str | None]
    doubled: frozenset[str]

    @classmethod
    def of(
        cls, where: object, files: Sequence[list[str]], declared: Declared | None
    ) -> "_Layout":
        """The layout of ``files``, each by the folders that hold it."""
        wraps = _is_wrapped(files, declared)
        below: dict[str, set[str | None]] = defaultdict(set)
        for folders in files:
            inner = folders[wraps:]
            if inner:
                below[inner[0]].add(inner[1] if inner[1:] else None)

        def look(name: str) -> Holds:
            return Holds.FILES if below[name] == {None} else Holds.FOLDERS

        splits = split_folders(where, sorted(below), look, declared)
        doubled = frozenset(
            name
            for name in splits
            for inside in [*below[name]][:1]
            if len(below[name]) == 1 and inside and split_named(inside)
        )
        return cls(int(wraps), dict(splits), doubled)

    def place(self, folders: list[str]) -> tuple[str | None, str | None] | None:
        """Label and split of a file below these folders; None if it is left out."""
        inner, split = folders[self.wraps :], None
        if self.splits and inner:
            if inner[0] not in self.splits:
                return None
            split = self.splits[inner[0]]
            inner = inner[2 if inner[0] in self.doubled else 1 :]
        return (inner[0] if inner else None), split


def _is_wrapped(files: Sequence[list[str]], declared: Declared | None) -> bool:
    top = {folders[0] if folders else None for folders in files}
    only = top.pop() if len(top) == 1 else None
    if only is None or not any(folders[1:] for folders in files):
        return False
    if declared is None:
        return split_named(only) != "train"
    return not any(only in names for names in declared.values())


def _notes(index: Index) -> list[str]:
    replaced = index.copies.total()
    if not replaced:
        return index.notes
    names = ", ".join(map(repr, sorted(index.copies)[:3]))
    return [
        *index.notes,
        f"{replaced:,} members are replaced by later ones of their name: {names}",
    ]


def _index(path: Place, storage: Storage, *, encoding: str | None) -> Index:
    head = storage.fetch(path, 0, 4)
    zipped = head in _ZIP
    if head.startswith(_PROGRAM):  # and perhaps a zip that unpacks itself
        with storage.open(path) as file:
            zipped = zipfile.is_zipfile(file)
    if zipped:
        return ZipIndex(path, storage, encoding=encoding)
    return TarIndex(path, storage, replace=True, encoding=encoding)

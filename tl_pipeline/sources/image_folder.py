"""Folders of images: ``root/class/*`` or ``root/{train,val,test}/class/*``."""

import os
from collections.abc import Iterator
from pathlib import Path

from tl_pipeline.config.datasets import ImageFolderSpec
from tl_pipeline.config.locations import covers, is_url
from tl_pipeline.errors import DatasetError
from tl_pipeline.sources.entry import Entry, Source, printable
from tl_pipeline.sources.layout import Holds, is_junk, split_folders, split_named
from tl_pipeline.storage import Storage
from tl_pipeline.storage.stamps import Found

_BINARY = getattr(os, "O_BINARY", 0)  # of Windows
_Child = os.DirEntry[str] | Found
_Identity = tuple[int, int]  # of a folder: device and inode


class ImageFolder(Source):
    """Every file below a class folder is an input, whatever its ending.

    ``layout.split_folders`` says which folders at the top are splits; what is then in a
    split are classes, and deeper folders belong to their class. A folder of a split's
    name that is alone in that split is passed over (``seg_train/seg_train/class``).
    What ``layout.is_junk`` knows is left out; files outside a class folder have no
    label. Links are followed, but a file in a folder is listed once: not again through
    a link to a folder that is listed anyway.
    """

    def __init__(self, spec: ImageFolderSpec) -> None:
        self._spec, self._root = spec, spec.path
        self._storage = Storage(spec.storage, spec.path)

    def __reduce__(self) -> tuple[type["ImageFolder"], tuple[ImageFolderSpec]]:
        return ImageFolder, (self._spec,)

    def entries(self) -> Iterator[Entry]:
        """One entry per file, sorted by path; then those behind links to folders.

        Raises:
            DatasetError: the folder is missing, holds nothing, or cannot be listed; or
                what are splits is not clear.
        """
        root = self._root
        if isinstance(root, Path):
            if not root.is_dir():
                raise DatasetError(f"{root} is not a folder; check 'path'")
            root = root.resolve()
        try:
            yield from self._entries(root, self._children(root))
        except OSError as error:
            if isinstance(root, Path):
                raise
            raise DatasetError(f"{error}; check 'path'") from None

    def read(self, uri: str) -> bytes:
        """The bytes of the file ``uri``."""
        if is_url(uri):
            if not is_url(self._root) or not covers(self._root, uri):
                raise FileNotFoundError(f"{uri}: not of this folder")
            return self._storage.read(uri)
        # Half the calls of the system that open() and read() make: after each of them
        # this thread waits for the lock of the interpreter.
        file = os.open(uri, os.O_RDONLY | _BINARY)
        try:
            size = os.fstat(file).st_size
            data = os.read(file, size + 1)
            if len(data) == size:
                return data
            with open(file, "rb", closefd=False) as rest:
                return data + rest.read()
        finally:
            os.close(file)

    def _entries(self, root: Path | str, top: list[_Child]) -> Iterator[Entry]:
        if not top and self._spec.labelled:
            raise DatasetError(
                f"{self._root} is empty; expected root/class/image files"
            )
        folders = {child.name: child for child in top if _is_folder(child)}
        splits = split_folders(
            self._root,
            folders,
            lambda name: self._holds(folders[name]),
            self._spec.splits if self._spec.labelled else {},
        )
        walk = _Walk({_identity(root)} if isinstance(root, Path) else set())
        for child in top:
            if not splits:
                yield from self._walk([child], None, None, walk)
            elif not _is_folder(child):
                yield _file(child, label=None, split=None)
            elif child.name in splits:
                inside = self._unwrapped(self._below(child))
                walk.enter(child)
                yield from self._walk(inside, splits[child.name], None, walk)
        for child, split, label in walk.links:
            elsewhere = _Walk(walk.entered, behind_link=True)
            if elsewhere.enter(child):
                name = label or child.name
                yield from self._walk(self._below(child), split, name, elsewhere)

    def _walk(
        self,
        children: list[_Child],
        split: str | None,
        label: str | None,
        walk: "_Walk",
    ) -> Iterator[Entry]:
        """The files below; without a ``label`` the next folder is the class."""
        for child in children:
            if not _is_folder(child):
                yield _file(child, label, split)
            elif walk.defers(child):
                walk.links.append((child, split, label))
            elif walk.enter(child):
                below = self._below(child)
                yield from self._walk(below, split, label or child.name, walk)

    def _unwrapped(self, children: list[_Child]) -> list[_Child]:
        """What is in a split; in its only folder, if that has a split's name too."""
        alone = len(children) == 1 and _is_folder(children[0])
        if alone and split_named(children[0].name):
            return self._below(children[0])
        return children

    def _holds(self, folder: _Child) -> Holds:
        found = Holds.NOTHING
        for child in self._below(folder):
            if not _is_folder(child):
                found = Holds.FILES
            elif _is_link(child) or self._holds(child) is not Holds.NOTHING:
                return Holds.FOLDERS
        return found

    def _below(self, child: _Child) -> list[_Child]:
        is_object = isinstance(child, Found)
        return self._children(child.path if is_object else Path(child.path))

    def _children(self, folder: Path | str) -> list[_Child]:
        if isinstance(folder, str):
            found = self._storage.children(folder)
            return [child for child in found if not is_junk(child.name)]
        with os.scandir(folder) as entries:
            visible = (child for child in entries if not is_junk(child.name))
            return sorted(visible, key=lambda child: child.name)


class _Walk:
    """The folders that were entered. Links wait until those without are known."""

    def __init__(self, known: set[_Identity], *, behind_link: bool = False) -> None:
        self.links: list[tuple[_Child, str | None, str | None]] = []
        self.entered, self._behind_link = set(known), behind_link

    def defers(self, folder: _Child) -> bool:
        """Whether ``folder`` is a link that must wait; behind another none does."""
        return not self._behind_link and _is_link(folder)

    def enter(self, folder: _Child) -> bool:
        """Whether ``folder``, by whatever name, is entered for the first time."""
        if isinstance(folder, Found):
            return True
        identity = _identity(Path(folder.path))
        new = identity not in self.entered
        self.entered.add(identity)
        return new


def _identity(folder: Path) -> _Identity:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def _file(child: _Child, label: str | None, split: str | None) -> Entry:
    if isinstance(child, Found):
        version, modified_ns = child.stamp.version, child.stamp.modified_ns
        return Entry(child.path, label, version, split, modified_ns=modified_ns)
    # A name that is no UTF-8 fits no table: escaped, it cannot be read, and is refused.
    uri = printable(child.path)
    try:
        stat = child.stat()
    except OSError:  # a dangling link: reading it will tell
        return Entry(uri=uri, label=label, split=split)
    return Entry(
        uri=uri,
        label=label,
        version=f"{stat.st_size}:{stat.st_mtime_ns}",
        split=split,
        modified_ns=stat.st_mtime_ns,
    )


def _is_folder(child: _Child) -> bool:
    if isinstance(child, Found):
        return child.folder
    try:
        return child.is_dir()
    except OSError:  # a link to itself: reading it will tell
        return False


def _is_link(child: _Child) -> bool:
    return not isinstance(child, Found) and child.is_symlink()

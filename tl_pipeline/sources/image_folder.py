"""Folders of images: ``root/class/*`` or ``root/{train,val,test}/class/*``."""

import os
from collections.abc import Iterator
from pathlib import Path

from tl_pipeline.config.datasets import ImageFolderSpec
from tl_pipeline.config.locations import covers, is_url
from tl_pipeline.errors import DatasetError
from tl_pipeline.sources.entry import Entry
from tl_pipeline.storage import Storage
from tl_pipeline.storage.stamps import Found

_BINARY = getattr(os, "O_BINARY", 0)  # of Windows
_Child = os.DirEntry[str] | Found
SPLIT_FOLDERS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


class ImageFolder:
    """Every file below a class folder is an input, whatever its ending.

    The folders at the top are splits if one of them is ``train`` and all are names of
    splits, else they are classes. Where only ``train`` and ``val`` are declared, the
    declared ``val`` is what others report as their test set: it becomes the test split,
    and validation is drawn from train. Deeper folders belong to their class. Names
    that begin with a dot are left out; files outside a class folder have no label.
    """

    def __init__(self, spec: ImageFolderSpec) -> None:
        self._spec, self._root = spec, spec.path
        self._storage = Storage(spec.storage, spec.path)

    def __reduce__(self) -> tuple[type["ImageFolder"], tuple[ImageFolderSpec]]:
        return ImageFolder, (self._spec,)

    def entries(self) -> Iterator[Entry]:
        """One entry per file, sorted by path.

        Raises:
            DatasetError: the folder is missing, holds nothing, or cannot be listed.
        """
        root = self._root
        if isinstance(root, Path):
            if not root.is_dir():
                raise DatasetError(f"{root} is not a folder; check 'path'")
            root = root.resolve()
        try:
            yield from self._entries(self._children(root))
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

    def _entries(self, top: list[_Child]) -> Iterator[Entry]:
        folders = {child.name for child in top if _is_folder(child)}
        if not top:
            raise DatasetError(
                f"{self._root} is empty; expected root/class/image files"
            )
        if "train" not in folders or not folders <= SPLIT_FOLDERS.keys():
            yield from self._classes(top, split=None)
            return
        splits = {name: SPLIT_FOLDERS[name] for name in folders}
        if "test" not in splits.values():
            splits = {
                name: "test" if split == "validation" else split
                for name, split in splits.items()
            }
        for child in top:
            if _is_folder(child):
                yield from self._classes(self._below(child), splits[child.name])
            else:
                yield _file(child, label=None, split=None)

    def _classes(self, children: list[_Child], split: str | None) -> Iterator[Entry]:
        for child in children:
            if _is_folder(child):
                yield from self._files(child, child.name, split)
            else:
                yield _file(child, label=None, split=split)

    def _files(self, folder: _Child, label: str, split: str | None) -> Iterator[Entry]:
        for child in self._below(folder):
            if _is_folder(child):
                yield from self._files(child, label, split)
            else:
                yield _file(child, label, split)

    def _below(self, child: _Child) -> list[_Child]:
        is_object = isinstance(child, Found)
        return self._children(child.path if is_object else Path(child.path))

    def _children(self, folder: Path | str) -> list[_Child]:
        if isinstance(folder, str):
            found = self._storage.children(folder)
            return [child for child in found if not child.name.startswith(".")]
        with os.scandir(folder) as entries:
            visible = (child for child in entries if not child.name.startswith("."))
            return sorted(visible, key=lambda child: child.name)


def _file(child: _Child, label: str | None, split: str | None) -> Entry:
    if isinstance(child, Found):
        version, modified_ns = child.stamp.version, child.stamp.modified_ns
        return Entry(child.path, label, version, split, modified_ns=modified_ns)
    # A name that is no UTF-8 fits no table: escaped, it cannot be read, and is refused.
    uri = child.path.encode(errors="backslashreplace").decode()
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
    """A folder to walk into; a link that leads round in a circle is none."""
    if isinstance(child, Found):
        return child.folder
    try:
        if not child.is_dir():
            return False
    except OSError:  # a link to itself: reading it will tell
        return False
    if not child.is_symlink():
        return True
    here = Path(child.path).parent.resolve()
    return Path(child.path).resolve() not in (here, *here.parents)

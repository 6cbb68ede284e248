"""Folders of images: ``root/class/*`` or ``root/{train,val,test}/class/*``."""

import os
from collections.abc import Iterator
from pathlib import Path

from tl_pipeline.datasets import ImageFolderSpec
from tl_pipeline.errors import DatasetError
from tl_pipeline.sources.entry import Entry

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
        self._root = spec.path

    def entries(self) -> Iterator[Entry]:
        """One entry per file, sorted by path.

        Raises:
            DatasetError: the folder is missing or holds nothing.
        """
        if not self._root.is_dir():
            raise DatasetError(f"{self._root} is not a folder; check 'path'")
        top = _children(self._root.resolve())
        folders = {child.name for child in top if _is_folder(child)}
        if not top:
            raise DatasetError(
                f"{self._root} is empty; expected root/class/image files"
            )
        if "train" not in folders or not folders <= SPLIT_FOLDERS.keys():
            yield from _classes(top, split=None)
            return
        splits = {name: SPLIT_FOLDERS[name] for name in folders}
        if "test" not in splits.values():
            splits = {
                name: "test" if split == "validation" else split
                for name, split in splits.items()
            }
        for child in top:
            if _is_folder(child):
                yield from _classes(_children(Path(child.path)), splits[child.name])
            else:
                yield _file(child, label=None, split=None)

    def read(self, uri: str) -> bytes:
        """The bytes of the file ``uri``."""
        with open(uri, "rb") as file:  # noqa: PTH123 - a Path costs as much as the read
            return file.read()


def _classes(children: list[os.DirEntry[str]], split: str | None) -> Iterator[Entry]:
    for child in children:
        if _is_folder(child):
            yield from _files(Path(child.path), child.name, split)
        else:
            yield _file(child, label=None, split=split)


def _files(folder: Path, label: str, split: str | None) -> Iterator[Entry]:
    for child in _children(folder):
        if _is_folder(child):
            yield from _files(Path(child.path), label, split)
        else:
            yield _file(child, label, split)


def _file(child: os.DirEntry[str], label: str | None, split: str | None) -> Entry:
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


def _children(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        visible = (child for child in found if not child.name.startswith("."))
        return sorted(visible, key=lambda child: child.name)


def _is_folder(child: os.DirEntry[str]) -> bool:
    """A folder to walk into; a link that leads round in a circle is none."""
    try:
        if not child.is_dir():
            return False
    except OSError:  # a link to itself: reading it will tell
        return False
    if not child.is_symlink():
        return True
    here = Path(child.path).parent.resolve()
    return Path(child.path).resolve() not in (here, *here.parents)

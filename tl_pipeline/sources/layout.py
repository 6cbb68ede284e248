"""What names in the data mean: which are those of splits, and which are of no input."""

import re
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any

from tl_pipeline.errors import DatasetError

# Left by file systems, archivers and network drives; compared without case.
_JUNK = {
    *("__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "lost+found"),
    *("system volume information", "thumbs.db", "desktop.ini"),
}
_SPLITS: dict[str, str] = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate"), "validation"),
    **dict.fromkeys(("dev", "eval", "evaluation"), "validation"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
# What stands beside them: seg_train, training_set, train2017, Test Images.
_BESIDE = {
    *("set", "data", "dataset", "split", "seg", "images", "image", "imgs", "img"),
    *("photos", "pictures", "folder"),
}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
Declared = Mapping[Any, tuple[str, ...]]  # our splits to names in the data


class Holds(Enum):
    """What a folder at the top of a dataset holds."""

    NOTHING = "nothing"
    FILES = "files"
    FOLDERS = "folders"  # of files, and perhaps files beside them


def is_junk(name: str) -> bool:
    """Whether no file or folder of this name belongs to a dataset."""
    return name.startswith(".") or name.lower() in _JUNK


def split_named(name: str) -> str | None:
    """The split that is usually called ``name``; None for any other name."""
    words = [word.lower() for word in _WORD.findall(name)]
    known = [word.removesuffix("set") for word in words if word not in _BESIDE]
    return _SPLITS.get(known[0]) if len(known) == 1 else None


def split_folders(
    where: object,
    names: Iterable[str],
    look: Callable[[str], Holds],
    declared: Declared | None,
    *,
    or_else: str = "classes",
) -> dict[str, str | None]:
    """The folders at the top of ``where`` that are splits; {} if they are ``or_else``.

    ``declared`` is what the dataset entry says. Without it folders are splits if all
    that hold anything have the names of splits and hold folders. One folder alone is
    not declared unless it is train. Only where a name looks like that of a split does
    ``look`` ask what a folder holds.

    Raises:
        DatasetError: a folder is missing, or both readings are possible.
    """
    names = list(names)
    if declared is not None:
        return _as_declared(where, names, declared)
    known = {name: split for name in names if (split := split_named(name))}
    if not known:
        return {}
    held = {name: look(name) for name in names}
    others = [n for n in names if n not in known and held[n] is not Holds.NOTHING]
    nested = [name for name in known if held[name] is Holds.FOLDERS]
    flat = [name for name in known if held[name] is Holds.FILES]
    if not nested and (others or not flat or len(flat) == 1):
        return {}
    if others:
        but = f"{_quoted(others)} beside them do not"
        raise _unclear(where, known, nested, but, or_else)
    splits = {name: known[name] for name in (*nested, *flat)}
    if not nested:
        but = "they hold files and no folders of classes"
        raise _unclear(where, known, flat, but, or_else)
    if len(splits) == 1:
        return {name: s if s == "train" else None for name, s in splits.items()}
    if "train" not in splits.values():
        raise _unclear(where, known, list(splits), "none of them is train", or_else)
    return dict(splits)


def _as_declared(
    where: object, names: list[str], declared: Declared
) -> dict[str, str | None]:
    wanted: dict[str, str | None] = {
        name: split for split, several in declared.items() for name in several
    }
    if missing := [name for name in wanted if name not in names]:
        raise DatasetError(
            f"{where} has no {_quoted(missing)}, which 'splits' names; it has: "
            f"{', '.join(sorted(names)) or 'nothing'}"
        )
    return wanted


def _unclear(
    where: object,
    known: Mapping[str, str],
    look_alike: Iterable[str],
    but: str,
    or_else: str,
) -> DatasetError:
    by_split: dict[str, list[str]] = {"train": []}
    for name in look_alike:
        by_split.setdefault(known[name], []).append(name)
    field = ", ".join(
        f"{split}: {names[0] if len(names) == 1 else names or 'NAME'}"
        for split, names in by_split.items()
    ).replace("'", "")
    return DatasetError(
        f"{where}: {_quoted(look_alike)} look like splits, but {but}. Say in its entry "
        f"in data_catalog.yaml what they are: 'splits: {{{field}}}' for splits (the "
        f"others are left out), or 'splits: {{}}' for {or_else}"
    )


def _quoted(names: Iterable[str]) -> str:
    shown = [repr(name) for name in names]
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if shown[5:] else "")

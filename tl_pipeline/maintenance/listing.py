"""What lies in a store: artifacts, embeddings, weights, single files; size and age.

A store in an object store is told by one listing of all objects, and by what is only in
its mirror on this machine.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tl_pipeline.storage.stamps import ObjectInfo
from tl_pipeline.store import in_use, weights
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import ABOUT

ARTIFACTS = (
    *("manifests", "heads", "trials", "searches", "evaluations", "models"),
    "predictions",
    "references",
)
EMBEDDINGS, WEIGHTS, IN_USE = "embeddings", weights.FOLDER, in_use.FOLDER
RUNS, BATCHES, REPORTS = "runs", "batches", "reports"
RECORDS = {RUNS, BATCHES, REPORTS}
DAMAGED, UNFINISHED = "damaged", "unfinished"
_FOLDERS = (*ARTIFACTS, EMBEDDINGS, WEIGHTS)
_FILES = {"catalog.duckdb": "catalogue", "mlflow.db": "registry"}
# Folders about this machine alone.
_SKIPPED = {".locks", ".trash", ".unsent"}
# What is written beside its target before it is renamed.
_BESIDE = re.compile(r"\.writing-.*|\..+\.[0-9a-f]{32}")
_ASIDE = re.compile(r"\.(?:damaged-(?P<aside>.+)|why-(?P<why>.+)\.txt)")


@dataclass(frozen=True)
class Item:
    """What stays or goes as a whole; ``written`` is when its newest file was.

    ``bytes`` are those of all its files, ``names`` those of its objects, if it is in an
    object store. ``written`` is in seconds since 1970.
    """

    kind: str
    path: Path
    bytes: int
    written: float
    names: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The key of an artifact or encoder, the hash of weights."""
        return self.path.name.removeprefix("encoder=")


def items(store: Store) -> list[Item]:
    """Everything in ``store``, sorted by path."""
    found = {item.path: item for item in _grouped(store, _files(store.root))}
    if store.mirror.url:
        # of a run only what is there counts
        here = {p: i for p, i in found.items() if i.kind not in RECORDS}
        there = _grouped(store, store.mirror.objects().items(), named=True)
        found = here | {item.path: item for item in there}
    return [found[path] for path in sorted(found)]


def under_way(found: list[Item], since: float = 0) -> list[Path]:
    """The files of runs under way, of those that were written after ``since``."""
    return [i.path for i in found if i.kind == IN_USE and i.written > since]


def _grouped(
    store: Store, files: Iterable[tuple[str, ObjectInfo]], *, named: bool = False
) -> list[Item]:
    found: dict[tuple[str, str], list[tuple[str, ObjectInfo]]] = {}
    for name, info in files:
        found.setdefault(_place(name), []).append((name, info))
    return [
        Item(
            kind,
            store.root / place,
            sum(info.bytes for _, info in some),
            max(info.written for _, info in some),
            tuple(name for name, _ in some) if named else (),
        )
        for (kind, place), some in found.items()
    ]


def _files(root: Path) -> Iterator[tuple[str, ObjectInfo]]:
    """Name -> size and time of each file, and of empty folders that were left over."""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED]
        inside = Path(folder)
        left = not files and not folders and inside.parent.name == ".building"
        for path in [inside] if left else map(inside.joinpath, files):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            info = ObjectInfo(0 if left else stat.st_size, stat.st_mtime)
            yield path.relative_to(root).as_posix(), info


def _place(name: str) -> tuple[str, str]:
    """The kind of a file and the path of what it belongs to."""
    parts = name.split("/")
    for number, part in enumerate(parts):
        if aside := _ASIDE.fullmatch(part):
            left = f".damaged-{aside['aside'] or aside['why']}"
            return DAMAGED, "/".join([*parts[:number], left])
        if _BESIDE.fullmatch(part):
            return UNFINISHED, "/".join(parts[: number + 1])
    kind = parts[0]
    if kind == ".building":
        return UNFINISHED, "/".join(parts[:2])
    if kind == ABOUT and len(parts) > 1:  # goes and stays with the embeddings
        kind, parts = EMBEDDINGS, [EMBEDDINGS, f"encoder={parts[1]}"]
    if kind in _FOLDERS:
        return kind, "/".join(parts[:2])
    if len(parts) == 1:
        return _FILES.get(name, "other"), name
    return kind, kind if kind == "memo" else name

"""Garbage of a store: what no root names and is older than a retention.

Roots are kept run records, registered models and runs under way (``in_use``). On one
machine a run waits for a collection to end, and the other way round. In an object store
a run that begins on another machine in the seconds of a collection may lose what nobody
used for as long as the retention; it is computed again.

Run records go first: what a kill leaves over is named by nothing and goes next time.
"""

import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tl_pipeline import query
from tl_pipeline.maintenance import gc_roots, listing
from tl_pipeline.maintenance.gc_roots import EVERY_RUN, Roots, RunPolicy
from tl_pipeline.maintenance.listing import (
    ARTIFACTS,
    BATCHES,
    DAMAGED,
    EMBEDDINGS,
    IN_USE,
    RECORDS,
    REPORTS,
    RUNS,
    UNFINISHED,
    WEIGHTS,
    Item,
)
from tl_pipeline.storage.objects import at_once
from tl_pipeline.store import checks, part_index, unit_vectors
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.checks import PROVENANCE
from tl_pipeline.store.embeddings import ABOUT
from tl_pipeline.store.files import reason, why
from tl_pipeline.store.in_use import LOCK
from tl_pipeline.store.part_files import PART, REFUSED

RETENTION_DAYS = 7.0
_DAY = 86_400


@dataclass(frozen=True)
class Garbage:
    """Something that may go, and why."""

    item: Item
    why: str


@dataclass(frozen=True)
class Found:
    """What goes, or went, in order; what would, but is young or being written."""

    garbage: list[Garbage]
    stays: list[Garbage]


def find(
    store: Store, policy: RunPolicy = EVERY_RUN, retention_days: float = RETENTION_DAYS
) -> Found:
    """What ``collect`` would remove now.

    The age of run records, and of their reports, is for ``policy`` to judge.
    """
    before = time.time() - retention_days * _DAY
    # listed before the roots are read: what is written meanwhile is not in the list
    items = listing.items(store)
    alive = listing.under_way(items, before)
    roots = gc_roots.survey(store, policy, alive)
    found = Found([], [])
    for item in sorted(items, key=lambda item: item.kind not in RECORDS):
        if reason_to_go := _reason(item, roots, alive):
            young = item.kind not in RECORDS and item.written > before
            where = found.stays if young else found.garbage
            where.append(Garbage(item, reason_to_go))
    return found


def collect(
    store: Store, policy: RunPolicy = EVERY_RUN, retention_days: float = RETENTION_DAYS
) -> Found:
    """Remove what ``find`` finds, and build the SQL catalogue of a local store anew.

    A kill in the middle leaves a store that is whole; the next call goes on.

    Raises:
        StoreError: an object store does not answer.
    """
    with store.lock(LOCK):
        found = find(store, policy, retention_days)
        gone: list[Garbage] = []

        def remove(garbage: Garbage) -> None:
            if _remove(store, garbage.item):
                gone.append(garbage)

        records = [g for g in found.garbage if g.item.kind in RECORDS]
        for some in (records, [g for g in found.garbage if g not in records]):
            _each(store, remove, some)
        emptied = _empty_trash(store)
        # that of a mirror is built anew when it is asked: see query.connect
        local = store.mirror.url is None
        if local and (gone or emptied) and any((store.root / "runs").glob("*/*.json")):
            query.build(store)
    kept = [garbage for garbage in found.garbage if garbage not in gone]
    return Found([g for g in found.garbage if g in gone], [*found.stays, *kept])


def _each(
    store: Store, remove: Callable[[Garbage], None], garbage: list[Garbage]
) -> None:
    if store.mirror.url:
        at_once(remove, garbage)
    else:
        for one in garbage:
            remove(one)


def _reason(item: Item, roots: Roots, alive: list[Path]) -> str | None:
    """Why ``item`` is garbage; None if it is not."""
    kind, path = item.kind, item.path
    if kind in {*ARTIFACTS, EMBEDDINGS, WEIGHTS}:
        return None if item.key in roots.users else "no run or model uses it"
    if kind in {RUNS, BATCHES}:
        return "there are newer runs of the dataset" if path in roots.dropped else None
    if kind == REPORTS:
        return None if _is_of_kept(path, roots) else "its run is not kept"
    if kind == IN_USE:
        return None if path in alive else "its run died"
    if kind == DAMAGED:
        return f"set aside: {why(path) or 'not whole'}"
    return "a killed process left it" if kind == UNFINISHED else None


def _is_of_kept(page: Path, roots: Roots) -> bool:
    dataset = page.parent.name
    runs = [record for record in roots.kept if record.parent.parent.name == RUNS]
    kept = [record.stem for record in runs if record.parent.name == dataset]
    return page.stem in kept or (page.stem == "latest" and bool(kept))


def _remove(store: Store, item: Item) -> bool:
    """Take ``item`` away; False if somebody writes to it, or it is gone."""
    if item.kind != EMBEDDINGS:
        return _take(store, item)
    with store.lock_if_free(f"encoder-{item.key}") as ours:
        if not ours or not _take(store, item):
            return False
    for name in (item.path.name, item.key):
        for prefix in (PART, REFUSED):
            part_index.cache_file(store, name, prefix).unlink(missing_ok=True)
    unit_vectors.remove(store, item.key)
    return True


def _take(store: Store, item: Item) -> bool:
    """Delete its objects, and its files by one rename, so that no folder is half there.

    What tells of other objects goes first; of embeddings it goes last, as each part
    stands for itself.
    """
    store.mirror.remove(sorted(item.names, key=_order))
    if item.kind == DAMAGED:
        reason(item.path).unlink(missing_ok=True)
    trash = store.root / ".trash"
    trash.mkdir(exist_ok=True)
    if item.kind == EMBEDDINGS:
        with suppress(FileNotFoundError):
            about = store.root / ABOUT / item.key
            about.rename(trash / uuid.uuid4().hex)
    try:
        item.path.rename(trash / uuid.uuid4().hex)
    except FileNotFoundError:
        return bool(item.names)
    with suppress(FileNotFoundError):
        checks.cache_file(store.root, item.path).unlink()
    return True


def _order(name: str) -> int:
    """Which of the objects of one item goes before which."""
    if name.endswith(f"/{PROVENANCE}"):
        return 0
    of_embeddings = name.startswith((f"{EMBEDDINGS}/", f"{ABOUT}/"))
    return 2 if of_embeddings and not name.endswith(".parquet") else 1


def _empty_trash(store: Store) -> bool:
    """Delete what was taken away, also by a killed call; whether there was any."""
    trash = store.root / ".trash"
    found = trash.exists()
    shutil.rmtree(trash, ignore_errors=True)
    return found

"""Waste of a store: found by what nothing reaches, and removed beside readers and runs.

Records of runs go first: what a kill leaves over is reached by nothing and goes the
next time. What is younger than a time of grace stays, because a run under way may be
making or using it. ``holdings`` says how old a thing is, and takes it away.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tl_pipeline import query
from tl_pipeline.maintenance import gc_roots
from tl_pipeline.maintenance.gc_roots import EVERY_RUN, Reach, Retention
from tl_pipeline.maintenance.listing import ARTIFACTS, EMBEDDINGS, Holdings, why_left
from tl_pipeline.store import part_index
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.files import reason
from tl_pipeline.store.part_files import PART, REFUSED

GRACE_DAYS = 1.0
_RECORDS = {"run", "report"}  # which go first, and whose age ``Retention`` decides on
_UNUSED = "no run or model uses it"


@dataclass(frozen=True)
class Waste:
    """One file or folder of the store that may go, and why."""

    kind: str
    path: Path
    bytes: int
    why: str


@dataclass(frozen=True)
class Found:
    """What may go, in the order of removal, and what is too young to tell."""

    waste: list[Waste]
    young: list[Waste]


@dataclass(frozen=True)
class Collected:
    """What was removed, and what stayed because somebody came to use it meanwhile."""

    removed: list[Waste]
    in_use: list[Waste]


def find(
    store: Store, retention: Retention = EVERY_RUN, grace_days: float = GRACE_DAYS
) -> Found:
    """Everything that ``collect`` would remove now.

    ``grace_days`` does not protect run records, which ``retention`` names, and their
    reports.
    """
    lying = _holdings(store, grace_days)
    reached = gc_roots.survey(store, retention)
    found = Found([], [])
    for waste in (
        *_runs(lying, reached),
        *_artifacts(lying, reached),
        *_leftovers(lying),
    ):
        (found.young if _young(lying, waste) else found.waste).append(waste)
    return found


def collect(store: Store, found: list[Waste], grace_days: float) -> Collected:
    """Remove ``found`` and build the catalogue of a local store anew.

    A kill in the middle leaves a store that is whole; the next call goes on.

    Raises:
        StoreError: another machine is collecting; or an object store does not answer.
    """
    with store.lock("gc"):
        gone = _remove(store, found, grace_days) if found else set()
        emptied = Holdings(store, grace_days).empty_trash()
        # that of a mirror is built anew when it is asked: see query.connect
        local = store.mirror.url is None
        if local and (gone or emptied) and any((store.root / "runs").glob("*/*.json")):
            query.build(store)
    removed = [waste for waste in found if waste in gone]
    return Collected(removed, [waste for waste in found if waste not in gone])


def _remove(store: Store, found: list[Waste], grace_days: float) -> set[Waste]:
    """What of ``found`` was removed, and not used by now."""
    gone: set[Waste] = set()
    paths = {waste.path for waste in found}
    with store.mirror.collecting(paths) as now:
        # looked at again: who begins from here on to use something sees that we remove
        lying = _holdings(store, grace_days, now)
        reached = gc_roots.survey(store, dropped=paths)

        def throw(waste: Waste) -> None:
            if waste.path.name.removeprefix("encoder=") in reached:
                return
            if _throw(store, lying, waste):
                gone.add(waste)

        for records in (True, False):
            group = [waste for waste in found if (waste.kind in _RECORDS) is records]
            lying.remove_each(throw, group)
    return gone


def _holdings(store: Store, grace_days: float, now: float | None = None) -> Holdings:
    if store.mirror.url is None:
        return Holdings(store, grace_days)
    from tl_pipeline.maintenance.remote_listing import ObjectHoldings  # noqa: PLC0415

    return ObjectHoldings(store, grace_days, now)


def _runs(lying: Holdings, reached: Reach) -> Iterator[Waste]:
    for record in reached.dropped:
        yield _waste(lying, "run", record, "there are newer runs of the dataset")
    kept = {(record.parent.name, record.stem) for record in reached.kept}
    datasets = {dataset for dataset, _ in kept}
    for page in lying.reports():
        dataset, run_id = page.parent.name, page.stem
        latest = run_id == "latest" and dataset in datasets
        if not latest and (dataset, run_id) not in kept:
            yield _waste(lying, "report", page, "its run is not kept")


def _artifacts(lying: Holdings, reached: Reach) -> Iterator[Waste]:
    for kind in (*ARTIFACTS, EMBEDDINGS):
        for folder in lying.folders(kind):
            if folder.name.removeprefix("encoder=") not in reached:
                yield _waste(lying, kind, folder, _UNUSED)


def _leftovers(lying: Holdings) -> Iterator[Waste]:
    for kind, path in lying.leftovers():
        yield _waste(lying, kind, path, why_left(kind, path))


def _waste(lying: Holdings, kind: str, path: Path, why: str) -> Waste:
    return Waste(kind, path, lying.size(path), why)


def _young(lying: Holdings, waste: Waste) -> bool:
    return waste.kind not in _RECORDS and lying.young(waste.path)


def _throw(store: Store, lying: Holdings, waste: Waste) -> bool:
    """Take it away; False if it is used, or gone, by now."""
    if waste.kind != EMBEDDINGS:
        gone = _take(lying, waste)
        if gone and waste.kind == "damaged":
            reason(waste.path).unlink(missing_ok=True)
        return gone
    with store.lock_if_free(f"encoder-{waste.path.name.partition('=')[2]}") as ours:
        if not ours or not _take(lying, waste):
            return False
    for prefix in (PART, REFUSED):
        part_index.memo_file(store, waste.path.name, prefix).unlink(missing_ok=True)
    return True


def _take(lying: Holdings, waste: Waste) -> bool:
    try:
        if _young(lying, waste):
            return False
        lying.remove(waste.path)
    except FileNotFoundError:
        return False
    return True

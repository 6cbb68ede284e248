"""Waste of a store: found by what nothing reaches, and removed beside readers and runs.

Everything leaves by one rename into ``.trash/`` of the store and is deleted there, so
that no folder is ever half there. Records of runs go first: what a kill leaves over is
reached by nothing and goes the next time. What is younger than a time of grace stays,
because a run under way may be making or using it: runs mark what they use (the folder's
time) and record it only when they end.
"""

import re
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tl_pipeline import part_files, query, reach, verified
from tl_pipeline.artifacts import Store
from tl_pipeline.part_files import PART, REFUSED
from tl_pipeline.reach import EVERY_RUN, Reach, Retention

ARTIFACTS = ("manifests", "heads", "trials", "searches", "evaluations", "models")
GRACE_DAYS = 1.0
_DAY = 86_400
# What ``write_atomically`` and the memos write beside their target.
_BESIDE = re.compile(r".+\.[0-9a-f]{32}")
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
    reached = reach.survey(store, retention)
    found = Found([], [])
    for waste in (
        *_runs(store, reached),
        *_artifacts(store, reached),
        *_embeddings(store, reached),
        *_leftovers(store),
    ):
        (found.young if _young(waste, grace_days) else found.waste).append(waste)
    return found


def collect(store: Store, found: list[Waste], grace_days: float) -> Collected:
    """Remove ``found`` and build the catalogue anew.

    A kill in the middle leaves a store that is whole; the next call goes on.
    """
    trash = store.root / ".trash"
    removed: list[Waste] = []
    in_use: list[Waste] = []
    with store.lock("gc"):
        again = trash.exists()
        for waste in found:
            gone = _throw(store, waste, trash, grace_days)
            (removed if gone else in_use).append(waste)
        if removed or again:
            if any((store.root / "runs").glob("*/*.json")):
                query.build(store)
            shutil.rmtree(trash, ignore_errors=True)
    return Collected(removed, in_use)


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def leftovers(store: Store) -> Iterator[tuple[str, Path]]:
    """(kind, path) of everything damaged or unfinished, however young."""
    root = store.root
    places = [root, root / "memo", root / "memo" / "parts", root / "registry"]
    for kind in (*ARTIFACTS, "embeddings", "runs", "reports"):
        places += [root / kind, *(root / kind).glob("[!.]*/")]
    yield from (("unfinished", path) for path in (root / ".building").glob("*"))
    for place in places:
        for path in sorted(place.glob("*")) if place.is_dir() else ():
            if path.name.startswith(".damaged-"):
                yield "damaged", path
            elif path.name.startswith(".writing-") or _BESIDE.fullmatch(path.name):
                yield "unfinished", path


def _runs(store: Store, reached: Reach) -> Iterator[Waste]:
    for record in reached.dropped:
        yield _waste("run", record, "there are newer runs of the dataset")
    kept = {(record.parent.name, record.stem) for record in reached.kept}
    datasets = {dataset for dataset, _ in kept}
    for page in sorted((store.root / "reports").glob("*/[!.]*.html")):
        dataset, run_id = page.parent.name, page.stem
        latest = run_id == "latest" and dataset in datasets
        if not latest and (dataset, run_id) not in kept:
            yield _waste("report", page, "its run is not kept")


def _artifacts(store: Store, reached: Reach) -> Iterator[Waste]:
    for kind in ARTIFACTS:
        for folder in sorted((store.root / kind).glob("[!.]*/")):
            if folder.name not in reached:
                yield _waste(kind, folder, _UNUSED)


def _embeddings(store: Store, reached: Reach) -> Iterator[Waste]:
    for folder in sorted((store.root / "embeddings").glob("encoder=*/")):
        key = folder.name.partition("=")[2]
        if key not in reached:
            yield _waste("embeddings", folder, _UNUSED)


def _leftovers(store: Store) -> Iterator[Waste]:
    for kind, path in leftovers(store):
        said = "a killed process left it"
        if kind == "damaged":
            said = f"set aside: {part_files.why(path) or 'not whole'}"
        yield _waste(kind, path, said)


def _waste(kind: str, path: Path, why: str) -> Waste:
    return Waste(kind, path, size(path), why)


def _young(waste: Waste, grace_days: float) -> bool:
    if waste.kind in {"run", "report"}:
        return False
    return time.time() - _last_used(waste.path) < grace_days * _DAY


def _last_used(path: Path) -> float:
    """When ``path`` was last made, changed or used, in seconds since 1970."""
    stat = path.stat()
    if path.name.startswith("."):  # a rename is seen in this time only
        return max(stat.st_mtime, stat.st_ctime)
    below = path.rglob("*") if path.parent.name == ".building" else path.glob("*")
    return max(stat.st_mtime, *(entry.stat().st_mtime for entry in below), 0.0)


def _throw(store: Store, waste: Waste, trash: Path, grace_days: float) -> bool:
    """Rename it into the trash; False if it is used, or gone, by now."""
    if waste.kind != "embeddings":
        gone = _rename(waste, trash, grace_days)
        if gone and waste.kind == "damaged":
            part_files.reason(waste.path).unlink(missing_ok=True)
        return gone
    with store.lock_if_free(f"encoder-{waste.path.name.partition('=')[2]}") as ours:
        if not ours or not _rename(waste, trash, grace_days):
            return False
    for prefix in (PART, REFUSED):
        verified.memo_file(store, waste.path.name, prefix).unlink(missing_ok=True)
    return True


def _rename(waste: Waste, trash: Path, grace_days: float) -> bool:
    try:
        if _young(waste, grace_days):
            return False
        trash.mkdir(exist_ok=True)
        waste.path.rename(trash / uuid.uuid4().hex)
    except FileNotFoundError:
        return False
    return True

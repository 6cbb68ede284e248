"""Ingest: a source -> the manifest of its images.

Reads the source. Writes ``manifests/<key>/``: the tables MANIFEST, QUARANTINE and
DUPLICATES. The scan always runs, because only it can tell whether something changed; a
memo makes it cheap. The fingerprint is that of (id, label, split, group): a folder that
was moved causes no further work.
"""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tl_pipeline import splits, tables
from tl_pipeline.artifacts import Artifact, digest, key_document
from tl_pipeline.datasets import DatasetSpec
from tl_pipeline.errors import DatasetError, TooManyRefused
from tl_pipeline.identity import Memo
from tl_pipeline.planning import LOST, Context, Outcome, Step
from tl_pipeline.scan import Row, Scan
from tl_pipeline.scan import scan as look
from tl_pipeline.sources import open_source
from tl_pipeline.tables import DUPLICATES, MANIFEST, QUARANTINE

# Bump when the same inputs must give other rows.
VERSION = 1


def plan(context: Context) -> Outcome[Artifact]:
    """Scan the source into the overlay of ``context.store``: it is cheap enough."""
    return run(replace(context, dataset=context.dataset.offline()))


def run(context: Context) -> Outcome[Artifact]:
    """Write the manifest of ``context.dataset``, unless that very manifest exists.

    Raises:
        DatasetError: nothing to learn from: no images, one class, an empty split.
        TooManyRefused: more than ``max_quarantined`` of the inputs were refused.
    """
    started, dataset, store = time.perf_counter(), context.dataset, context.store
    memo = Memo(store, dataset.name, trust=context.trust_memo)
    scan = look(open_source(dataset), dataset, memo)
    _check(dataset, scan)
    fingerprint = digest(_columns(scan.manifest, "image_id", "label", "split", "group"))
    document = key_document(
        "ingest",
        VERSION,
        {"dataset": dataset.name, "split": dataset.split.model_dump(mode="json")},
        {
            "images": fingerprint,
            "places": digest(_columns(scan.manifest, "uri")),
            "refused": digest(_columns(scan.quarantine, "uri", "reason")),
            "duplicates": digest(_columns(scan.duplicates, "uri", "kept_uri")),
        },
    )
    made = store.find("manifests", digest(document))
    reason = _summary(scan) if made else _changes(context, digest(document), scan)
    artifact = made or store.build(
        "manifests", document, lambda folder: _write(folder, scan, fingerprint)
    )
    step = Step(
        stage="ingest",
        subject=dataset.name,
        cached=made is not None,
        reason=reason,
        keys={"manifest": artifact.key},
        seconds=time.perf_counter() - started,
        units=len(scan.manifest),
    )
    return Outcome(artifact, step)


def _check(dataset: DatasetSpec, scan: Scan) -> None:
    name, inputs, refused = dataset.name, scan.inputs, len(scan.quarantine)
    reasons = Counter(row["reason"] for row in scan.quarantine)
    listed = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
    if not scan.manifest:
        raise DatasetError(
            f"{name}: no images among {inputs} inputs ({listed or 'it is empty'}). "
            "Expected root/class/image files"
        )
    if refused > dataset.max_quarantined * inputs:
        first = "; ".join(
            f"{row['uri']}: {row['reason']} ({row['detail']})"
            for row in scan.quarantine[:3]
        )
        raise TooManyRefused(
            f"{name}: {refused} of {inputs} inputs were refused ({listed}), more than "
            f"max_quarantined = {dataset.max_quarantined:g} allows. First: {first}"
        )
    classes = Counter(row["label"] for row in scan.manifest)
    if len(classes) < 2:
        raise DatasetError(
            f"{name}: all {inputs} images are of one class, {next(iter(classes))!r}; "
            "a classifier needs two. Expected root/class/image files"
        )
    _check_expected(dataset, len(scan.manifest), len(classes))
    sizes = Counter(row["split"] for row in scan.manifest)
    learned = {row["label"] for row in scan.manifest if row["split"] == splits.TRAIN}
    empty = [split for split in splits.SPLITS if not sizes[split]]
    if empty or len(learned) < 2:
        shares = ", ".join(f"{split} {sizes[split]}" for split in splits.SPLITS)
        raise DatasetError(
            f"{name}: {len(scan.manifest)} images split into {shares}, with "
            f"{len(learned)} classes to learn; every split needs images. Add images "
            "or change split.validation, split.test or split.seed"
        )


def _check_expected(dataset: DatasetSpec, images: int, classes: int) -> None:
    found = {"images": images, "classes": classes}
    wrong = [
        f"{found[name]:,} {name} instead of {number:,}"
        for name, number in dataset.expect
        if number is not None and number != found[name]
    ]
    if wrong:
        raise DatasetError(
            f"{dataset.name} holds {' and '.join(wrong)}. Look at what changed, or "
            "correct 'expect' in the catalogue"
        )


def _changes(context: Context, key: str, scan: Scan) -> str:
    """How the rows differ from those of the last run."""
    before = context.previous.get(("ingest", context.dataset.name), {}).get("manifest")
    if before is None:
        return f"new: {_summary(scan)}"
    found = context.store.find("manifests", before)
    if before == key or found is None:
        return LOST
    old = _by_id(tables.read(MANIFEST, context.store.path(found)).to_pylist())
    new = _by_id(scan.manifest)
    both = old.keys() & new.keys()
    counts = {
        "added": len(new.keys() - old.keys()),
        "removed": len(old.keys() - new.keys()),
        "relabelled": sum(old[i]["label"] != new[i]["label"] for i in both),
        "in another split": sum(old[i]["split"] != new[i]["split"] for i in both),
        "moved": sum(
            old[i]["uri"] != new[i]["uri"] and old[i]["label"] == new[i]["label"]
            for i in both
        ),
    }
    said = [f"{n:,} {what}" for what, n in counts.items() if n]
    return ", ".join(said) or "other files are refused or duplicate"


def _summary(scan: Scan) -> str:
    classes = len({row["label"] for row in scan.manifest})
    sizes = Counter(row["split"] for row in scan.manifest)
    shares = ", ".join(f"{split} {sizes[split]:,}" for split in splits.SPLITS)
    said = f"{len(scan.manifest):,} images of {classes} classes ({shares})"
    if scan.quarantine:
        said += f", {len(scan.quarantine):,} refused"
    if scan.duplicates:
        said += f", {len(scan.duplicates):,} duplicates"
    return said


def _by_id(rows: Iterable[Row]) -> Mapping[str, Row]:
    return {row["image_id"]: row for row in rows}


def _columns(rows: list[Row], *names: str) -> list[list[Any]]:
    return [[row[name] for row in rows] for name in names]


def _write(folder: Path, scan: Scan, fingerprint: str) -> str:
    tables.write(MANIFEST, tables.from_rows(MANIFEST, scan.manifest), folder)
    tables.write(QUARANTINE, tables.from_rows(QUARANTINE, scan.quarantine), folder)
    tables.write(DUPLICATES, tables.from_rows(DUPLICATES, scan.duplicates), folder)
    return fingerprint

"""Ingest: a source -> the manifest of its images.

Reads the source. Writes ``manifests/<key>/``: the tables MANIFEST, QUARANTINE and
DUPLICATES. The scan always runs, because only it can tell whether something changed; a
memo makes it cheap. The fingerprint is that of (id, label, split, group), and weight
where the source tells one: a folder that was moved causes no further work.
"""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.data import splits
from tl_pipeline.data.identity import Memo
from tl_pipeline.data.scan import Scan
from tl_pipeline.data.scan import scan as look
from tl_pipeline.errors import DatasetError, TooManyRefused
from tl_pipeline.runs.planning import LOST, Context, Outcome, Step
from tl_pipeline.sources import open_source
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact
from tl_pipeline.store.keys import digest, key_document
from tl_pipeline.store.tables import DUPLICATES, MANIFEST, QUARANTINE

# Bump when the same inputs must give other rows.
VERSION = 1
_NAMED = 3  # of many, in a message


def plan(context: Context) -> Outcome[Artifact]:
    """Scan the source into the overlay of ``context.store``: it is cheap enough."""
    return run(replace(context, dataset=context.dataset.offline()))


def run(context: Context) -> Outcome[Artifact]:
    """Write the manifest of ``context.dataset``, unless that very manifest exists.

    Raises:
        DatasetError: nothing to learn from: no images, one class, an empty split, no
            weight above 0; or a weight that is none.
        TooManyRefused: more than ``max_quarantined`` of the inputs were refused.
    """
    started, dataset, store = time.perf_counter(), context.dataset, context.store
    memo = Memo(store, dataset.name, trust=context.trust_memo)
    scan = look(open_source(dataset), dataset, memo)
    _check(dataset, scan)
    fingerprint = tables.content(scan.manifest)
    document = key_document(
        "ingest",
        VERSION,
        {"dataset": dataset.name, "split": dataset.split.model_dump(mode="json")},
        {
            "images": fingerprint,
            "places": tables.fingerprint(scan.manifest, "uri"),
            "refused": tables.fingerprint(scan.quarantine, "uri", "reason"),
            "duplicates": tables.fingerprint(scan.duplicates, "uri", "kept_uri"),
            **_declared(scan.manifest),
        },
    )
    made = store.find("manifests", digest(document))
    reason = _summary(scan) if made else _changes(context, digest(document), scan)
    artifact = made or store.build(
        "manifests", document, lambda folder: _write(folder, context, scan, fingerprint)
    )
    step = Step(
        stage="ingest",
        subject=dataset.name,
        cached=made is not None,
        reason=reason + _tiny(scan),
        keys={"manifest": artifact.key},
        seconds=time.perf_counter() - started,
        units=scan.manifest.num_rows,
    )
    return Outcome(artifact, (step,))


def _declared(manifest: pa.Table) -> dict[str, str]:
    """The splits that the source declares, if it does."""
    if manifest["declared"].null_count == manifest.num_rows:
        return {}
    return {"declared splits": tables.fingerprint(manifest, "declared")}


def _check(dataset: DatasetSpec, scan: Scan) -> None:
    _check_refused(dataset, scan)
    name, manifest = dataset.name, scan.manifest
    classes = tables.counts(manifest["label"])
    if len(classes) < 2:
        raise DatasetError(
            f"{name}: all {scan.inputs} images are of one class, "
            f"{next(iter(classes))!r}; a classifier needs two. Expected "
            "root/class/image files"
        )
    _check_expected(dataset, manifest.num_rows, len(classes))
    _check_weights(name, manifest)
    sizes = tables.counts(manifest["split"])
    learned = pc.count_distinct(splits.learned(manifest)["label"]).as_py()
    if len(sizes) < len(splits.SPLITS) or learned < 2:
        raise DatasetError(
            f"{name}: {manifest.num_rows} images split into {_shares(sizes)}, with "
            f"{learned} classes to learn; every split needs images. Add images "
            "or change split.validation, split.test or split.seed"
        )


def _check_refused(dataset: DatasetSpec, scan: Scan) -> None:
    name, inputs, refused = dataset.name, scan.inputs, scan.quarantine.num_rows
    reasons = tables.counts(scan.quarantine["reason"])
    listed = ", ".join(f"{n} {reason}" for reason, n in reasons.items())
    if not scan.manifest.num_rows:
        raise DatasetError(
            f"{name}: no images among {inputs} inputs ({listed or 'it is empty'}). "
            "Expected root/class/image files"
        )
    if refused > dataset.max_quarantined * inputs:
        first = "; ".join(
            f"{row['uri']}: {row['reason']} ({row['detail']})"
            for row in scan.quarantine[:_NAMED].to_pylist()
        )
        raise TooManyRefused(
            f"{name}: {refused} of {inputs} inputs were refused ({listed}), more than "
            f"max_quarantined = {dataset.max_quarantined:g} allows. First: {first}"
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


def _check_weights(name: str, manifest: pa.Table) -> None:
    weight = pc.fill_null(manifest["weight"], 1)
    good = pc.and_(pc.is_finite(weight), pc.greater_equal(weight, 0))
    wrong = manifest.filter(pc.invert(good))
    if wrong.num_rows:
        first = ", ".join(
            f"{weight:g} of {uri}"
            for weight, uri in tables.values(wrong[:_NAMED], "weight", "uri")
        )
        raise DatasetError(
            f"{name}: {wrong.num_rows} weights are no weights: {first}. A weight is "
            "0 (not learned from) or more; correct the source"
        )
    if (
        splits.TRAIN in tables.counts(manifest["split"])
        and not splits.learned(manifest).num_rows
    ):
        raise DatasetError(
            f"{name}: all training images have weight 0, so there is nothing to learn "
            "from; correct the weights in the source"
        )


def _changes(context: Context, key: str, scan: Scan) -> str:
    """How the rows differ from those of the last run."""
    before = context.previous.get(("ingest", context.dataset.name), {}).get("manifest")
    if before is None:
        return f"new: {_summary(scan)}"
    found = context.store.find("manifests", before)
    if before == key or found is None:
        return LOST
    names = ["image_id", "uri", "label", "split", "weight"]
    old = tables.read(MANIFEST, context.store.path(found), names)
    now = scan.manifest.select(names)
    place = pc.index_in(now["image_id"], value_set=old["image_id"].combine_chunks())
    now, then = now.filter(pc.is_valid(place)), old.take(place.drop_null())
    same = {name: pc.equal(*_filled(now, then, name)) for name in names}
    counts = {
        "added": place.null_count,
        "removed": old.num_rows - now.num_rows,
        "relabelled": _count(pc.invert(same["label"])),
        "in another split": _count(pc.invert(same["split"])),
        "weighed anew": _count(pc.invert(same["weight"])),
        "moved": _count(pc.and_(pc.invert(same["uri"]), same["label"])),
    }
    said = [f"{n:,} {what}" for what, n in counts.items() if n]
    return ", ".join(said) or "other files are refused or duplicate"


def _filled(now: pa.Table, then: pa.Table, name: str) -> list[pa.ChunkedArray]:
    columns = [now[name], then[name]]
    return [pc.fill_null(c, 1) for c in columns] if name == "weight" else columns


def _count(mask: pa.ChunkedArray) -> int:
    return pc.sum(mask).as_py() or 0


def _summary(scan: Scan) -> str:
    classes = len(tables.counts(scan.manifest["label"]))
    shares = _shares(tables.counts(scan.manifest["split"]))
    said = f"{scan.manifest.num_rows:,} images of {classes} classes ({shares})"
    if scan.quarantine.num_rows:
        said += f", {scan.quarantine.num_rows:,} refused"
    if scan.duplicates.num_rows:
        said += f", {scan.duplicates.num_rows:,} duplicates"
    return said


def _shares(sizes: dict[str, int]) -> str:
    return ", ".join(f"{split} {sizes.get(split, 0):,}" for split in splits.SPLITS)


def _tiny(scan: Scan) -> str:
    tiny = splits.tiny(scan.manifest)
    said = [f"{label} (no {', '.join(lacks)})" for label, lacks in tiny.items()]
    if len(said) > _NAMED:
        said[_NAMED:] = [f"{len(said) - _NAMED:,} more"]
    return f"; too small for all splits: {', '.join(said)}" if said else ""


def _dated(context: Context, quarantine: pa.Table) -> pa.Table:
    """When each input was first refused for its reason: by the last run, or now."""
    now = pa.scalar(datetime.now(UTC), QUARANTINE.schema.field("first_seen").type)
    seen = pa.repeat(now, quarantine.num_rows)
    before = context.previous.get(("ingest", context.dataset.name), {}).get("manifest")
    found = context.store.find("manifests", before) if before else None
    if found:
        old = tables.read(QUARANTINE, context.store.path(found))
        place = pc.index_in(quarantine["uri"], value_set=old["uri"].combine_chunks())
        then = old.take(place)
        same = pc.fill_null(pc.equal(then["reason"], quarantine["reason"]), False)
        seen = pc.if_else(same, then["first_seen"], seen)
    at = quarantine.column_names.index("first_seen")
    return quarantine.set_column(at, QUARANTINE.schema.field(at), seen)


def _write(folder: Path, context: Context, scan: Scan, fingerprint: str) -> str:
    tables.write(MANIFEST, scan.manifest, folder)
    tables.write(QUARANTINE, _dated(context, scan.quarantine), folder)
    tables.write(DUPLICATES, scan.duplicates, folder)
    return fingerprint

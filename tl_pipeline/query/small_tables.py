"""The small tables of the catalogue: rows made from run records and the store."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import pyarrow as pa

from tl_pipeline import overlaps, registry, runs, tables
from tl_pipeline.artifacts import Store
from tl_pipeline.embeddings import EmbeddingFolder
from tl_pipeline.encoders import Encoder
from tl_pipeline.runs import RunRecord
from tl_pipeline.tables import DUPLICATES, MANIFEST, NEAR_DUPLICATES, QUARANTINE, SEARCH

Row = Mapping[str, Any]


class SmallTable(NamedTuple):
    """A table's rows, columns, and what one row is."""

    rows: Iterable[Row]
    schema: pa.Schema
    comment: str


def small_tables(store: Store, records: list[RunRecord]) -> dict[str, SmallTable]:
    """Every small table by its name."""
    latest = {record.dataset: record for record in records}
    return {
        **_of_runs(records),
        **_of_images(store, records, latest),
        **_of_heads(store, records, latest),
        **_of_store(store, records),
    }


def _of_runs(records: list[RunRecord]) -> dict[str, SmallTable]:
    return {
        "runs": SmallTable(
            map(_run, records),
            _schema(
                "run_id dataset manifest best_encoder best_head:s",
                "started finished:t",
                "images quarantined duplicates:i",
                "seconds test_accuracy gain_by_transfer:f",
            ),
            "One row per finished run.",
        ),
        "stages": SmallTable(
            [_step(record, step) for record in records for step in record.steps],
            _schema("run_id dataset stage subject reason:s", "cached:b", "seconds:f"),
            "One row per run, stage and subject: what was cached, what ran, and why.",
        ),
        "timings": SmallTable(
            [row for record in records for row in _timings(record)],
            _schema(
                "run_id dataset encoder bottleneck:s",
                "images:i",
                "read decode transfer forward write idle elapsed:f",
            ),
            "One row per run and encoder that embedded images: where its seconds went; "
            "all but elapsed add up all threads, idle is the network's.",
        ),
    }


def _of_images(
    store: Store, records: list[RunRecord], latest: Mapping[str, RunRecord]
) -> dict[str, SmallTable]:
    return {
        "splits": SmallTable(
            [row for record in records for row in _splits(record)],
            _schema(
                "run_id dataset split:s",
                "images groups:i",
                "share distance_from_train:f",
                "entered left_ moved_in relabelled:i",
            ),
            "One row per run and split: its size, how far its class shares are from "
            "those of train (total variation distance), and what changed since the "
            "run before, null where that is unknown.",
        ),
        "class_counts": SmallTable(
            [row for record in latest.values() for row in _class_counts(record)],
            _schema("dataset label split:s", "images:i", "share:f"),
            "One row per dataset, class and split, as of its latest run; share is "
            "that of the split's images.",
        ),
        "latest_manifests": SmallTable(
            [_manifest(store, record) for record in latest.values()],
            _schema("dataset run_id manifest_file quarantine_file duplicates_file:s"),
            "One row per dataset: the files of its latest run.",
        ),
        "near_duplicates": SmallTable(
            (row for record in latest.values() for row in _near(store, record)),
            _schema("dataset image_id near_id:s", "similarity:f", "cluster:i"),
            "One row per pair of near duplicates in the latest run of each dataset.",
        ),
    }


def _of_heads(
    store: Store, records: list[RunRecord], latest: Mapping[str, RunRecord]
) -> dict[str, SmallTable]:
    return {
        "searches": SmallTable(
            [row for record in records for row in _searches(store, record)],
            _schema(
                "dataset encoder head:s",
                "round images folds:i",
                "accuracy deviation log_loss:f",
                "chosen:b",
                "run_id family trial search:s",
            ),
            "One row per run, search, round and configuration: how it did on training "
            "images that it did not learn from (deviation over the folds), or on "
            "validation.",
        ),
        "run_evaluations": SmallTable(
            [
                _evaluation(record, result, latest[record.dataset])
                for record in records
                for result in record.results
            ],
            _schema("run_id dataset evaluation encoder head role:s", "latest:b"),
            "One row per run and evaluation: best, candidate or control.",
        ),
        "members": SmallTable(
            _members(records),
            _schema("evaluation member encoder head:s", "times:i"),
            "One row per evaluation of averaged heads and head: member is the "
            "evaluation of that head, which counts so many times.",
        ),
    }


def _of_store(store: Store, records: list[RunRecord]) -> dict[str, SmallTable]:
    return {
        "models": SmallTable(
            registry.models(store),
            _schema(
                "name:s",
                "version:i",
                "aliases:l",
                "encoder head:s",
                "folds_accuracy validation_accuracy test_accuracy:f",
                "folder model:s",
            ),
            "One row per registered model version; aliases may hold champion.",
        ),
        "encoders": SmallTable(
            [*encoders(store), *_joints(store, records)],
            _schema("encoder_key encoder backbone layer weights weights_sha256:s"),
            "One row per encoder that has embeddings in the store, and per joint of "
            "several, which has none of its own.",
        ),
        "refused": SmallTable(
            _refused(store),
            _schema("encoder_key image_id reason detail:s", "first_seen:t"),
            "One row per encoder and image that could not be decoded.",
        ),
        "doubled_embeddings": SmallTable(
            _doubled(store),
            _schema("file:s", "row:i"),
            "One row per embedding that another part file gives too; the view "
            "embeddings leaves it out.",
        ),
    }


def _evaluation(record: RunRecord, result: runs.Result, latest: RunRecord) -> Row:
    return {
        "run_id": record.run_id,
        "dataset": record.dataset,
        "evaluation": result.evaluation,
        "encoder": result.encoder,
        "head": result.head,
        "role": result.role,
        "latest": latest.run_id == record.run_id,
    }


def _searches(store: Store, record: RunRecord) -> Iterator[Row]:
    for step in record.steps:
        if step.stage == "search":
            made = store.find("searches", step.keys["search"])
            # a run whose artifacts were deleted keeps its record, not its rows
            found = tables.read(SEARCH, store.path(made)).to_pylist() if made else []
            for row in found:
                yield {"run_id": record.run_id, "dataset": record.dataset, **row}


def _run(record: RunRecord) -> Row:
    best = record.best
    return {
        "run_id": record.run_id,
        "dataset": record.dataset,
        "manifest": record.manifest,
        "started": record.started,
        "finished": record.finished,
        "seconds": (record.finished - record.started).total_seconds(),
        "images": record.images,
        "quarantined": record.quarantined,
        "duplicates": record.duplicates,
        "best_encoder": best.encoder,
        "best_head": best.head,
        "test_accuracy": best.test.value,
        "gain_by_transfer": record.gain.value if record.gain else None,
    }


def _step(record: RunRecord, step: runs.Step) -> Row:
    return {
        "run_id": record.run_id,
        "dataset": record.dataset,
        "stage": step.stage,
        "subject": step.subject,
        "reason": step.reason,
        "cached": step.cached,
        "seconds": step.seconds,
    }


def _timings(record: RunRecord) -> Iterable[Row]:
    for step in record.steps:
        if step.timings:
            yield {
                "run_id": record.run_id,
                "dataset": record.dataset,
                "encoder": step.subject,
                "bottleneck": step.timings.bottleneck,
                "images": step.units,
                **asdict(step.timings),
            }


def _splits(record: RunRecord) -> Iterable[Row]:
    report = record.split_report
    for split, size in report.splits.items() if report else ():
        change = report.since[split] if report and report.since else None
        yield {
            "run_id": record.run_id,
            "dataset": record.dataset,
            "split": split,
            "images": size.images,
            "groups": size.groups,
            "share": size.share,
            "distance_from_train": size.distance,
            "entered": change.entered if change else None,
            "left_": change.left if change else None,
            "moved_in": sum(change.came_from.values()) if change else None,
            "relabelled": change.relabelled if change else None,
        }


def _class_counts(record: RunRecord) -> Iterable[Row]:
    for label, split, images, share in (
        record.split_report.shares() if record.split_report else ()
    ):
        yield {
            "dataset": record.dataset,
            "label": label,
            "split": split,
            "images": images,
            "share": share,
        }


def _manifest(store: Store, record: RunRecord) -> Row:
    folder = store.root / "manifests" / record.manifest
    return {
        "dataset": record.dataset,
        "run_id": record.run_id,
        "manifest_file": str(folder / MANIFEST.file),
        "quarantine_file": str(folder / QUARANTINE.file),
        "duplicates_file": str(folder / DUPLICATES.file),
    }


def _near(store: Store, record: RunRecord) -> Iterable[Row]:
    """The pairs that audit found; none where nobody looked."""
    folder = store.root / "manifests" / record.manifest
    if not (folder / NEAR_DUPLICATES.file).exists():
        return
    names = NEAR_DUPLICATES.schema.names
    for row in tables.values(tables.read(NEAR_DUPLICATES, folder), *names):
        yield {"dataset": record.dataset, **dict(zip(names, row, strict=True))}


def encoders(store: Store) -> Iterable[Row]:
    """One row per encoder that has embeddings in ``store``."""
    for file in sorted((store.root / "embeddings").glob("encoder=*/encoder.json")):
        encoder = Encoder.model_validate(json.loads(file.read_text()))
        yield {
            "encoder_key": encoder.key,
            "encoder": encoder.label,
            "backbone": encoder.backbone,
            "layer": encoder.layer,
            "weights": encoder.weights.name,
            "weights_sha256": encoder.weights.sha256,
        }


def _joints(store: Store, records: list[RunRecord]) -> Iterable[Row]:
    known = {row["encoder_key"]: row for row in encoders(store)}
    joints = {joint.key: joint for record in records for joint in record.joints}
    for joint in joints.values():
        members = [known[key] for key in joint.members if key in known]
        told = {
            name: " + ".join(member[name] for member in members)
            for name in ("backbone", "layer", "weights")
        }
        yield {"encoder_key": joint.key, "encoder": joint.label, **told}


def _members(records: list[RunRecord]) -> Iterable[Row]:
    results = {r.evaluation: r for record in records for r in record.results}
    for result in results.values():
        for member in result.members:
            yield {
                "evaluation": result.evaluation,
                "member": member.evaluation,
                "encoder": member.encoder,
                "head": member.head,
                "times": member.times,
            }


def _refused(store: Store) -> Iterable[Row]:
    for row in encoders(store):
        folder = EmbeddingFolder(store, row["encoder_key"])
        for refusal in folder.refusals().values():
            yield {"encoder_key": row["encoder_key"], **refusal}


def _doubled(store: Store) -> Iterable[Row]:
    for row in encoders(store):
        parts = EmbeddingFolder(store, row["encoder_key"]).parts().whole
        for file, rows in overlaps.doubled(parts).items():
            yield from ({"file": str(file), "row": int(again)} for again in rows)


_KINDS = {
    "s": pa.string(),
    "i": pa.int64(),
    "f": pa.float64(),
    "b": pa.bool_(),
    "t": pa.timestamp("us", "UTC"),
    "l": pa.list_(pa.string()),
}


def _schema(*groups: str) -> pa.Schema:
    """``"a b:s"`` means the columns a and b, both strings."""
    fields = []
    for group in groups:
        names, _, kind = group.partition(":")
        fields += [(name, _KINDS[kind]) for name in names.split()]
    return pa.schema(fields)

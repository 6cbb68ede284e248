"""The small tables that tell of the images of datasets and how they are split."""

from collections.abc import Iterable

from tl_pipeline.query.small_table import Row, SmallTable, schema
from tl_pipeline.runs import records as runs
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.tables import DUPLICATES, MANIFEST, NEAR_DUPLICATES, QUARANTINE


def image_tables(store: Store, records: list[RunRecord]) -> dict[str, SmallTable]:
    """Splits, classes, manifests and near duplicates."""
    latest = runs.latest_of_each(records)
    return {
        "splits": SmallTable(
            [row for record in records for row in _splits(record)],
            schema(
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
            schema("dataset label split:s", "images:i", "share:f"),
            "One row per dataset, class and split, as of its latest run; share is "
            "that of the split's images.",
        ),
        "latest_manifests": SmallTable(
            [_manifest(store, record) for record in latest.values()],
            schema("dataset run_id manifest_file quarantine_file duplicates_file:s"),
            "One row per dataset: the files of its latest run.",
        ),
        "near_duplicates": SmallTable(
            (row for record in latest.values() for row in _near(store, record)),
            schema("dataset image_id near_id:s", "similarity:f", "cluster:i"),
            "One row per pair of near duplicates in the latest run of each dataset.",
        ),
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

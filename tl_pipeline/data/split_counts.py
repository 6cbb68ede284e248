"""What stands on each side of a split, what changed since the last run, what leaks.

Pure functions of the tables of two manifests. They are Arrow throughout: no Python runs
once per image.
"""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

import math
from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tl_pipeline.data.split_report import (
    DuplicateFiles,
    SplitChange,
    SplitReport,
    SplitSize,
)
from tl_pipeline.data.splits import SPLITS, TRAIN

# What ``describe`` needs of a manifest.
COLUMNS = ("image_id", "label", "split", "group")


def describe(
    manifest: pa.Table, duplicates: pa.Table, before: pa.Table | None = None
) -> SplitReport:
    """Describe ``manifest`` and how it differs from ``before``, the last run's.

    Both hold ``COLUMNS``; ``duplicates`` is the table DUPLICATES of ``manifest``.
    """
    labels, counts = _class_counts(manifest)
    groups = _groups(manifest)
    return SplitReport(
        splits={
            split: _size(counts, place, groups[split].num_rows)
            for place, split in enumerate(SPLITS)
        },
        classes=dict(zip(labels, map(tuple, counts.tolist()), strict=True)),
        since=None if before is None else _changes(before, manifest),
        duplicates=_duplicates(duplicates, manifest),
        groups_across=_groups_across(groups),
    )


def _class_counts(manifest: pa.Table) -> tuple[list[str], np.ndarray]:
    """Sorted labels, and the images of each in each split: (labels, splits)."""
    found = _counted(manifest, "label", "split")
    labels = sorted({str(label) for label, _ in found})
    counts = np.array(
        [[found.get((label, split), 0) for split in SPLITS] for label in labels]
    )
    return labels, counts


def _size(counts: np.ndarray, place: int, groups: int) -> SplitSize:
    here, train = counts[:, place], counts[:, SPLITS.index(TRAIN)]
    images, whole = int(here.sum()), int(counts.sum())
    comparable = SPLITS[place] != TRAIN and images > 0 and train.sum() > 0
    return SplitSize(
        images=images,
        share=images / whole if whole else 0.0,
        groups=groups or None,
        distance=_distance(here, train) if comparable else None,
        by_chance=_distance_by_chance(here, train) if comparable else None,
    )


def _distance(here: np.ndarray, train: np.ndarray) -> float:
    return float(np.abs(here / here.sum() - train / train.sum()).sum() / 2)


def _distance_by_chance(here: np.ndarray, train: np.ndarray) -> float:
    """The expected ``_distance`` of two random draws of these sizes.

    The classes' common shares are taken for the true ones. The difference of two shares
    is taken as normal, whose mean absolute value is sqrt(2 / pi) of its standard
    deviation; for a class of few images the sum of both shares is the tighter bound.
    """
    common = (here + train) / (here + train).sum()
    variance = common * (1 - common) * (1 / here.sum() + 1 / train.sum())
    apart = np.minimum(np.sqrt(2 / math.pi * variance), 2 * common)
    return float(apart.sum() / 2)


def _groups(manifest: pa.Table) -> dict[str, pa.Table]:
    """The distinct groups of each split, one row each."""
    grouped = manifest.filter(pc.field("group").is_valid())
    distinct = grouped.group_by(["split", "group"]).aggregate([])
    return {split: distinct.filter(pc.field("split") == split) for split in SPLITS}


def _groups_across(groups: Mapping[str, pa.Table]) -> dict[str, int]:
    found = {}
    for one, other in combinations(SPLITS, 2):
        both = groups[one].join(groups[other], "group", join_type="left semi")
        if both.num_rows:
            found[f"{one}/{other}"] = both.num_rows
    return found


def side_by_side(before: pa.Table, manifest: pa.Table) -> pa.Table:
    """A row for each image of either, with the columns of both.

    Those of ``before`` are called ``old_...``, but for the common ``image_id``; they
    are null where an image is not there.
    """
    names = [n if n == "image_id" else f"old_{n}" for n in before.column_names]
    old = before.rename_columns(names)
    return manifest.join(old, keys="image_id", join_type="full outer")


def _changes(before: pa.Table, manifest: pa.Table) -> dict[str, SplitChange]:
    names = ["image_id", "label", "split"]
    if before.select(names).equals(manifest.select(names)):
        return {split: SplitChange() for split in SPLITS}
    both = side_by_side(before.select(names), manifest.select(names))
    moves = _counted(both, "old_split", "split")
    # a comparison with nothing is null, and null rows are left out
    relabelled = both.filter(pc.field("label") != pc.field("old_label"))
    renamed = _counted(relabelled, "split")
    return {
        split: SplitChange(
            entered=moves.get((None, split), 0),
            left=moves.get((split, None), 0),
            came_from={
                other: moves[other, split]
                for other in SPLITS
                if other != split and (other, split) in moves
            },
            relabelled=renamed.get((split,), 0),
        )
        for split in SPLITS
    }


def _duplicates(duplicates: pa.Table, manifest: pa.Table) -> list[DuplicateFiles]:
    names = ["image_id", "declared_split", "kept_declared_split"]
    copied = duplicates["image_id"].combine_chunks()
    images = manifest.filter(pc.is_in(manifest["image_id"], value_set=copied))
    kept = duplicates.select(names).join(
        images.select(["image_id", "split"]), keys="image_id", join_type="inner"
    )
    found = [
        DuplicateFiles(
            split=str(split), declared=declared, kept_declared=of_kept, files=files
        )
        for (split, declared, of_kept), files in _counted(
            kept, "split", *names[1:]
        ).items()
    ]
    return sorted(found, key=lambda row: (-row.files, row.split, row.declared or ""))


def _counted(rows: pa.Table, *columns: str) -> dict[tuple[str | None, ...], int]:
    """How often each combination of values of ``columns`` occurs."""
    found = rows.group_by(list(columns)).aggregate([([], "count_all")])
    values = [found[name].to_pylist() for name in (*columns, "count_all")]
    return {tuple(row[:-1]): row[-1] for row in zip(*values, strict=True)}

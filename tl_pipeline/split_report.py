"""How a dataset is split: counts, what changed since the last run, leaks found.

Pure functions of the tables of two manifests. They are Arrow throughout: no Python runs
once per image.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from tl_pipeline.score import Score
from tl_pipeline.splits import SPLITS, TRAIN

# What ``describe`` needs of a manifest.
COLUMNS = ("image_id", "label", "split", "group")
# A class that trains on fewer images than this is tiny.
FEW = 3


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class SplitSize(_Frozen):
    """One split: its images, their share of all, how its classes compare with train's.

    ``groups`` counts distinct groups, None where no image has one. ``distance`` is the
    total variation distance between the class shares of this split and train's: the
    fraction of its images that would have to be of another class for the shares to
    agree. ``by_chance`` is what a random draw of these sizes gives on average.
    """

    images: int
    share: float
    groups: int | None = None
    distance: float | None = None
    by_chance: float | None = None


class SplitChange(_Frozen):
    """What happened to one split since the last run, in images.

    ``came_from`` maps another split to how many of its images stand here now;
    ``relabelled`` counts known images that are of another class now.
    """

    entered: int = 0
    left: int = 0
    came_from: Mapping[str, int] = {}
    relabelled: int = 0


class DuplicateFiles(_Frozen):
    """Files that were left out for having the very bytes of another.

    ``split`` is where the image that was kept stands, ``kept_declared`` what the source
    says of it, ``declared`` what it says of the files.
    """

    split: str
    declared: str | None
    kept_declared: str | None = None
    files: int


class NearDuplicateFindings(_Frozen):
    """Pairs of images that are nearly the same by their embeddings under ``encoder``.

    ``ratio`` is that of the test that found them (see ``near_duplicates``), ``largest``
    the images of the largest cluster. ``across`` maps two splits, "train/test", to the
    pairs with one image in each, before any was moved. Where clusters are kept together
    ``moved`` counts the images that changed sides for it, ``excluded`` among them
    those that are on no side now.
    """

    encoder: str
    ratio: float
    pairs: int
    images: int
    clusters: int
    largest: int
    across: Mapping[str, int]
    moved: int | None = None
    excluded: int = 0

    @property
    def leaks(self) -> bool:
        """Whether near duplicates stand on two sides."""
        return self.moved is None and any(self.across.values())


class Leakage(_Frozen):
    """A control run: one head, its validation drawn image by image and by group.

    All are accuracies. ``by_group`` is validation as the dataset's split has it.
    """

    head: str
    encoder: str
    by_image: Score
    by_group: Score
    test: Score

    @property
    def excess(self) -> float:
        """By how much validation image by image exceeds that by group."""
        return self.by_image.value - self.by_group.value

    @property
    def certain(self) -> bool:
        """Whether it is more, and by more than the intervals of both."""
        low, high = self.by_image.low, self.by_group.high
        return self.excess > 0 and (low is None or high is None or low > high)


class SplitReport(_Frozen):
    """The split of one run's manifest; see ``describe``.

    ``classes`` maps each label, sorted, to its images in train, validation and test.
    ``since`` is None where there is no earlier manifest to compare with.
    ``groups_across`` maps two splits, "train/test", to the groups with images in both.
    """

    splits: Mapping[str, SplitSize]
    classes: Mapping[str, tuple[int, int, int]]
    since: Mapping[str, SplitChange] | None = None
    duplicates: list[DuplicateFiles] = []
    groups_across: Mapping[str, int] = {}
    near_duplicates: NearDuplicateFindings | None = None
    leakage: Leakage | None = None

    def shares(self) -> Iterator[tuple[str, str, int, float]]:
        """(label, split, images, their share of the split's) for every pair."""
        for label, counts in self.classes.items():
            for split, images in zip(SPLITS, counts, strict=True):
                yield label, split, images, _ratio(images, self.splits[split].images)

    def absent(self, split: str) -> list[str]:
        """The classes without an image in ``split``."""
        place = SPLITS.index(split)
        return [label for label, counts in self.classes.items() if not counts[place]]

    def few(self) -> list[str]:
        """The classes with some training images, but fewer than ``FEW``."""
        place = SPLITS.index(TRAIN)
        return [label for label, n in self.classes.items() if 0 < n[place] < FEW]


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
    images = int(here.sum())
    comparable = SPLITS[place] != TRAIN and images > 0 and train.sum() > 0
    return SplitSize(
        images=images,
        share=_ratio(images, int(counts.sum())),
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


def _changes(before: pa.Table, manifest: pa.Table) -> dict[str, SplitChange]:
    known = before.select(["image_id", "label", "split"])
    both = manifest.select(["image_id", "label", "split"]).join(
        known.rename_columns(["image_id", "old_label", "old_split"]),
        keys="image_id",
        join_type="full outer",
    )
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
    kept = duplicates.select(names).join(
        manifest.select(["image_id", "split"]), keys="image_id", join_type="inner"
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


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0

"""What a split report says, in sentences: for the console and the HTML page alike."""

from collections.abc import Sequence
from typing import NamedTuple

from tl_pipeline.data.split_report import (
    FEW,
    Leakage,
    NearDuplicateFindings,
    Shortcut,
    SplitReport,
)
from tl_pipeline.data.splits import SPLITS, TEST, TRAIN, VALIDATION

# What follows for a class that has no image in a split.
_CONSEQUENCES = {
    TRAIN: "no head can know such a class; each of its images counts as an error",
    VALIDATION: "such a class has no say in which head is chosen",
    TEST: "the test score says nothing of such a class",
}
_FEW = "such a class is scored, but do not trust what is said of it alone"
# Of a long list of classes only the first are named.
_NAMED = 8


class Lack(NamedTuple):
    """Classes that lack images, what they lack, and what follows from it."""

    labels: list[str]
    what: str
    consequence: str

    @property
    def short(self) -> str:
        """``4 classes have no test image``."""
        have = "class has" if len(self.labels) == 1 else "classes have"
        return f"{len(self.labels):,} {have} {self.what}"

    @property
    def named(self) -> str:
        """The first labels, and how many more there are."""
        listed = ", ".join(self.labels[:_NAMED])
        more = len(self.labels) - _NAMED
        return f"{listed} and {more:,} more" if more > 0 else listed


def tiny_classes(report: SplitReport) -> list[Lack]:
    """The classes that a split lacks, and those with next to no training images."""
    found = [
        Lack(report.absent(split), f"no {split} image", _CONSEQUENCES[split])
        for split in SPLITS
    ]
    few = Lack(report.few(), f"fewer than {FEW} training images", _FEW)
    return [lack for lack in (*found, few) if lack.labels]


def summary(report: SplitReport) -> str:
    """One line: sizes, what changed, which classes are tiny."""
    said = [", ".join(f"{name} {report.splits[name].images:,}" for name in SPLITS)]
    if report.since is not None:
        changed = ", ".join(changes(report))
        said.append(
            f"since the last run {changed}"
            if changed
            else "unchanged since the last run"
        )
    return "; ".join(said + [lack.short for lack in tiny_classes(report)])


def changes(report: SplitReport) -> list[str]:
    """What changed since the last run: ``+12 train``, ``3 train -> test``."""
    since = report.since or {}
    moved = {
        f"{other} -> {split}": images
        for split, change in since.items()
        for other, images in change.came_from.items()
    }
    relabelled = sum(change.relabelled for change in since.values())
    return [
        *(f"+{new.entered:,} {split}" for split, new in since.items() if new.entered),
        *(f"-{old.left:,} {split}" for split, old in since.items() if old.left),
        *(f"{images:,} {where}" for where, images in moved.items()),
        *([f"{relabelled:,} relabelled"] if relabelled else []),
    ]


def open_leaks(report: SplitReport) -> list[str]:
    """What stands on two sides of the split."""
    said = [
        f"{_many(groups, 'group')} on both sides of {pair}"
        for pair, groups in report.groups_across.items()
    ]
    near = report.near_duplicates
    return [*said, *([near_duplicates(near)] if near and near.leaks else [])]


def closed_leaks(report: SplitReport) -> list[str]:
    """What would stand on two sides, had it not been left out or kept together."""
    said = [
        f"{_many(row.files, 'file')} declared {row.declared} left out, because the "
        f"same image is in {row.split}"
        for row in report.duplicates
        if row.declared and row.kept_declared and row.declared != row.kept_declared
    ]
    near = report.near_duplicates
    closed = near is not None and near.moved is not None and bool(near.pairs)
    return [*said, *([near_duplicates(near)] if near and closed else [])]


def leakage(found: Leakage) -> str:
    """What validation would have said without groups, and what test says."""
    points = 100 * abs(found.excess)
    size = f"{points:.0f}" if points >= 10 else f"{points:.1f}"
    return (
        f"split image by image, validation would have said "
        f"{_percent(found.by_image.value)}, {size} points "
        f"{'more' if found.excess >= 0 else 'less'} than by group "
        f"({_percent(found.by_group.value)}); test says {_percent(found.test.value)}"
    )


def shortcut(found: Shortcut) -> str:
    """What files tell without their images."""
    said = (
        "a decision tree that sees no image, only the width, height and format of "
        f"files, is right in {found.accuracy.percent} of test (most frequent class: "
        f"{_percent(found.majority)})"
    )
    return f"{said}, most by {found.attribute}" if found.attribute else said


def near_duplicates(found: NearDuplicateFindings) -> str:
    """How many there are, across which splits, and what was done about it."""
    if not found.pairs:
        return "no near duplicates"
    pairs = [f"{n:,} across {pair}" for pair, n in found.across.items() if n]
    said = (
        f"{found.images:,} near duplicates in {_many(found.clusters, 'cluster')}, "
        f"{_many(found.pairs, 'pair')}, {_listed(pairs) or 'none across splits'}"
    )
    if found.moved is None:
        return said
    said += f"; kept together: {_many(found.moved, 'image')} changed sides"
    if found.excluded:
        said += (
            f", {found.excluded:,} of them excluded for resembling an official split"
        )
    return said


def _many(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"

"""The gate of the registry: whether a model becomes champion, and why.

It is decided anew by every run, from what the stored evaluations say of the images on
which both models were scored. Nothing is predicted again.
"""

import json
from dataclasses import dataclass

from tl_pipeline.data.splits import TEST
from tl_pipeline.evaluation.scored_rows import Compared, compared
from tl_pipeline.registry.entries import RegisteredModel, Version
from tl_pipeline.registry.model_folder import MODEL
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.tables import PREDICTIONS

# Of the held-out images of the one that has fewer, at least so many must have scored
# the other too; networks that were fine-tuned are scored on validation alone.
OVERLAP = 0.5
# With fewer images to learn from than this share of the champion's, data are missing.
REMAINING = 0.9


@dataclass(frozen=True)
class Decision:
    """Whether the model becomes champion, and why.

    It is not ``comparable`` where nothing can be said: that is said loudly.
    """

    promote: bool
    reason: str
    comparable: bool = True


def decide(store: Store, model: RegisteredModel, candidate: Version) -> Decision:
    """Whether ``candidate`` takes over from the champion of ``model``.

    It does if there is none, or if it is right at least as often on the held-out images
    that both were scored on: no head learned from those that it scored. ``candidate``
    has a number if it is registered.
    """
    holder = model.champion
    if holder is None:
        first = not model.versions
        return Decision(
            promote=True,
            reason="the first model of this dataset"
            if first
            else "there was no champion",
        )
    if holder.number == candidate.number:
        return Decision(promote=False, reason=_since(model, holder))
    if kept := _kept_by_hand(model, candidate):
        return Decision(promote=False, reason=kept)
    return _compared(store, holder, candidate)


def _since(model: RegisteredModel, holder: Version) -> str:
    """Why the champion is champion."""
    made = model.history[-1] if model.history else None
    if made is None or made.version != holder.number:
        return "it is champion already"
    return f"since {made.at:%Y-%m-%d}: {made.reason}"


def _kept_by_hand(model: RegisteredModel, candidate: Version) -> str | None:
    """What to say where a person preferred the champion to ``candidate``."""
    last = model.history[-1] if model.history else None
    if last is None or last.by != "hand" or not 0 < candidate.number <= last.latest:
        return None
    return (
        f"version {last.version} was chosen by hand on {last.at:%Y-%m-%d} "
        f"({last.reason}), when this version was known; `tl models promote "
        f"{model.name} {candidate.number}` makes it champion"
    )


def _compared(store: Store, holder: Version, candidate: Version) -> Decision:
    mine, theirs = _Scored.of(store, candidate), _Scored.of(store, holder)
    if mine is None or theirs is None:
        fault = "its evaluation is not in the store any more"
    else:
        # today's labels count for both
        both = compared(store, mine.evaluation, theirs.evaluation, on_test=False)
        fault = _shrunk(holder, candidate) or _incomparable(mine, theirs, both)
        if fault is None:
            return _measured(both, holder.number)
    return Decision(
        promote=False,
        reason=f"it is not compared with version {holder.number}, the champion: "
        f"{fault}",
        comparable=False,
    )


def _measured(both: Compared, number: int) -> Decision:
    from tl_pipeline.evaluation.intervals import paired_difference  # noqa: PLC0415 - scipy

    difference = paired_difference(*both.right, both.units, seed=0)
    return Decision(
        promote=difference.value >= 0,
        reason=f"{difference.value:+.2%} on {len(both.units):,} held-out images in "
        f"common with version {number} [{difference.low:+.2%}, {difference.high:+.2%}]",
    )


def _shrunk(holder: Version, candidate: Version) -> str | None:
    """How the dataset shrank since ``holder`` was last evaluated, if it did."""
    before, now = holder.images, candidate.images
    if before is None or now is None or now >= REMAINING * before:
        return None
    return f"the dataset shrank from {before:,} to {now:,} images to learn from"


def _incomparable(mine: "_Scored", theirs: "_Scored", both: Compared) -> str | None:
    """Why these two cannot be compared, if so."""
    if lost := sorted(theirs.classes - mine.classes):
        named = ", ".join(lost[:3]) + ", ..." * (len(lost) > 3)
        return f"{len(lost)} of its {len(theirs.classes)} classes are gone ({named})"
    common, needed = len(both.units), min(theirs.images, mine.images)
    if not common or common < OVERLAP * needed:
        return f"only {common:,} of {needed:,} held-out images scored both"
    return None


@dataclass(frozen=True)
class _Scored:
    """An evaluation, how many held-out images it has, and the classes it knows."""

    evaluation: Artifact
    images: int
    classes: frozenset[str]

    @classmethod
    def of(cls, store: Store, version: Version) -> "_Scored | None":
        """The latest evaluation of ``version``; None if it is gone."""
        key = version.evaluation or _first_evaluation(store, version)
        found = store.find("evaluations", key) if key else None
        if found is None:
            return None
        splits = tables.read(PREDICTIONS, store.path(found), ["split"])["split"]
        images = len(splits) - tables.counts(splits).get(TEST, 0)
        about = json.loads((store.path(found) / "chosen.json").read_text())
        return cls(found, images, frozenset(about["classes"]))


def _first_evaluation(store: Store, version: Version) -> str | None:
    """The one that a model of an older version was registered with."""
    made = store.find("models", version.model) if version.model else None
    if made is None:
        return None
    return json.loads((store.path(made) / MODEL).read_text())["evaluation"]

"""The gate of the registry: whether a model becomes champion, and why.

It is decided anew by every run, from what the stored evaluations say of the images on
which both models were scored. Nothing is predicted again. What was found of each rule,
``Evidence``, is kept beside the alias.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel

from tl_pipeline.config.specs import GateSpec
from tl_pipeline.data.splits import CHOOSING, TEST
from tl_pipeline.evaluation.choice import ALPHA
from tl_pipeline.evaluation.costs import Costs
from tl_pipeline.evaluation.scored_rows import Compared, compared
from tl_pipeline.registry.entries import RegisteredModel, Version
from tl_pipeline.registry.model_folder import MODEL
from tl_pipeline.score import Score
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.tables import METRICS, PREDICTIONS

if TYPE_CHECKING:
    from tl_pipeline.evaluation.comparison import ClassChange

ACCURACY = "accuracy"
# Of the held-out images of the one that has fewer, at least so many must have scored
# the other too; networks that were fine-tuned are scored on validation alone.
OVERLAP = 0.5
# With fewer images to learn from than this share of the champion's, data are missing.
REMAINING = 0.9


class Finding(BaseModel):
    """What came of one rule of the gate, in words."""

    rule: str
    kept: bool
    found: str


class Evidence(BaseModel):
    """Version ``candidate`` beside ``champion`` on held-out images that both scored."""

    candidate: int
    champion: int
    images: int
    difference: Score
    findings: list[Finding]

    @property
    def kept(self) -> bool:
        """Whether every rule was kept."""
        return all(one.kept for one in self.findings)


@dataclass(frozen=True)
class Decision:
    """Whether the model becomes champion, and why.

    It is not ``comparable`` where nothing can be said: that is said loudly.
    """

    promote: bool
    reason: str
    comparable: bool = True
    evidence: Evidence | None = None


def decide(
    store: Store,
    model: RegisteredModel,
    candidate: Version,
    gate: GateSpec,
    metric: str,
    costs: Costs,
) -> Decision:
    """Whether ``candidate`` takes over from the champion of ``model``.

    It does if there is none, or if it keeps all rules of ``gate`` on the held-out
    images that both were scored on: no head learned from those that it scored.
    ``candidate`` has a number if it is registered. ``metric`` is what the run chose by.
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
    return compare(store, holder, candidate, gate, metric, costs)


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


def compare(
    store: Store,
    holder: Version,
    candidate: Version,
    gate: GateSpec,
    metric: str,
    costs: Costs,
) -> Decision:
    """Whether ``candidate`` keeps the rules of ``gate`` beside ``holder``."""
    mine, theirs = _Scored.of(store, candidate), _Scored.of(store, holder)
    if mine is None or theirs is None:
        fault = "its evaluation is not in the store any more"
    else:
        # today's labels count for both
        both = compared(store, mine.evaluation, theirs.evaluation, on_test=False)
        fault = _shrunk(holder, candidate) or _incomparable(mine, theirs, both)
        if fault is None:
            errors = [
                _calibration_error(store, one.evaluation) for one in (mine, theirs)
            ]
            difference = _difference(both, metric, costs)
            evidence = Evidence(
                candidate=candidate.number,
                champion=holder.number,
                images=len(both.units),
                difference=difference,
                findings=[
                    _higher(metric, difference, gate.margin),
                    *_other_rules(both, gate, errors),
                ],
            )
            return Decision(
                promote=evidence.kept, reason=_reason(evidence), evidence=evidence
            )
    return Decision(
        promote=False,
        reason=f"it is not compared with version {holder.number}, the champion: "
        f"{fault}",
        comparable=False,
    )


def _difference(both: Compared, metric: str, costs: Costs) -> Score:
    """By how much the candidate is better by ``metric``."""
    from tl_pipeline.evaluation import comparison, intervals  # noqa: PLC0415 - scipy

    if metric == ACCURACY:
        return intervals.paired_difference(*both.right, both.units, seed=0)
    return comparison.difference_by(metric, both, 0, costs)


def _other_rules(
    both: Compared, gate: GateSpec, errors: Sequence[float | None]
) -> list[Finding]:
    """``errors`` are the calibration errors of candidate and champion."""
    from tl_pipeline.evaluation import comparison  # noqa: PLC0415 - scipy

    changes, findings = comparison.of_classes(both), list[Finding]()
    if gate.classes:
        worse = [one for one in changes if one.difference < 0 and one.p_holm < ALPHA]
        findings.append(_of_classes("classes", worse, "known to have a lower recall"))
    if gate.class_drop is not None:
        worse = [one for one in changes if one.difference < -gate.class_drop]
        words = f"more than {100 * gate.class_drop:g} points lower in recall"
        findings.append(_of_classes("class_drop", worse, words))
    now, before = errors
    if gate.ece is not None and now is not None and before is not None:
        found = (
            f"calibration error {100 * now:.1f} %, the champion's {100 * before:.1f} %"
        )
        kept = now <= before + gate.ece
        findings.append(Finding(rule="ece", kept=kept, found=found))
    return findings


def _higher(metric: str, difference: Score, margin: float | None) -> Finding:
    low, high = difference.low or 0.0, difference.high or 0.0
    kept = difference.value >= 0 if margin is None else low >= -margin
    form = "+.2%" if metric == ACCURACY else "+.4f"
    value, low, high = (format(part, form) for part in (difference.value, low, high))
    return Finding(rule=metric, kept=kept, found=f"{value} [{low}, {high}]")


def _of_classes(rule: str, worse: "Sequence[ClassChange]", words: str) -> Finding:
    worst = sorted(worse, key=lambda one: one.difference)
    named = ", ".join(
        f"{one.label} {100 * one.difference:+.1f} points on {one.images:,} images"
        for one in worst[:3]
    )
    more = f" and {len(worst) - 3:,} more" if len(worst) > 3 else ""
    found = f"{words}: {named or 'no class'}{more}"
    return Finding(rule=rule, kept=not worse, found=found)


def _reason(evidence: Evidence) -> str:
    """The difference, and which of the other rules were not kept."""
    first, *others = evidence.findings
    value, interval = first.found.split(" ", 1)
    by = "" if first.rule == ACCURACY else f" by {first.rule.replace('_', ' ')}"
    said = (
        f"{value}{by} on {evidence.images:,} held-out images in common with "
        f"version {evidence.champion} {interval}"
    )
    return "; ".join([said, *(one.found for one in others if not one.kept)])


def _calibration_error(store: Store, evaluation: Artifact) -> float | None:
    """That on held-out images; None in tables of older versions."""
    for row in tables.read(METRICS, store.path(evaluation)).to_pylist():
        if row["metric"] == "ece" and row["split"] in CHOOSING:
            return row["value"]
    return None


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

"""What a finished run found, in sentences: for the console, logs and Prefect's UI."""

from collections.abc import Iterator
from statistics import NormalDist
from typing import Literal, NamedTuple

from tl_pipeline.data import split_findings
from tl_pipeline.data.split_report import SplitReport
from tl_pipeline.runs.records import BatchRecord, RunRecord
from tl_pipeline.score import Score

# From so many candidates on it is said what the best of them by test is worth.
_MANY_TESTED = 20


class Sentence(NamedTuple):
    """A line of a summary. ``alarm`` asks for attention, ``warning`` for a look."""

    text: str
    tone: Literal["headline", "plain", "warning", "alarm"] = "plain"


def of_run(record: RunRecord) -> Iterator[Sentence]:
    """What ``record`` found, the most important first, the registry's word last."""
    best, entry = record.best, record.registered
    yield Sentence(
        f"{record.dataset}: test accuracy {best.test.percent} on "
        f"{best.test_images:,} images, with {best.head} on {best.encoder}",
        "headline",
    )
    if best.members:
        said = [f"{m.times} x {m.head} on {m.encoder}" for m in best.members]
        yield Sentence(f"averaged: {'; '.join(said)}")
    if record.gain:
        low, high = 100 * (record.gain.low or 0), 100 * (record.gain.high or 0)
        yield Sentence(
            f"gain by transfer: {100 * record.gain.value:+.1f} points "
            f"[{low:+.1f}, {high:+.1f}] over the same network untrained"
        )
    for finetuning in record.finetunings:
        yield Sentence(finetuning.sentence)
    if record.decisions:
        yield Sentence(record.decisions.sentence)
        if record.decisions.shortage:
            yield Sentence(record.decisions.shortage, "warning")
    yield from _refused(record)
    if record.split_report:
        yield from _of_split(record.split_report, best.test)
    if said := looks(record):
        yield Sentence(said, "warning")
    rank = "champion" if entry.champion else "not champion"
    yield Sentence(
        f"model {entry.name} version {entry.version}, {rank}: {entry.reason}",
        "plain" if entry.comparable else "alarm",
    )


def looks(record: RunRecord) -> str | None:
    """How often the test images were looked at, if often, and what that is worth.

    The largest of n equal scores lies about the (n - 0.375) / (n + 0.25) quantile of
    their errors high (Blom 1958, "Statistical Estimates and Transformed Beta
    Variables"), and less where candidates err alike.
    """
    number = len(record.tested)
    if number < _MANY_TESTED:
        return None
    highest = NormalDist().inv_cdf((number - 0.375) / (number + 0.25))
    points = 100 * highest * record.best.test.standard_error
    return (
        f"{number:,} candidates of all runs were scored on the test images: whoever "
        f"takes the best of them by test sees it up to {points:.1f} points too high. "
        "Choose by held-out images, and keep new test images for the last word"
    )


def of_batch(record: BatchRecord) -> Iterator[Sentence]:
    """What ``record`` predicted, and where the predictions are."""
    yield Sentence(
        f"{record.dataset}: {record.new:,} of {record.images:,} images predicted now, "
        f"by {record.name} version {record.version}",
        "headline",
    )
    yield from _refused(record)
    if tripped := [one for one in record.drift if one.tripped]:
        said = "; ".join(
            f"{one.statistic} {one.value:.3f} instead of {one.reference:.3f} "
            f"(p = {one.p:.4f})"
            for one in tripped
        )
        yield Sentence(
            f"drift: the new images are unlike the test images of the model, so its "
            f"accuracy may not hold for them: {said}",
            "alarm",
        )
    elif record.drift:
        yield Sentence(
            f"drift: none of {len(record.drift)} statistics tells the new images from "
            "the test images of the model"
        )
    where = f"dataset = '{record.dataset}'"
    yield Sentence(f'predictions: `tl sql "FROM batch_predictions WHERE {where}"`')


def _refused(record: RunRecord | BatchRecord) -> Iterator[Sentence]:
    if record.quarantined or record.duplicates:
        yield Sentence(
            f"{record.quarantined:,} inputs refused, {record.duplicates:,} duplicate "
            "files: `tl sql 'FROM quarantine'`, `tl sql 'FROM duplicates'`"
        )


def _of_split(report: SplitReport, best: Score) -> Iterator[Sentence]:
    """Sizes and changes, leaks, the control of the split, and a shortcut."""
    yield Sentence(f"split: {split_findings.summary(report)}")
    if leaks := split_findings.open_leaks(report):
        yield Sentence(f"leaks: {'; '.join(leaks)}", "warning")
    if closed := split_findings.closed_leaks(report):
        yield Sentence(f"leaks closed: {'; '.join(closed)}")
    if report.leakage:
        tone = "warning" if report.leakage.certain else "plain"
        yield Sentence(split_findings.leakage(report.leakage), tone)
    if report.shortcut and report.shortcut.strong(best):
        yield Sentence(
            f"shortcut: {split_findings.shortcut(report.shortcut)}", "warning"
        )

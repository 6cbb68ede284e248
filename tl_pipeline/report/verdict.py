"""What a run came to in one sentence, and what to do next."""

from dataclasses import dataclass

from tl_pipeline.data import split_findings
from tl_pipeline.encoders import labels
from tl_pipeline.evaluation.intervals import paired_difference
from tl_pipeline.evaluation.scored_rows import compared
from tl_pipeline.report import confusion
from tl_pipeline.report.tested import PredictedTest
from tl_pipeline.runs.records import Result, RunRecord
from tl_pipeline.score import Score
from tl_pipeline.store.artifacts import Artifact, Store

_WIDE = 0.1  # an interval of test accuracy
_MANY = 0.2  # of the errors in one pair of classes


@dataclass(frozen=True)
class Verdict:
    """Clauses of one sentence: the best, beside the next candidate, in the registry.

    ``comparison`` is "" where there is no other candidate. ``following`` says what to
    do next, the most urgent first.
    """

    best: str
    comparison: str
    promotion: str
    following: list[str]


def of(store: Store, record: RunRecord, tested: PredictedTest, noun: str) -> Verdict:
    """The verdict on ``record``, whose best predicted ``tested``.

    ``noun`` is what an input is called.

    Raises:
        DamagedArtifact: an evaluation cannot be read.
    """
    short = labels.short(result.encoder for result in record.results)
    best = f"{record.best.head} on {short[record.best.encoder]}"
    runner_up = next((r for r in record.results if r.role == "candidate"), None)
    comparison = ""
    if runner_up:
        name = f"{runner_up.head} on {short[runner_up.encoder]}"
        comparison = compared_with(name, _difference(store, record, runner_up))
    following = _following(record, tested, noun)
    return Verdict(best, comparison, _promotion(record), following)


def _difference(store: Store, record: RunRecord, runner_up: Result) -> Score:
    keys = record.best.evaluation, runner_up.evaluation
    mine, theirs = (Artifact("evaluations", key, key) for key in keys)
    both = compared(store, mine, theirs, on_test=True)
    return paired_difference(*both.right, both.units, record.spec.seed)


def compared_with(name: str, difference: Score) -> str:
    """In words, the ``difference`` of the best to the candidate of this ``name``."""
    low, high = difference.low or 0.0, difference.high or 0.0
    numbers = (
        f"{100 * difference.value:+.1f} points, 95 % interval "
        f"{100 * low:+.1f} to {100 * high:+.1f}"
    )
    if low <= 0 <= high:
        return f"a tie with the next, {name} ({numbers})"
    if low > 0:
        return f"ahead of the next, {name} ({numbers})"
    return f"on test behind the next, {name} ({numbers})"


def _promotion(record: RunRecord) -> str:
    made = record.registered
    if made.champion:
        return f"version {made.version} is the champion: {made.reason}"
    return f"version {made.version} is registered, not promoted: {made.reason}"


def _following(record: RunRecord, tested: PredictedTest, noun: str) -> list[str]:
    """What to do next, the most urgent first: one or two sentences."""
    found: list[str] = []
    split = record.split_report
    if split and (leaks := split_findings.open_leaks(split)):
        found.append(f"close the leak first ({leaks[0]}); until then test flatters")
    if split and split.shortcut and split.shortcut.strong(record.best.test):
        found.append(
            "save all images in one way: much of the accuracy is there without a look "
            "at them (see Splits), and new ones may differ"
        )
    if record.gain and (record.gain.low or 0.0) <= 0:
        found.append(
            "try another network: this one is no better on test than the same one "
            f"untrained, as far as these {noun}s can tell"
        )
    score = record.best.test
    if (score.high or 1.0) - (score.low or 0.0) > _WIDE:
        found.append(
            f"label more test {noun}s: with {record.best.test_images:,} the accuracy "
            f"is known to {50 * ((score.high or 1.0) - (score.low or 0.0)):.0f} points "
            "either way"
        )
    found += _about_errors(tested)
    return found[:2]


def _about_errors(tested: PredictedTest) -> list[str]:
    errors = len(tested.errors)
    if not errors:
        return [
            "find harder test inputs: on these there is no error left to learn from"
        ]
    worst = confusion.worst_pairs(tested)[0]
    if errors >= 5 and worst.images >= _MANY * errors:
        taken = f"{worst.label} taken for {worst.predicted}"
        return [f"look at {taken}: {worst.images:,} of {errors:,} errors"]
    return [f"look at the most confident of the {errors:,} errors below"]

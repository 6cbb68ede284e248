"""What fine-tuning may bring, before it is paid for, and what it brought.

The expectation is made of what the frozen network does. The result compares the
fine-tuned network with the frozen one on the same images, and with the expectation. The
sentences are those of ``tl plan``, of the console and of the report.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel

from tl_pipeline.data.splits import CHOOSING, FOLDS
from tl_pipeline.evaluation.intervals import paired_difference
from tl_pipeline.evaluation.scored_rows import compared
from tl_pipeline.score import Score
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.tables import METRICS

if TYPE_CHECKING:
    from tl_pipeline.runs.records import Result

# The least and the most of the frozen network's errors on test that fine-tuning took
# away, as a share, on the datasets that were measured, and their fewest images a class:
# docs/decisions/2026-11-29-finetuning.md.
TAKEN_AWAY, MEASURED_DATASETS, MEASURED_IMAGES = (0.12, 0.83), 4, 100
UNKNOWN = (
    "whether fine-tuning pays is told by heads on the frozen network, and none is "
    "scored yet on these images: `tl run` without --finetune does that"
)
Registered = Literal["fine-tuned", "frozen", ""]
Verdict = Literal["usually pays", "may pay", "hardly pays"]


class Expectation(BaseModel):
    """What fine-tuning may bring, from the best head on the frozen network.

    ``frozen`` is its accuracy, and ``by`` tells on which images. ``images`` of
    ``classes`` are there to learn from, ``validation`` are those that will decide.
    """

    encoder: str
    frozen: float
    by: str
    images: int
    classes: int
    validation: int

    @property
    def room(self) -> float:
        """The share of errors: more there is not to gain."""
        return 1 - self.frozen

    @property
    def gain(self) -> tuple[float, float]:
        """The least and the most of a gain that was measured with as many errors."""
        least, most = (share * self.room for share in TAKEN_AWAY)
        return least, most

    @property
    def verdict(self) -> Verdict:
        """It pays where validation will tell even the least of a gain from a tie.

        It hardly does where not even the most of it could be told. Classes with fewer
        images than were measured leave it open.
        """
        least, most = self.gain
        if not _shown(most, self.validation):
            return "hardly pays"
        enough = self.images >= MEASURED_IMAGES * self.classes
        if enough and _shown(least, self.validation):
            return "usually pays"
        return "may pay"

    @property
    def sentence(self) -> str:
        """The verdict with its reason."""
        return (
            f"{self.encoder}: {self.images:,} images of {self.classes:,} classes to "
            f"learn from; the frozen network is right in {100 * self.frozen:.1f} % "
            f"{self.by}, which leaves room of {100 * self.room:.1f} points; "
            f"fine-tuning {self.verdict}: on {MEASURED_DATASETS} datasets it took away "
            f"{_range(TAKEN_AWAY)} % of the errors, here {_range(self.gain, 1)} "
            f"points; {self._limit}"
        )

    @property
    def _limit(self) -> str:
        least, _ = self.gain
        judged = f"{self.validation:,} validation images"
        if self.verdict == "hardly pays":
            return f"{judged} cannot tell that from a tie"
        if not _shown(least, self.validation):
            return f"{judged} can tell the most of it from a tie, not the least"
        if self.verdict == "may pay":
            return (
                f"fewer than {MEASURED_IMAGES} images a class were not measured, and "
                f"here are {self.images / self.classes:.0f}"
            )
        return f"{judged} can tell even the least of it from a tie"


class FinetuningResult(BaseModel):
    """The best head on a fine-tuned network beside the best on the frozen one.

    Both are keys of evaluations; accuracies are on the same ``test_images``, ``test``
    and ``validation`` the differences, fine-tuned minus frozen, with the interval of
    the pairs. ``finetuned`` is the artifact of the network that judges: the curve of
    that has validation. ``registered`` tells which of the two is the model, "" where
    neither is.
    """

    encoder: str
    how: str
    finetuned: str
    tuned: str
    frozen: str
    tuned_accuracy: float
    frozen_accuracy: float
    test_images: int
    test: Score
    validation: Score
    registered: Registered
    expected: Expectation | None = None

    @property
    def sentence(self) -> str:
        """How they compare on test, what was expected, and which is the model."""
        said = (
            f"fine-tuning {self.encoder} ({self.how}): right in "
            f"{100 * self.tuned_accuracy:.1f} % against "
            f"{100 * self.frozen_accuracy:.1f} % of the frozen network on the same "
            f"{self.test_images:,} test images, {points(self.test)}{_tie(self.test)}"
        )
        return "; ".join(filter(None, [said, self._truth, self._choice]))

    @property
    def _truth(self) -> str:
        """The expectation beside what came."""
        if self.expected is None:
            return ""
        verdict, paid = self.expected.verdict, (self.test.low or 0.0) > 0
        came = "it did" if paid else "it did not"
        surprise = paid == (verdict == "hardly pays") and verdict != "may pay"
        return (
            f"expected was that it {verdict} ({_range(self.expected.gain, 1)} points), "
            f"{'but' if surprise else 'and'} {came}"
        )

    @property
    def _choice(self) -> str:
        on = f"on validation {points(self.validation)}"
        if self.registered == "fine-tuned":
            return f"registered is the fine-tuned network: {on}{_tie(self.validation)}"
        if self.registered == "frozen":
            tied = _tie(self.validation)
            why = f"{tied}, and it is the cheaper" if tied else ""
            return f"registered is the frozen network: {on}{why}"
        return "registered is neither"


class FinetunedPair(NamedTuple):
    """One fine-tuning of a run: keys of its encoders, before and after, and how.

    ``finetuned`` is the key of the artifact of the network that judges.
    """

    label: str
    how: str
    frozen: str
    tuned: str
    finetuned: str
    expected: Expectation | None


def expected(
    store: Store,
    encoder: str,
    evaluations: Sequence[Artifact],
    images: int,
    classes: int,
    validation: int,
) -> Expectation | None:
    """What to expect by the best of ``evaluations``, heads on the frozen ``encoder``.

    Those that are not there yet and controls do not count; None where none is left.
    """
    found = []
    for one in evaluations:
        if store.find(one.kind, one.key) is None:
            continue
        if store.provenance(one)["params"]["control"]:
            continue
        found += [
            (row["value"], row["split"])
            for row in tables.read(METRICS, store.path(one)).to_pylist()
            if row["metric"] == "accuracy" and row["split"] in CHOOSING
        ]
    if not found:
        return None
    accuracy, split = max(found)
    by = "by folds" if split == FOLDS else "on validation"
    return Expectation(
        encoder=encoder,
        frozen=accuracy,
        by=by,
        images=images,
        classes=classes,
        validation=validation,
    )


def results(
    store: Store, pairs: Sequence[FinetunedPair], found: "Sequence[Result]", seed: int
) -> list[FinetuningResult]:
    """Each of ``pairs`` beside its frozen network; ``found`` has the best first."""
    made = []
    for pair in pairs:
        tuned, frozen = (_best(found, key) for key in (pair.tuned, pair.frozen))
        if not (tuned and frozen):
            continue
        scored = [
            Artifact("evaluations", one.evaluation, one.evaluation)
            for one in (tuned, frozen)
        ]
        test = compared(store, *scored, on_test=True)
        held = compared(store, *scored, on_test=False)
        registered: Registered = "frozen" if frozen.role == "best" else ""
        registered = "fine-tuned" if tuned.role == "best" else registered
        made.append(
            FinetuningResult(
                encoder=pair.label,
                how=pair.how,
                finetuned=pair.finetuned,
                tuned=tuned.evaluation,
                frozen=frozen.evaluation,
                tuned_accuracy=float(test.right[0].mean()),
                frozen_accuracy=float(test.right[1].mean()),
                test_images=len(test.first),
                test=paired_difference(*test.right, test.units, seed),
                validation=paired_difference(*held.right, held.units, seed=0),
                registered=registered,
                expected=pair.expected,
            )
        )
    return made


def points(difference: Score) -> str:
    """``+23.9 points [+21.9, +25.9]``."""
    low, high = 100 * (difference.low or 0.0), 100 * (difference.high or 0.0)
    return f"{100 * difference.value:+.1f} points [{low:+.1f}, {high:+.1f}]"


def _best(found: "Sequence[Result]", encoder: str) -> "Result | None":
    """The registered head on ``encoder``, else the best one; None of no candidate."""
    heads = (r for r in found if r.encoder_key == encoder and r.role != "control")
    return next(heads, None)


def _shown(gain: float, images: int) -> bool:
    """Whether ``gain`` on so many ``images`` is no tie, if no image is lost for it."""
    if not images:
        return False
    one_by_one = np.arange(images)
    before = one_by_one >= round(gain * images)
    difference = paired_difference(np.ones(images, bool), before, one_by_one, seed=0)
    return (difference.low or 0.0) > 0


def _tie(difference: Score) -> str:
    low, high = difference.low or 0.0, difference.high or 0.0
    return ", a tie" if low <= 0 <= high else ""


def _range(shares: tuple[float, float], places: int = 0) -> str:
    low, high = (f"{100 * share:.{places}f}" for share in shares)
    return f"{low} to {high}"

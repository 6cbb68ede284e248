"""Which candidate of a run is the best, and which held-out images say so.

Validation scores every candidate. Where configurations were chosen by cross-validation,
heads also have scores on the training images, each image scored by a head that did not
learn from it: several times as many images to compare by. No arithmetic of heads, no
file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class HeldOutScore:
    """How a head did on rows that it did not learn from; both scores are means."""

    rows: int
    accuracy: float
    log_loss: float

    @property
    def right(self) -> int:
        """The number of rows it was right about."""
        return round(self.accuracy * self.rows)

    @property
    def merit(self) -> tuple[float, float]:
        """The larger the better: by accuracy, then by log loss."""
        return self.accuracy, -self.log_loss

    @property
    def summary(self) -> str:
        """``45 of 49``."""
        return f"{self.right:,} of {self.rows:,}"

    def __add__(self, other: "HeldOutScore") -> "HeldOutScore":
        rows = self.rows + other.rows
        loss = self.log_loss * self.rows + other.log_loss * other.rows
        return HeldOutScore(rows, (self.right + other.right) / rows, loss / rows)


@dataclass(frozen=True)
class Candidate:
    """What may be chosen, and how it did.

    ``folds`` is None where only validation has scored it. ``rows`` stands for the
    images that scored it in folds and on validation: it is equal if they are.
    """

    name: str
    validation: HeldOutScore
    folds: HeldOutScore | None = None
    rows: str = ""

    @property
    def held_out(self) -> HeldOutScore:
        """On all images that scored it."""
        return self.folds + self.validation if self.folds else self.validation


class Choice(NamedTuple):
    """The number of the best candidate, and by what it was chosen, in words."""

    at: int
    reason: str


def best(candidates: Sequence[Candidate]) -> Choice:
    """The best of ``candidates``: by accuracy, then by log loss, then the first.

    Where all that folds have scored were scored on the same images, these are compared
    by folds and validation together. One that only validation has scored takes the
    place of the best of them only if it is right more often there. Otherwise validation
    alone decides.
    """
    numbers = range(len(candidates))
    validation = [one.validation.merit for one in candidates]
    crossed = [at for at in numbers if candidates[at].folds]
    if len({candidates[at].rows for at in crossed}) != 1:
        found = max(numbers, key=validation.__getitem__)
        reason = _by_validation(candidates[found])
        if crossed:
            reason += "; folds have no say, as not all were scored on the same images"
        return Choice(found, reason)
    single = max(crossed, key=lambda at: candidates[at].held_out.merit)
    rival = max(numbers, key=lambda at: (at not in crossed, validation[at]))
    mine, other = candidates[single], candidates[rival]
    if other.folds or other.validation.accuracy <= mine.validation.accuracy:
        return Choice(single, _by_folds(mine))
    reason = (
        f"{_by_validation(other)}, as folds have not scored it; {mine.name}, the best "
        f"by folds of train and validation, is right in {mine.validation.summary}"
    )
    return Choice(rival, reason)


def _by_validation(one: Candidate) -> str:
    return f"by validation alone, right in {one.validation.summary} images"


def _by_folds(one: Candidate) -> str:
    parts = f" ({one.folds.summary} and {one.validation.summary})" if one.folds else ""
    right = one.held_out.summary
    return f"by folds of train and validation, right in {right} images{parts}"

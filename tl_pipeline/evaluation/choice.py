"""Which candidate of a run is the best: no arithmetic of heads, no file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tl_pipeline.data.splits import FOLDS


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


@dataclass(frozen=True)
class Candidate:
    """What may be chosen, and how it did on images that it did not learn from."""

    name: str
    held_out: HeldOutScore


class Choice(NamedTuple):
    """The number of the best candidate, and by what it was chosen, in words."""

    at: int
    reason: str


def best(candidates: Sequence[Candidate], split: str) -> Choice:
    """The best of ``candidates``: by accuracy, then by log loss, then the first.

    ``split`` is what the images are called that scored them.
    """
    merit = [one.held_out.merit for one in candidates]
    found = max(range(len(candidates)), key=merit.__getitem__)
    return Choice(found, reason(candidates[found].held_out, split))


def reason(score: HeldOutScore, split: str) -> str:
    """By what a candidate of that ``score`` was chosen, in words."""
    by = "folds of train and validation" if split == FOLDS else split
    return f"by {by}, right in {score.summary} images"

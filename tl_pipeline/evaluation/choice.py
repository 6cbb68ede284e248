"""Which candidate of a run is the best: no arithmetic of heads, no file.

What held-out images rank highest leads. Of all that cannot be told apart from it and
are within one standard error of it the cheapest is chosen, unless the run asks for the
highest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import BaseModel

from tl_pipeline.data.splits import FOLDS
from tl_pipeline.evaluation.costs import COST
from tl_pipeline.score import Score

# A difference that chance alone brings more often than this is a tie.
ALPHA = 0.05
# Costs that differ by less are equal: seconds are measured, and never twice the same.
EQUAL = 2.0


@dataclass(frozen=True)
class HeldOutScore:
    """How a head did on rows that it did not learn from.

    ``score`` is that of the metric by which it is chosen, the larger the better (a cost
    below 0); ``log_loss`` decides between equal ones.
    """

    rows: int
    accuracy: float
    log_loss: float
    score: float

    @property
    def right(self) -> int:
        """The number of rows it was right about."""
        return round(self.accuracy * self.rows)

    @property
    def merit(self) -> tuple[float, float]:
        """The larger the better: by score, then by log loss."""
        return self.score, -self.log_loss

    @property
    def summary(self) -> str:
        """``45 of 49``."""
        return f"{self.right:,} of {self.rows:,}"


class Cost(NamedTuple):
    """What an image costs: its encoders' milliseconds here, and bytes in the store.

    Both are None where nothing was measured. A ``finetuned`` network needs embeddings
    of its own, which no other dataset shares.
    """

    milliseconds: float | None
    bytes: int | None
    finetuned: bool = False

    @property
    def summary(self) -> str:
        """``1.2 ms``."""
        return "" if self.milliseconds is None else f"{self.milliseconds:.2g} ms"


UNKNOWN = Cost(None, None)


@dataclass(frozen=True)
class Candidate:
    """What may be chosen, and how it did on images that it did not learn from.

    ``kept`` where it is what the run before chose.
    """

    name: str
    held_out: HeldOutScore
    cost: Cost = UNKNOWN
    kept: bool = False


class Comparison(BaseModel):
    """One candidate and the one that held-out images rank highest, ``against``.

    ``difference`` is the candidate's score by ``metric`` minus the other's (of cost the
    other's minus the candidate's) on the ``images`` that both scored; on ``won`` of
    them the candidate alone is right, on ``lost`` the other alone. ``p`` is how often
    chance alone brings such a difference, ``p_holm`` the same among all comparisons of
    the run.
    """

    evaluation: str
    against: str
    metric: str
    difference: Score
    images: int
    won: int
    lost: int
    p: float
    p_holm: float

    @property
    def tied(self) -> bool:
        """Whether the two cannot be told apart."""
        return self.p_holm >= ALPHA

    @property
    def verdict(self) -> str:
        """``tie``, or ``worse``."""
        return "tie" if self.tied else "worse"

    @property
    def summary(self) -> str:
        """``-0.3 [-1.0, +0.4]``: in points, of cost what an image saves."""
        factor, form = (1, "+.3f") if self.metric == COST else (100, "+.1f")
        found = self.difference
        value, low, high = (
            format(factor * (part or 0.0), form)
            for part in (found.value, found.low, found.high)
        )
        return f"{value} [{low}, {high}]"


class Choice(NamedTuple):
    """The number of the best candidate, and by what it was chosen, in words."""

    at: int
    reason: str


def leading(candidates: Sequence[Candidate]) -> int:
    """The number of the one with the highest merit, the first of equal ones."""
    merit = [one.held_out.merit for one in candidates]
    return max(range(len(candidates)), key=merit.__getitem__)


def chosen(
    candidates: Sequence[Candidate],
    comparisons: Sequence[Comparison | None],
    how: Literal["cheaper", "best"],
    metric: str,
    split: str,
) -> Choice:
    """The best of ``candidates``, or with ``cheaper`` the cheapest close to it.

    Of equal cost what the run before chose stays, else the best of them is taken.

    Args:
        candidates: at least one.
        comparisons: of each with the leading one, which has None.
        how: see above.
        metric: by which they are compared.
        split: what the images are called that scored them.
    """
    best = leading(candidates)
    first = _reason(candidates[best].held_out, split, metric)
    if how == "best":
        return Choice(best, first)
    tied = [
        at
        for at, one in enumerate(comparisons)
        if one is None or (one.tied and one.difference.close)
    ]
    cheap = _cheapest(candidates, tied)
    at = max(
        cheap, key=lambda one: (candidates[one].kept, candidates[one].held_out.merit)
    )
    if at == best:
        return Choice(best, first)
    one, comparison = candidates[at], comparisons[at]
    assert comparison is not None  # noqa: S101 - the leading one alone has none
    why = _why(one, candidates[best], kept=best in cheap)
    return Choice(
        at,
        f"{first}; {one.name} is right in {one.held_out.right:,}, which is a tie, "
        f"{comparison.summary}, and {why}",
    )


def _cheapest(candidates: Sequence[Candidate], tied: Sequence[int]) -> list[int]:
    """Those of ``tied`` that cost least, by what is known of all of them."""
    left = list(tied)
    costs = [one.cost for one in candidates]
    if any(not costs[at].finetuned for at in left):
        left = [at for at in left if not costs[at].finetuned]
    for unit in ("milliseconds", "bytes"):
        known = {at: getattr(costs[at], unit) for at in left}
        if None not in known.values():
            least = min(known.values())
            return [at for at in left if known[at] <= EQUAL * least]
    return left


def _why(one: Candidate, best: Candidate, *, kept: bool) -> str:
    """Why ``one`` is chosen though it is tied with ``best``."""
    if kept:
        return "the run before chose it"
    if best.cost.finetuned and not one.cost.finetuned:
        return "the frozen network is cheaper"
    if one.cost.summary and best.cost.summary:
        return f"it is cheaper: {one.cost.summary} an image, not {best.cost.summary}"
    return "it is cheaper"


def _reason(score: HeldOutScore, split: str, metric: str) -> str:
    """By what a candidate of that ``score`` was chosen, in words."""
    by = "folds of train and validation" if split == FOLDS else split
    if metric != "accuracy":
        value = -score.score if metric == COST else score.score
        by = f"{metric.replace('_', ' ')} on {by} ({value:.4f})"
    return f"by {by}, right in {score.summary} images"

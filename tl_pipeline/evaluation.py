"""Choose among fitted heads on validation rows; score the chosen one on test rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tl_pipeline.embeddings import Embeddings
from tl_pipeline.heads.fitted import FittedHead
from tl_pipeline.metrics import Score, scores


@dataclass(frozen=True)
class HeldOut:
    """The rows of one split.

    ``labels`` are names of shape (n,), in the order of the embeddings.
    """

    split: str
    embeddings: Embeddings
    labels: np.ndarray


@dataclass(frozen=True)
class Scored:
    """One head on one split; ``probabilities`` is of shape (n, n_classes)."""

    head: FittedHead
    rows: HeldOut
    probabilities: np.ndarray
    scores: list[Score]

    def value(self, metric: str) -> float:
        """The value of one of the scores."""
        return next(s.value for s in self.scores if s.metric == metric)


@dataclass(frozen=True)
class Evaluation:
    """All heads on validation, and the chosen one on validation and on test."""

    validation: list[Scored]
    chosen: Scored
    test: Scored


def evaluate(
    heads: Sequence[FittedHead], validation: HeldOut, test: HeldOut, seed: int
) -> Evaluation:
    """Choose by validation accuracy, then by log loss, then the first in the grid.

    ``test`` is looked at with the chosen head alone, so that its score is not the best
    of many tries.
    """
    tried = [_scored(head, validation, seed) for head in heads]
    chosen = max(tried, key=lambda s: (s.value("accuracy"), -s.value("log_loss")))
    return Evaluation(tried, chosen, _scored(chosen.head, test, seed))


def _scored(head: FittedHead, rows: HeldOut, seed: int) -> Scored:
    probabilities = head.predict_proba(rows.embeddings)
    found = scores(rows.labels, head.classes, probabilities, seed)
    return Scored(head, rows, probabilities, found)

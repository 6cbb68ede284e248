"""Score fitted heads on held-out rows, and choose among them."""

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


def choose(tried: Sequence[Scored]) -> Scored:
    """The best on validation: by accuracy, then by log loss, then the first."""
    return max(tried, key=lambda s: (s.value("accuracy"), -s.value("log_loss")))


def score(head: FittedHead, rows: HeldOut, seed: int) -> Scored:
    """``head`` on ``rows``; ``seed`` is that of the bootstrap."""
    probabilities = head.predict_proba(rows.embeddings)
    found = scores(rows.labels, head.classes, probabilities, seed)
    return Scored(head, rows, probabilities, found)

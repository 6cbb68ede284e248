"""Whether classes stay what they are when images are mirrored left to right.

Traffic signs, letters and digits do not. Where nobody says so it is measured, with the
frozen network, on training images alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tl_pipeline.heads.folds import stratified_group_folds
from tl_pipeline.heads.linear.logistic import LogisticHead

# Images that are mirrored, and so many that a head learns from before.
_TESTED, _LEARNED = 1000, 3000
# Accuracy that mirrored images may lose and still be training images.
TOLERATED = 0.03
_C = 0.01


@dataclass(frozen=True)
class Mirrored:
    """Accuracies of a linear head on images as they are, and on mirrored ones."""

    plain: float
    mirrored: float

    @property
    def harmless(self) -> bool:
        """Whether mirrored images may be learned from."""
        return self.mirrored >= self.plain - TOLERATED


def measure(
    vectors: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray | None,
    embed_mirrored: Callable[[np.ndarray], np.ndarray],
    seed: int,
) -> Mirrored | None:
    """Learn from half of the rows, and ask about the other half in both ways.

    None where there are too few rows to tell.

    Args:
        vectors: embeddings of the frozen network, (n, width).
        targets: class numbers (n,).
        groups: what each row belongs to, (n,): no group is in both halves.
        embed_mirrored: row numbers (m,) to the embeddings (m, width) of their images,
            mirrored.
        seed: of the halves.
    """
    part = stratified_group_folds(targets, 2, seed, groups)
    chance = np.random.default_rng(seed)
    learned = chance.permutation(np.flatnonzero(part != 0))[:_LEARNED]
    tested = np.sort(chance.permutation(np.flatnonzero(part == 0))[:_TESTED])
    if len(np.unique(targets[learned])) < 2 or not len(tested):
        return None
    head = LogisticHead(C=_C).fit(vectors[learned], targets[learned])
    truth = targets[tested]
    plain, turned = (
        float((head.predict(rows) == truth).mean())
        for rows in (vectors[tested], embed_mirrored(tested))
    )
    return Mirrored(plain, turned)

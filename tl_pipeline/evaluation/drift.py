"""Whether a batch of images is like those by which a model was scored.

Each statistic compares a batch with a reference, and its p-value is by permutation:
how often the images of both, dealt anew into two parts, differ as much. So it holds for
any number of images, if those of a batch are independent. Frames of one film are not,
and alarm more often.

- ``embeddings``: the squared maximum mean discrepancy of standardised embeddings
  (Gretton et al. 2012, JMLR 13), with a Gaussian kernel as wide as the median distance.
- ``novelty``: the share of images whose nearest training image is less like them than
  is that of 95 % of the reference.
- ``classes``: the total variation distance between the mixes of predicted labels.
- ``not_accepted``: the share of predictions that are not accepted.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

FEWEST = 20  # images on either side that are compared
MOST = 1_000
NOVEL = 0.05  # of reference images are called novel
_PERMUTATIONS = 1_999  # and so many that the limit can be reached
# Of each of some ways to deal (n, ways), 1 for what is dealt to the batch: a number.
_Measure = Callable[[np.ndarray], np.ndarray]


class Sample(NamedTuple):
    """n images: ``vectors`` float32 (n, width), what is predicted, what is nearest.

    ``similarities`` (n,) are those to the nearest training images, None where these are
    not known, ``labels`` (n,) the predicted ones, ``accepted`` bool (n,) or None.
    """

    vectors: np.ndarray
    similarities: np.ndarray | None
    labels: np.ndarray
    accepted: np.ndarray | None


class Drift(BaseModel):
    """One statistic of a batch: its ``value``, and what it is where nothing drifted.

    ``p`` is how often chance alone brings such a value; below ``limit`` it is
    ``tripped``.
    """

    model_config = ConfigDict(frozen=True)

    statistic: str
    value: float
    reference: float
    p: float
    limit: float
    tripped: bool


def novelty(similarities: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """How many images of the reference are as far from all training images: (n,).

    As a share, counting the image itself: a conformal p-value (Vovk et al. 2005), below
    a in a share a of images that are like the reference.
    """
    ranks = np.searchsorted(np.sort(reference), similarities, side="right")
    return (1 + ranks) / (1 + len(reference))


def compare(batch: Sample, reference: Sample, error: float, seed: int) -> list[Drift]:
    """The statistics of ``batch``; a batch that is like the reference trips seldom.

    Some statistic does in a share of ``error`` of such batches at most: each is held
    to the part of it that is its own (Bonferroni).
    """
    size = len(batch.labels)
    rng, ours = np.random.default_rng(seed), np.arange(size + len(reference.labels))
    measures = _measures(batch, reference)
    number = max(_PERMUTATIONS, int(2 * len(measures) / error))
    ways = [ours < size, *(rng.permutation(ours) < size for _ in range(number))]
    dealt = np.stack(ways, axis=1).astype(np.float32)
    found = []
    for name, (measure, shares) in measures.items():
        several = measure(dealt)
        value, usual = shares or (several[0], several[1:].mean())
        slack = 1e-6 * abs(several[0])  # equal but for rounding is as much
        p = float((several >= several[0] - slack).mean())
        limit = error / len(measures)
        found.append(
            Drift(
                statistic=name,
                value=float(value),
                reference=float(usual),
                p=p,
                limit=limit,
                tripped=p < limit,
            )
        )
    return found


def _measures(
    batch: Sample, reference: Sample
) -> dict[str, tuple[_Measure, tuple[float, float] | None]]:
    """Each statistic: what is permuted; and the two shares that people read."""
    size, other = len(batch.labels), len(reference.labels)
    kernel = _kernel(np.concatenate([batch.vectors, reference.vectors]))
    labels = np.concatenate([batch.labels, reference.labels])
    classes = np.unique(labels, return_inverse=True)[1]
    one_hot = np.eye(classes.max() + 1, dtype=np.float32)[classes]

    def weights(dealt: np.ndarray) -> np.ndarray:
        return dealt / size - (1 - dealt) / other

    def discrepancy(dealt: np.ndarray) -> np.ndarray:
        of = weights(dealt)
        return np.einsum("ij,ij->j", of, kernel @ of)

    def mixes(dealt: np.ndarray) -> np.ndarray:
        return np.abs(one_hot.T @ weights(dealt)).sum(axis=0) / 2

    found: dict[str, tuple[_Measure, tuple[float, float] | None]] = {
        "embeddings": (discrepancy, None),
        "classes": (mixes, None),
    }
    if batch.similarities is not None and reference.similarities is not None:
        ours, theirs = batch.similarities, reference.similarities
        ranks = np.unique(np.concatenate([ours, theirs]), return_inverse=True)[1]
        far = -ranks / len(ranks)

        def rank_sum(dealt: np.ndarray) -> np.ndarray:
            return far @ weights(dealt)

        share = float((novelty(ours, theirs) <= NOVEL).mean())
        found["novelty"] = rank_sum, (share, NOVEL)
    if batch.accepted is not None and reference.accepted is not None:
        refused = ~np.concatenate([batch.accepted, reference.accepted])

        def more_refused(dealt: np.ndarray) -> np.ndarray:
            return refused @ weights(dealt)

        value, usual = refused[:size].mean(), refused[size:].mean()
        found["not_accepted"] = more_refused, (float(value), float(usual))
    return found


def _kernel(vectors: np.ndarray) -> np.ndarray:
    """Gaussian similarities of n standardised vectors, 0 to themselves: (n, n)."""
    deviations = vectors.std(axis=0)
    x = (vectors - vectors.mean(axis=0)) / np.where(deviations > 0, deviations, 1)
    halves = np.einsum("ij,ij->i", x, x) / 2
    distances = (halves[:, None] + halves - x @ x.T).clip(min=0)
    usual = np.median(distances[np.triu_indices(len(x), 1)])
    kernel = np.exp(-distances / (2 * max(usual, np.finfo(np.float32).tiny)))
    np.fill_diagonal(kernel, 0)
    return kernel.astype(np.float32)

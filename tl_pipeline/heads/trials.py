"""A trial: how a configuration does on images that it did not learn from.

Imports scikit-learn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tl_pipeline.config.specs import HeadConfig
from tl_pipeline.heads import grids
from tl_pipeline.heads.folds import dealt
from tl_pipeline.heads.grids import Rows


@dataclass(frozen=True)
class Score:
    """Of one fold (0 where one set of rows is held out): rows, and how they scored."""

    fold: int
    rows: int
    accuracy: float
    log_loss: float


def cross_validated(
    configs: Sequence[HeadConfig], seed: int, rows: Rows, folds: int
) -> Iterator[tuple[int, list[Score]]]:
    """The number of each of ``configs`` with its scores on all folds, as it is done.

    Each fold is scored by a head that learned from the others. Rows are dealt to folds
    by ``heads.folds.dealt``, so whole groups where there are some. Every row counts
    once in the scores, whatever its weight in learning.

    Raises:
        ValueError: no row can be left out, because no class has two rows or groups.
        InvalidSpec: there are weights, and a head cannot take them.
    """
    targets = np.unique(rows.labels, return_inverse=True)[1]
    part = dealt(targets, folds, seed, rows.groups)
    number = len(set(part[part >= 0].tolist()))
    if not number:
        raise ValueError("no class has two images, or groups of images, to divide")
    found: list[list[Score]] = [[] for _ in configs]
    for fit in grids.fit(configs, seed, rows, part):
        held = rows.take(part == fit.fold)
        found[fit.at].append(_score(fit.fold or 0, fit.estimator, held))
        if len(found[fit.at]) == number:
            yield fit.at, sorted(found[fit.at], key=lambda score: score.fold)


def held_out(
    configs: Sequence[HeadConfig], seed: int, rows: Rows, held: Rows
) -> Iterator[tuple[int, list[Score]]]:
    """The same for ``held`` as the one fold, learned from ``rows``."""
    for fit in grids.fit(configs, seed, rows):
        yield fit.at, [_score(0, fit.estimator, held)]


def _score(fold: int, estimator: Any, held: Rows) -> Score:
    probabilities = estimator.predict_proba(held.x).astype(np.float32)
    classes = np.asarray(estimator.classes_)
    hits = classes[probabilities.argmax(axis=1)] == held.labels
    place = np.searchsorted(classes, held.labels).clip(max=len(classes) - 1)
    given = probabilities[np.arange(len(place)), place]
    # a label that was not learned gets nothing; as metrics.scores clips it
    given = np.where(classes[place] == held.labels, given, 0.0)
    losses = -np.log(np.clip(given, np.finfo(np.float32).eps, 1.0))
    return Score(fold, len(held.labels), float(hits.mean()), float(losses.mean()))

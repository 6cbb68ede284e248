"""How configurations do on images that they did not learn from.

Imports scikit-learn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tl_pipeline.config.specs import HeadConfig
from tl_pipeline.heads import grids
from tl_pipeline.heads.grids import LabelledRows


@dataclass(frozen=True)
class FoldScore:
    """Of one fold (0 where one set of rows is held out): how its rows were scored.

    ``right`` is bool (m,), in the order of the rows; ``log_loss`` their mean.
    """

    fold: int
    right: np.ndarray
    log_loss: float

    @property
    def accuracy(self) -> float:
        """The share that is right."""
        return float(self.right.mean())


@dataclass(frozen=True)
class FoldPredictions:
    """What a head that did not learn from the rows of ``fold`` says of them.

    ``rows`` (m,) are their numbers, ``labels`` (m,) the true ones, ``probabilities``
    float32 (m, K), their columns in the order of ``classes``.
    """

    fold: int
    rows: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray

    def score(self) -> FoldScore:
        """Accuracy and log loss, by row; every row counts once."""
        classes, found = self.classes, self.probabilities
        right = classes[found.argmax(axis=1)] == self.labels
        place = np.searchsorted(classes, self.labels).clip(max=len(classes) - 1)
        own = found[np.arange(len(place)), place]
        # a label that was not learned gets nothing; as metrics.scores clips it
        own = np.where(classes[place] == self.labels, own, 0.0)
        losses = -np.log(np.clip(own, np.finfo(np.float32).eps, 1.0))
        return FoldScore(self.fold, right, float(losses.mean()))


def out_of_fold(
    configs: Sequence[HeadConfig], seed: int, rows: LabelledRows, part: np.ndarray
) -> Iterator[tuple[int, FoldPredictions]]:
    """The number of each of ``configs`` with what it says of each fold, as it is done.

    ``part`` (n,) is the fold of each of ``rows``, -1 for those that every fit learns
    from: see ``folds.divided``.

    Raises:
        InvalidSpec: there are weights, and a head cannot take them.
    """
    for fit in grids.fit(configs, seed, rows, part):
        numbers = np.flatnonzero(part == fit.fold)
        yield fit.at, _predicted(fit, numbers, rows.take(numbers))


def cross_validated(
    configs: Sequence[HeadConfig], seed: int, rows: LabelledRows, part: np.ndarray
) -> Iterator[tuple[int, list[FoldPredictions]]]:
    """The number of each of ``configs`` with all its folds, as it is done.

    ``part`` as for ``out_of_fold``.

    Raises:
        ValueError: no row can be left out, because no class has two rows or groups.
        InvalidSpec: there are weights, and a head cannot take them.
    """
    number = len(np.unique(part[part >= 0]))
    if not number:
        raise ValueError("no class has two images, or groups of images, to divide")
    found: list[list[FoldPredictions]] = [[] for _ in configs]
    for at, predictions in out_of_fold(configs, seed, rows, part):
        found[at].append(predictions)
        if len(found[at]) == number:
            yield at, sorted(found[at], key=lambda one: one.fold)
            found[at] = []  # of many images it is large


def held_out(
    configs: Sequence[HeadConfig], seed: int, rows: LabelledRows, held: LabelledRows
) -> Iterator[tuple[int, list[FoldPredictions]]]:
    """The same for ``held`` as the one fold, learned from ``rows``."""
    for fit in grids.fit(configs, seed, rows):
        yield fit.at, [_predicted(fit, np.arange(len(held.labels)), held)]


def _predicted(
    fit: grids.Fit, numbers: np.ndarray, held: LabelledRows
) -> FoldPredictions:
    found = fit.estimator.predict_proba(held.x).astype(np.float32)
    classes = np.asarray(fit.estimator.classes_)
    return FoldPredictions(fit.fold or 0, numbers, held.labels, classes, found)

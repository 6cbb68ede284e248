"""How configurations do on images that they did not learn from.

Imports scikit-learn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tl_pipeline.config.specs import HeadConfig
from tl_pipeline.heads import grids
from tl_pipeline.heads.folds import stratified_group_folds
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

    ``labels`` (m,) are the true ones, ``probabilities`` float32 (m, K), their columns
    in the order of ``classes``.
    """

    fold: int
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
    from: see ``stratified_group_folds``.

    Raises:
        InvalidSpec: there are weights, and a head cannot take them.
    """
    for fit in grids.fit(configs, seed, rows, part):
        held = rows.take(part == fit.fold)
        yield fit.at, _predicted(fit, held)


def cross_validated(
    configs: Sequence[HeadConfig], seed: int, rows: LabelledRows, folds: int
) -> Iterator[tuple[int, list[FoldScore]]]:
    """The number of each of ``configs`` with its scores on all folds, as it is done.

    Rows are divided by ``stratified_group_folds``, so whole groups where there are
    some.

    Raises:
        ValueError: no row can be left out, because no class has two rows or groups.
        InvalidSpec: there are weights, and a head cannot take them.
    """
    targets = np.unique(rows.labels, return_inverse=True)[1]
    part = stratified_group_folds(targets, folds, seed, rows.groups)
    number = len(np.unique(part[part >= 0]))
    if not number:
        raise ValueError("no class has two images, or groups of images, to divide")
    found: list[list[FoldScore]] = [[] for _ in configs]
    for at, predictions in out_of_fold(configs, seed, rows, part):
        found[at].append(predictions.score())
        if len(found[at]) == number:
            yield at, sorted(found[at], key=lambda score: score.fold)


def held_out(
    configs: Sequence[HeadConfig], seed: int, rows: LabelledRows, held: LabelledRows
) -> Iterator[tuple[int, list[FoldScore]]]:
    """The same for ``held`` as the one fold, learned from ``rows``."""
    for fit in grids.fit(configs, seed, rows):
        yield fit.at, [_predicted(fit, held).score()]


def _predicted(fit: grids.Fit, held: LabelledRows) -> FoldPredictions:
    found = fit.estimator.predict_proba(held.x).astype(np.float32)
    classes = np.asarray(fit.estimator.classes_)
    return FoldPredictions(fit.fold or 0, held.labels, classes, found)

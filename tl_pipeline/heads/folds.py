"""Which training rows are left out in turn: whole groups, every class in each part."""

import warnings
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from tl_pipeline.heads.search import FEW, MANY


def divided(
    targets: np.ndarray, folds: int | None, seed: int, groups: Any = None
) -> np.ndarray:
    """The part (n,) of each row that is left out in turn; -1: never left out.

    By ``stratified_group_folds``. Without a number of ``folds``: 10 of less than
    ``FEW`` rows, one of five parts alone of ``MANY`` or more, 5 of those between.
    """
    if folds is not None:
        return stratified_group_folds(targets, folds, seed, groups)
    number = 10 if len(targets) < FEW else 5
    part = stratified_group_folds(targets, number, seed, groups)
    return np.where(part == 0, 0, -1) if len(targets) >= MANY else part


def stratified_group_folds(
    targets: np.ndarray, folds: int, seed: int | None, groups: Any = None
) -> np.ndarray:
    """The part (n,) of each row, from 0 up to ``folds``; -1: never left out.

    The rows of each class are divided by chance, and parts differ by one row at most
    (of the rows that are left out at all). With ``groups`` (n,) whole groups are,
    such that every class has about its share of each part (scikit-learn's
    ``StratifiedGroupKFold``), because rows of one group are nearly the same row. A
    class of one row, or of one group, is never left out: nothing would be left to learn
    it from.
    """
    if groups is None:
        return _rows(targets, folds, seed)
    units = np.unique(np.asarray(groups), return_inverse=True)[1]
    if len(np.unique(units)) == len(units):
        return _rows(targets, folds, seed)
    part = np.full(len(targets), -1)
    pairs = np.unique(np.stack([targets, units]), axis=1)[0]
    several = np.flatnonzero(np.bincount(pairs) > 1)
    rows = np.flatnonzero(np.isin(targets, several))
    number = min(folds, len(np.unique(units[rows])))
    if number < 2:
        return part
    cuts = StratifiedGroupKFold(number, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # a class of fewer groups than folds is left out in as many as it has
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for fold, (_, held) in enumerate(cuts.split(rows, targets[rows], units[rows])):
            part[rows[held]] = fold
    for k in np.unique(targets[rows]):
        own = np.flatnonzero(targets == k)
        if len(np.unique(part[own])) < 2:
            part[own] = -1
    return part


def _rows(targets: np.ndarray, folds: int, seed: int | None) -> np.ndarray:
    chance = np.random.default_rng(seed)
    part, first = np.full(len(targets), -1), 0
    for k in np.unique(targets):
        own = chance.permutation(np.flatnonzero(targets == k))
        if len(own) > 1:
            # each class goes on where the last one ended, or the first parts are larger
            part[own] = (first + np.arange(len(own))) % folds
            first = (first + len(own)) % folds
    return part

"""Configurations fitted together: where one computation serves several, and in turns.

Heads that share their work (all C of ``logistic``, all alphas of ``ridge``) are
fitted as one; the others each by itself, as many at a time as there are cores and
memory for.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from tl_pipeline.config.specs import HeadConfig
from tl_pipeline.embedding.process import cores, memory
from tl_pipeline.heads import ridge
from tl_pipeline.heads.fitting import build, fit_arguments
from tl_pipeline.heads.linear import logistic
from tl_pipeline.store.embeddings import Places

# What a fit may take of memory, as a multiple of its rows.
_ROOM = 4


@dataclass(frozen=True)
class LabelledRows:
    """What heads learn from: ``x`` (n, width), labels, weights, groups, each (n,).

    ``places`` are those that rows hold.
    """

    x: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None = None
    groups: np.ndarray | None = None
    places: Places | None = None

    def take(self, chosen: np.ndarray) -> "LabelledRows":
        """Some of the rows, by a mask or by their numbers."""
        return LabelledRows(
            self.x[chosen],
            self.labels[chosen],
            None if self.weights is None else self.weights[chosen],
            None if self.groups is None else self.groups[chosen],
            self.places,
        )


@dataclass(frozen=True)
class Fit:
    """Configuration number ``at``, fitted without the rows of ``fold`` (None: on all).

    ``estimator`` is a fitted classifier.
    """

    at: int
    fold: int | None
    estimator: Any


_Task = Callable[[], list[Fit]]


def fit(
    configs: Sequence[HeadConfig],
    seed: int,
    rows: LabelledRows,
    folds: np.ndarray | None = None,
) -> Iterator[Fit]:
    """Fit every configuration on ``rows``, or without each of the ``folds`` in turn.

    ``folds`` (n,) is the fold of each row, -1 for rows that every fit learns from. In
    no order.

    Raises:
        InvalidSpec: there are weights, and a head cannot take them.
    """
    kinds: dict[Any, list[int]] = {}
    built = [build(config, seed, rows.places) for config in configs]
    for at, (config, model) in enumerate(zip(configs, built, strict=True)):
        fit_arguments(config.name, model, rows.weights, None)  # refuses early
        kinds.setdefault(_shared(config, model) or at, []).append(at)
    left_out = [None] if folds is None else sorted(set(folds[folds >= 0].tolist()))
    single: list[_Task] = []
    for kind, members in kinds.items():
        models = [built[at] for at in members]
        if isinstance(models[0], logistic.LogisticHead) and isinstance(kind, tuple):
            yield from _path(models, members, rows, folds)
        elif isinstance(models[0], ridge.RidgeHead):
            for fold in left_out:
                yield from _ridges(configs, members, seed, rows, folds, fold)
        else:
            for at in members:
                single += [
                    partial(_one, configs[at], at, seed, rows, folds, fold)
                    for fold in left_out
                ]
    yield from _at_once(single, rows)


def _shared(config: HeadConfig, model: Any) -> tuple[Any, ...] | None:
    """Equal for configurations that one computation can fit; None: it stands alone."""
    path = {logistic.LogisticHead: "C", ridge.RidgeHead: "alpha"}.get(type(model))
    if path is None:
        return None
    if path == "C" and model.class_weight != "none":
        return None
    rest = {name: value for name, value in config.params.items() if name != path}
    return (config.name, *sorted(rest.items()))


def _path(
    models: list[Any], members: list[int], rows: LabelledRows, folds: np.ndarray | None
) -> Iterator[Fit]:
    found = logistic.fit_all(models, rows.x, rows.labels, folds, rows.weights)
    for (number, fold), estimator in found.items():
        yield Fit(members[number], fold, estimator)


def _ridges(
    configs: Sequence[HeadConfig],
    members: list[int],
    seed: int,
    rows: LabelledRows,
    folds: np.ndarray | None,
    fold: int | None,
) -> Iterator[Fit]:
    learned = _without(rows, folds, fold)
    models = [build(configs[at], seed) for at in members]
    ridge.fit_all(models, learned.x, learned.labels, learned.weights)
    for at, model in zip(members, models, strict=True):
        yield Fit(at, fold, model)


def _one(
    config: HeadConfig,
    at: int,
    seed: int,
    rows: LabelledRows,
    folds: np.ndarray | None,
    fold: int | None,
) -> list[Fit]:
    learned, model = _without(rows, folds, fold), build(config, seed, rows.places)
    given = fit_arguments(config.name, model, learned.weights, learned.groups)
    return [Fit(at, fold, model.fit(learned.x, learned.labels, **given))]


def _without(
    rows: LabelledRows, folds: np.ndarray | None, fold: int | None
) -> LabelledRows:
    return rows if folds is None or fold is None else rows.take(folds != fold)


def _at_once(tasks: list[_Task], rows: LabelledRows) -> Iterator[Fit]:
    """What ``tasks`` give, as each is done; with several at once each has one core."""
    number = min(cores(), len(tasks), _fitting(rows))
    if number < 2:
        for task in tasks:
            yield from task()
        return
    with threadpool_limits(1), ThreadPoolExecutor(number) as pool:
        waiting = [pool.submit(task) for task in tasks]
        try:
            for done in as_completed(waiting):
                yield from done.result()
        finally:
            for future in waiting:
                future.cancel()


def _fitting(rows: LabelledRows) -> int:
    """How many fits half of this machine's memory has room for."""
    return max(1, int(memory() / 2 / (_ROOM * max(rows.x.nbytes, 1))))

"""Heads built and fitted by their configuration. Imports scikit-learn."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.utils.validation import has_fit_parameter

from tl_pipeline.config.specs import HeadConfig
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.heads.fitted import FittedHead
from tl_pipeline.heads.parameters import PREPARATION
from tl_pipeline.heads.predictors import (
    GaussianBayes,
    Linear,
    Predictor,
    Preparation,
    Prior,
)
from tl_pipeline.heads.preparation import Components, prepared
from tl_pipeline.heads.table import HEADS
from tl_pipeline.store.embeddings import Embeddings, Places


def build(config: HeadConfig, seed: int, places: Places | None = None) -> Any:
    """An unfitted classifier of ``config``, deterministic in ``seed``.

    ``places`` are those of the embeddings that it will be fitted on.

    Raises:
        InvalidSpec: it takes places, and there are none.
    """
    row = HEADS[config.name]
    params: dict[str, Any] = {**row.options, **config.params}
    steps = {name: params.pop(name) for name in PREPARATION if name in params}
    module, _, function = row.factory.partition(":")
    factory = getattr(importlib.import_module(f"tl_pipeline.heads.{module}"), function)
    if row.takes_places:
        params["places"] = places
    head = factory(**params, random_state=seed)
    return prepared(head, **steps) if steps else head


def fit(
    config: HeadConfig,
    seed: int,
    embeddings: Embeddings,
    labels: np.ndarray,
    weights: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> FittedHead:
    """Fit ``config`` on ``embeddings``, whose rows have ``labels`` of shape (n,).

    ``weights`` of shape (n,), above 0, tell how many copies of it each row counts for;
    rows of one of ``groups`` (n,) are nearly the same, for heads that take them.

    Raises:
        InvalidSpec: there are weights, and this head cannot take them; or it takes
            places, and there are none.
    """
    estimator = build(config, seed, embeddings.places)
    extra = fit_arguments(config.name, estimator, weights, groups)
    estimator.fit(embeddings.vectors, labels, **extra)
    return fitted_head(config, seed, embeddings.encoder_key, estimator)


def fit_arguments(
    name: str,
    estimator: Any,
    weights: np.ndarray | None,
    groups: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """What ``fit`` takes beyond rows and labels, for every step that takes it.

    Raises:
        InvalidSpec: there are weights, and the head ``name`` cannot take them.
    """
    if weights is not None and not HEADS[name].takes_weights:
        raise InvalidSpec(
            f"head {name!r} cannot take the weights that this dataset gives its "
            "images; leave it out, or take the weights out of the dataset"
        )
    steps = getattr(estimator, "steps", [("", estimator)])
    named = {"sample_weight": weights, "groups": groups}
    return {
        f"{step}__{argument}".removeprefix("__"): value
        for argument, value in named.items()
        for step, part in steps
        if value is not None and has_fit_parameter(part, argument)
    }


def fitted_head(
    config: HeadConfig, seed: int, encoder_key: str, estimator: Any
) -> FittedHead:
    """The head whose fitted ``estimator`` this is, in numbers."""
    preparation, predictor = in_numbers(estimator)
    classes = [str(name) for name in estimator.classes_]
    model = getattr(estimator, "steps", [("", estimator)])[-1][1]
    convergence = {}
    if hasattr(model, "converged_"):
        convergence = {
            "converged": bool(model.converged_),
            "relative_gap": float(model.gap_),
            "iterations": int(model.n_iter_[0]),
        }
    return FittedHead(
        config, seed, encoder_key, classes, preparation, predictor, convergence
    )


def in_numbers(estimator: Any) -> tuple[Preparation, Predictor]:
    """What a fitted ``estimator``, perhaps a pipeline, does to rows."""
    *steps, model = [step for _, step in getattr(estimator, "steps", [("", estimator)])]
    if hasattr(model, "predictor"):
        return _preparation(steps), model.predictor()
    (convert,) = [made for kind, made in _CONVERTED.items() if isinstance(model, kind)]
    return _preparation(steps), convert(model)


def _preparation(steps: list[Any]) -> Preparation:
    """Of the steps that ``preparation.prepared`` makes, in their order."""
    l2 = False
    mean: Any = None
    scale: Any = None
    axes: Any = None
    for step in steps:
        if isinstance(step, Normalizer):
            l2 = True
        elif isinstance(step, StandardScaler):
            mean, scale = step.mean_, step.scale_
        elif isinstance(step, Components):
            # (x - mean) / scale - centre, in one
            centre = step.mean_ if scale is None else step.mean_ * scale
            mean, axes = (centre if mean is None else mean + centre), step.axes()
    return Preparation(l2, mean, scale, axes)


# scikit-learn's own classifiers. A LogisticRegression comes from a file of version 0.1.
_CONVERTED: Mapping[type, Callable[[Any], Predictor]] = {
    GaussianNB: lambda model: GaussianBayes(
        model.theta_, model.var_, model.class_prior_
    ),
    DummyClassifier: lambda model: Prior(model.class_prior_),
    LogisticRegression: lambda model: Linear(
        model.coef_,
        model.intercept_,
        np.zeros(model.coef_.shape[1]),
        np.ones(model.coef_.shape[1]),
    ),
}

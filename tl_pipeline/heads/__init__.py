"""Classifiers on embeddings: one visible row each.

Every head is a scikit-learn classifier (``fit``, ``predict_proba``, ``classes_``), the
neural one too. Where images have weights, ``fit`` must take ``sample_weight``: a head
that does not is refused for such a dataset (``fitted.fit``). To add one: a factory in
``classical.py`` or a module of its own, and a row in ``HEADS``. A default that is a
list is a grid: each of its values is trained.

A parameter among ``options`` came later, or is rarely touched: where it stands at its
default it is left out of a configuration, and so of its key and its label.
"""

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tl_pipeline.errors import UnknownName
from tl_pipeline.heads.parameters import (
    LIMITS,
    MEANINGS,
    PREPARATION,
    accepted,
    domain,
)
from tl_pipeline.specs import HeadConfig, HeadSpec, Scalar

BALANCE: Mapping[str, Scalar] = {"class_weight": "none"}
RAW: Mapping[str, Scalar] = {**PREPARATION, "scale": "none"}


@dataclass(frozen=True)
class Head:
    """One family of heads.

    ``factory`` is ``module:function`` below this package, called with the parameters
    and a seed; naming it keeps scikit-learn and torch unimported until it is needed.
    ``options`` are further parameters and their defaults; those of ``PREPARATION`` make
    steps before the head. ``limits`` are the least and the greatest value of each
    parameter that is a number, where they are not ``parameters.LIMITS``.
    """

    name: str
    summary: str
    factory: str
    defaults: Mapping[str, Scalar | list[Scalar]]
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    control: bool = False
    options: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def parameters(self) -> dict[str, Scalar | list[Scalar]]:
        """All of them, with their defaults."""
        return {**self.defaults, **self.options}

    def limits_of(self, name: str) -> tuple[float, float] | None:
        """The least and the greatest number for a parameter, if it is a number."""
        return self.limits.get(name, LIMITS.get(name))


HEADS: dict[str, Head] = {
    row.name: row
    for row in (
        Head(
            "logistic",
            "multinomial logistic regression",
            "classical:logistic",
            {"C": [0.001, 0.01, 0.1, 1.0]},
            options={**PREPARATION, **BALANCE},
        ),
        Head(
            "linear",
            "the same as logistic by our own solver, several times as fast",
            "linear:LinearClassifier",
            {"C": [0.001, 0.01, 0.1, 1.0]},
            options={**PREPARATION, **BALANCE},
        ),
        Head(
            "ridge",
            "least squares with an L2 penalty",
            "ridge:RidgeHead",
            {"alpha": [1.0, 10.0, 100.0, 1000.0]},
            options={**PREPARATION, **BALANCE},
        ),
        Head(
            "linear_svm",
            "linear SVM, one class against the rest, by our own solver",
            "support_vectors:LinearSVMHead",
            {"C": [1e-4, 1e-3, 1e-2]},
            options={**PREPARATION, **BALANCE},
        ),
        Head(
            "rbf_svm",
            "SVM with a Gaussian kernel; slow beyond some thousand images",
            "classical:rbf_svm",
            {"C": [1.0, 10.0], "gamma": "scale"},
            options={**PREPARATION, **BALANCE},
        ),
        Head(
            "lda",
            "linear discriminant analysis with a shrunk covariance",
            "discriminant:DiscriminantHead",
            {"shrinkage": ["auto", 0.3]},
            options=PREPARATION,
        ),
        Head(
            "nearest_centroid",
            "the class whose mean direction is nearest",
            "cosine:CentroidHead",
            {"whiten": [False, True]},
            options={"l2": False, "scale": "standard", "pca": 0},
        ),
        Head(
            "knn",
            "vote of the nearest training images by cosine, nearer ones count more",
            "cosine:NeighbourHead",
            {"k": [5, 20], "temperature": 0.07},
            options=PREPARATION,
        ),
        Head(
            "naive_bayes",
            "normal features, independent in each class",
            "classical:naive_bayes",
            {"smoothing": [1e-9, 0.1]},
            options=PREPARATION,
        ),
        Head(
            "random_forest",
            "the mean of many trees on random parts",
            "trees:ForestHead",
            {"trees": 300, "min_leaf": 1},
            options={**RAW, **BALANCE},
        ),
        Head(
            "gradient_boosting",
            "trees one after the other, on histograms of the features",
            "trees:BoostingHead",
            {
                "rounds": 100,
                "learning_rate": 0.1,
                "leaves": 8,
                "max_features": 0.1,
                "min_leaf": 5,
            },
            options={**RAW, **BALANCE},
        ),
        Head(
            "mlp",
            "one hidden layer with dropout, early stopping on a part of train",
            "neural:MLPHead",
            {
                "hidden": 256,
                "dropout": 0.5,
                "learning_rate": 1e-3,
                "weight_decay": 1e-4,
                "max_epochs": 200,
                "patience": 20,
                "batch_size": 256,
            },
            {
                "hidden": (1, 65536),
                "dropout": (0, 0.99),
                "learning_rate": (1e-9, 10),
                "weight_decay": (0, 10),
                "max_epochs": (1, 100_000),
                "patience": (0, 100_000),
                "batch_size": (1, 1 << 20),
            },
        ),
        Head(
            "majority",
            "the most frequent class, whatever the image: the floor",
            "classical:majority",
            {},
            control=True,
        ),
    )
}


def describe(name: str) -> list[dict[str, Any]]:
    """Every parameter of a head: default, values it takes, meaning.

    Raises:
        UnknownName: no such head.
    """
    if name not in HEADS:
        raise UnknownName("head", name, HEADS)
    row = HEADS[name]
    return [
        {
            "parameter": parameter,
            "default": HeadSpec(name="", params={"": default}).short()[2:],
            "values": domain(parameter, _sample(default), row.limits_of(parameter)),
            "meaning": MEANINGS[parameter],
        }
        for parameter, default in row.parameters.items()
    ]


def complete(spec: HeadSpec) -> HeadSpec:
    """``spec`` with every parameter that it leaves out at its default.

    Less the options that stand at theirs.

    Raises:
        UnknownName: no such head, or no such parameter.
        InvalidSpec: a value that the head cannot be built with.
    """
    if spec.name not in HEADS:
        raise UnknownName("head", spec.name, HEADS)
    row = HEADS[spec.name]
    known = row.parameters
    given = {}
    for name, value in spec.params.items():
        if name not in known:
            raise UnknownName(f"{spec.name} parameter", name, known)
        sample, limits = _sample(known[name]), row.limits_of(name)
        values = value if isinstance(value, list) else [value]
        values = [accepted(spec.name, name, sample, limits, v) for v in values]
        given[name] = values if isinstance(value, list) else values[0]
    params = _without_defaults(row, {**row.defaults, **given})
    return HeadSpec(name=spec.name, params=params)


def grid(spec: HeadSpec) -> Iterator[HeadConfig]:
    """Every configuration of a complete ``spec``, less options at their defaults."""
    for config in spec.grid():
        params = _without_defaults(HEADS[config.name], config.params)
        yield HeadConfig(name=config.name, params=params)


def label(config: HeadConfig) -> str:
    """The name people read, such as ``logistic(C=0.1)``: what is not plain default."""
    defaults = HEADS[config.name].parameters
    shown = ", ".join(
        f"{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in config.params.items()
        if value != defaults[name]
    )
    return f"{config.name}({shown})" if shown else config.name


def build(config: HeadConfig, seed: int) -> Any:
    """An unfitted classifier of ``config``, deterministic in ``seed``."""
    row = HEADS[config.name]
    params: dict[str, Any] = {**row.options, **config.params}
    steps = {name: params.pop(name) for name in PREPARATION if name in params}
    module, _, function = row.factory.partition(":")
    factory = getattr(importlib.import_module(f"{__name__}.{module}"), function)
    head = factory(**params, random_state=seed)
    if not steps:
        return head
    preparation = importlib.import_module(f"{__name__}.preparation")
    return preparation.prepared(head, **steps)


def _sample(default: Scalar | list[Scalar]) -> Scalar:
    return default[0] if isinstance(default, list) else default


def _without_defaults(row: Head, params: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in params.items()
        if name not in row.options or value != row.options[name]
    }

"""Classifiers on embeddings: one visible row each.

Every head is a scikit-learn classifier (``fit``, ``predict_proba``, ``classes_``), the
neural one too. Where images have weights, ``fit`` must take ``sample_weight``: a head
that does not is refused for such a dataset (``fitted.fit``). To add one: a factory in
``classical.py`` or a module of its own, and a row in ``HEADS``. A default that is a
list is a grid: each of its values is trained.
"""

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from tl_pipeline.errors import InvalidSpec, UnknownName
from tl_pipeline.specs import HeadConfig, HeadSpec, Scalar


@dataclass(frozen=True)
class Head:
    """One family of heads.

    ``factory`` is ``module:function`` below this package, called with the parameters
    and a seed; naming it keeps scikit-learn and torch unimported until it is needed.
    ``limits`` are the least and the greatest value of each parameter that is a number.
    """

    name: str
    summary: str
    factory: str
    defaults: Mapping[str, Scalar | list[Scalar]]
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    file: Literal["skops", "safetensors"] = "skops"
    control: bool = False


HEADS: dict[str, Head] = {
    row.name: row
    for row in (
        Head(
            "logistic",
            "standardised multinomial logistic regression",
            "classical:logistic",
            {"C": [0.001, 0.01, 0.1, 1.0]},
            {"C": (1e-12, 1e12)},
        ),
        Head(
            "linear",
            "the same as logistic by our own solver, several times as fast",
            "linear:LinearClassifier",
            {"C": [0.001, 0.01, 0.1, 1.0]},
            {"C": (1e-12, 1e12)},
            file="safetensors",
        ),
        Head(
            "ridge",
            "least squares on standardised embeddings with an L2 penalty",
            "ridge:RidgeHead",
            {"alpha": [1.0, 10.0, 100.0, 1000.0]},
            {"alpha": (1e-12, 1e12)},
            file="safetensors",
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
            file="safetensors",
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


def complete(spec: HeadSpec) -> HeadSpec:
    """``spec`` with every parameter that it leaves out at its default.

    Raises:
        UnknownName: no such head, or no such parameter.
        InvalidSpec: a value that the head cannot be built with.
    """
    if spec.name not in HEADS:
        raise UnknownName("head", spec.name, HEADS)
    row = HEADS[spec.name]
    for name in spec.params:
        if name not in row.defaults:
            raise UnknownName(f"{spec.name} parameter", name, row.defaults)
    given = {}
    for name, value in spec.params.items():
        default = row.defaults[name]
        sample = default[0] if isinstance(default, list) else default
        convert = partial(_like, spec.name, name, sample)
        many = isinstance(value, list)
        given[name] = [convert(v) for v in value] if many else convert(value)
    return HeadSpec(name=spec.name, params={**row.defaults, **given})


def label(config: HeadConfig) -> str:
    """The name people read, such as ``logistic(C=0.1)``: what is not plain default."""
    defaults = HEADS[config.name].defaults
    shown = ", ".join(
        f"{name}={value}"
        for name, value in config.params.items()
        if value != defaults[name]
    )
    return f"{config.name}({shown})" if shown else config.name


def build(config: HeadConfig, seed: int) -> Any:
    """An unfitted classifier of ``config``, deterministic in ``seed``."""
    module, _, function = HEADS[config.name].factory.partition(":")
    factory = getattr(importlib.import_module(f"{__name__}.{module}"), function)
    return factory(**config.params, random_state=seed)


def _like(head: str, name: str, sample: Scalar, given: Scalar) -> Scalar:
    """``given`` as the kind of number that ``sample`` is: 1 and 1.0 have one key."""
    if isinstance(sample, str | bool):
        return given
    if isinstance(given, str | bool) or not math.isfinite(given):
        raise InvalidSpec(f"head {head!r}: {name} must be a number, not {given!r}")
    if isinstance(sample, int) and not isinstance(given, int):
        raise InvalidSpec(f"head {head!r}: {name} must be a whole number, not {given}")
    least, most = HEADS[head].limits[name]
    if not least <= given <= most:
        raise InvalidSpec(
            f"head {head!r}: {name} must lie between {least:g} and {most:g}, "
            f"not {given}"
        )
    return float(given) if isinstance(sample, float) else given

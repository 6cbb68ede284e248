"""Classifiers on embeddings: one visible row each.

Every head is a scikit-learn classifier (``fit``, ``predict_proba``, ``classes_``), the
neural one too. Where images have weights, ``fit`` must take ``sample_weight``: a head
that does not is refused for such a dataset (``fitted.fit_arguments``). Those that
take ``groups`` say so in their row. To add one: a factory in ``classical.py`` or a
module of its own, and a row in ``table.HEADS``. A default that is a list is a grid:
each of its values is trained.

A parameter among ``options`` came later, or is rarely touched: where it stands at its
default it is left out of a configuration, and so of its key and its label.
"""

import importlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from tl_pipeline.config.short_forms import Scalar
from tl_pipeline.config.specs import HeadConfig, HeadSpec
from tl_pipeline.errors import InvalidSpec, UnknownName
from tl_pipeline.heads.parameters import MEANINGS, PREPARATION, accepted, domain
from tl_pipeline.heads.presets import PROFILES, expanded
from tl_pipeline.heads.table import HEADS, Head

__all__ = [
    "HEADS",
    "PROFILES",
    "Head",
    "build",
    "complete",
    "describe",
    "drawn",
    "expanded",
    "fitted",
    "grid",
    "grids",
    "is_range",
    "label",
    "linear",
    "search",
    "trials",
]


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
        raise UnknownName("head", spec.name, [*HEADS, *PROFILES])
    row = HEADS[spec.name]
    known = row.parameters
    given = {}
    for name, value in spec.params.items():
        if name not in known:
            raise UnknownName(f"{spec.name} parameter", name, known)
        sample, limits = _sample(known[name]), row.limits_of(name)
        if is_range(value):
            given[name] = _range(spec.name, name, sample, limits, str(value))
            continue
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


def is_range(value: Any) -> bool:
    """Whether ``value`` of a parameter is ``low..high``, all numbers between."""
    return isinstance(value, str) and ".." in value


def drawn(value: str, share: float) -> Scalar:
    """The number at ``share``, from 0 to 1, of the range ``value``.

    Of a range over a factor of ten or more, by its logarithm. Whole numbers give whole
    numbers.
    """
    low, high = (json.loads(end) for end in value.split(".."))
    if low > 0 and high >= 10 * low:
        found = low * (high / low) ** share
    else:
        found = low + (high - low) * share
    whole = isinstance(low, int) and isinstance(high, int)
    return round(found) if whole else float(f"{found:.4g}")


def _range(
    head: str,
    name: str,
    sample: Scalar,
    limits: tuple[float, float] | None,
    given: str,
) -> str:
    """``given`` with both of its ends checked."""
    ends = given.split("..")
    try:
        low, high = (json.loads(end) for end in ends)
    except ValueError:
        low = high = 0
    if limits is None or not low < high:
        raise InvalidSpec(
            f"head {head!r}: {name}={given} is no range; write LOW..HIGH with two "
            "numbers, the smaller first"
        )
    checked = [accepted(head, name, sample, limits, end) for end in (low, high)]
    return "..".join(map(str, checked))


def _sample(default: Scalar | list[Scalar]) -> Scalar:
    return default[0] if isinstance(default, list) else default


def _without_defaults(row: Head, params: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in params.items()
        if name not in row.options or value != row.options[name]
    }

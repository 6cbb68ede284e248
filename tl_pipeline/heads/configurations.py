"""Heads as they are named: their parameters checked, their grids, their labels.

Imports neither scikit-learn nor torch, so that a plan can ask.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tl_pipeline.config.short_forms import Scalar
from tl_pipeline.config.specs import HeadConfig, HeadSpec
from tl_pipeline.errors import InvalidSpec, UnknownName
from tl_pipeline.heads.parameters import MEANINGS, accepted, domain
from tl_pipeline.heads.presets import PRESETS
from tl_pipeline.heads.table import HEADS, OLDER_NAMES, Head


def describe(name: str) -> list[dict[str, Any]]:
    """Every parameter of a head: default, values it takes, meaning.

    Raises:
        UnknownName: no such head.
    """
    row = _row(HeadSpec(name=name))
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
    row = _row(spec)
    known = row.parameters
    wanted = {}
    for name, value in spec.params.items():
        if name not in known:
            raise UnknownName(f"{spec.name} parameter", name, known)
        sample, limits = _sample(known[name]), row.limits_of(name)
        if is_range(value):
            wanted[name] = _range(spec.name, name, sample, limits, str(value))
            continue
        values = value if isinstance(value, list) else [value]
        values = [accepted(spec.name, name, sample, limits, v) for v in values]
        wanted[name] = values if isinstance(value, list) else values[0]
    params = _without_defaults(row, {**row.defaults, **wanted})
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
        if value != defaults.get(name)
    )
    return f"{config.name}({shown})" if shown else config.name


def is_range(value: Any) -> bool:
    """Whether ``value`` of a parameter is ``low..high``, all numbers between."""
    return isinstance(value, str) and ".." in value


def sampled(value: str, share: float) -> Scalar:
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


def _row(spec: HeadSpec) -> Head:
    if spec.name in OLDER_NAMES:
        today = HeadSpec(name=OLDER_NAMES[spec.name], params=spec.params)
        raise InvalidSpec(
            f"head {spec.name!r} is called {today.name!r} now: write {today.short()}"
        )
    if spec.name not in HEADS:
        raise UnknownName("head", spec.name, [*HEADS, *PRESETS])
    return HEADS[spec.name]


def _range(
    head: str,
    name: str,
    sample: Scalar,
    limits: tuple[float, float] | None,
    text: str,
) -> str:
    """The range ``text`` with both of its ends checked."""
    ends = text.split("..")
    try:
        low, high = (json.loads(end) for end in ends)
    except ValueError:
        low = high = 0
    if limits is None or not low < high:
        raise InvalidSpec(
            f"head {head!r}: {name}={text} is no range; write LOW..HIGH with two "
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

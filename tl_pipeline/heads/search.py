"""Which configurations of a head are tried, and on how many images: no arithmetic.

Imports neither scikit-learn nor torch, so that a plan can ask.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tl_pipeline.config.specs import HeadConfig, HeadSpec, SearchSpec
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.heads.configurations import grid, is_range, label, sampled

# Of the configurations of a rung of ``halving`` one in so many goes on to the next.
FACTOR = 3
# Of fewer rows than FEW there are more folds, of MANY or more one part is held out.
FEW, MANY = 500, 200_000
# No rung has fewer images than this for each class.
_LEAST = 10


@dataclass(frozen=True)
class Rung:
    """A round of successive halving: how many configurations, on how many images."""

    configurations: int
    images: int


def candidates(head: HeadSpec, search: SearchSpec, seed: int) -> list[HeadConfig]:
    """The configurations of a complete ``head`` that are tried.

    The whole grid, or for ``random`` as many of it as asked for. More of them begin
    with those that fewer are, so a wider search tries only what is new.

    Raises:
        InvalidSpec: a range of numbers, which has no grid; or values that do not go
            together.
    """
    found = _candidates(head, search, seed)
    for config in found:
        if config.params.get("batch_norm") and config.params["batch_size"] == 1:
            raise InvalidSpec(
                f"{label(config)}: batch_norm needs a batch_size of at least 2, not 1"
            )
        shared = [int(config.params.get(name, 1)) for name in ("values", "queries")]
        if shared[0] % shared[1]:
            raise InvalidSpec(
                f"{label(config)}: values must be a multiple of queries, each of which "
                "takes as many"
            )
    return found


def _candidates(head: HeadSpec, search: SearchSpec, seed: int) -> list[HeadConfig]:
    ranges = [name for name, value in head.params.items() if is_range(value)]
    if search.strategy != "random":
        if ranges:
            raise InvalidSpec(
                f"head {head.name!r}: {', '.join(ranges)} is a range, which only "
                "--search ...:strategy=random can draw from; or list values: 0.1/1/10"
            )
        return list(grid(head))
    chance = np.random.default_rng(seed)
    if not ranges:
        whole = list(grid(head))
        order = chance.permutation(len(whole))[: search.configurations]
        return [whole[at] for at in order]
    found = [_sample(head, chance) for _ in range(search.configurations)]
    return list({label(config): config for config in found}.values())


def _sample(head: HeadSpec, chance: np.random.Generator) -> HeadConfig:
    params: dict[str, Any] = {}
    for name, value in head.params.items():
        if is_range(value):
            params[name] = sampled(str(value), chance.random())
        elif isinstance(value, list):
            params[name] = value[int(chance.integers(len(value)))]
        else:
            params[name] = value
    one = HeadSpec(name=head.name, params=params)
    return next(iter(grid(one)))


def rungs(configurations: int, images: int, classes: int) -> list[Rung]:
    """The rounds of successive halving (Jamieson & Talwalkar 2016).

    The last has all ``images``, each one before a ``FACTOR``-th of the next.
    """
    number = 1
    while (
        configurations > FACTOR**number and images / FACTOR**number >= _LEAST * classes
    ):
        number += 1
    return [
        Rung(
            math.ceil(configurations / FACTOR**at),
            math.ceil(images / FACTOR ** (number - 1 - at)),
        )
        for at in range(number)
    ]


def ranked(scores: Sequence[tuple[float, float]]) -> list[int]:
    """The numbers of (accuracy, log loss) from the best to the worst; ties in order."""
    return sorted(range(len(scores)), key=lambda at: (-scores[at][0], scores[at][1]))

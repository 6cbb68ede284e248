"""Many cases of one claim: one of each kind always, all by ``make test-all``."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import pytest


def one_of_each(
    cases: Iterable[Any], kind: Callable[[Any], Hashable], *, count: int = 1
) -> list[Any]:
    """``cases`` to parametrize; all but ``count`` of each kind marked exhaustive."""
    seen: Counter[Hashable] = Counter()
    marked = []
    for case in cases:
        seen[kind(case)] += 1
        values = case if isinstance(case, tuple) else (case,)
        marks = [pytest.mark.exhaustive] if seen[kind(case)] > count else []
        marked.append(pytest.param(*values, marks=marks))
    return marked


def more(*cases: Any) -> list[Any]:
    """``cases`` to parametrize, all marked exhaustive: more of a kind."""
    values = (case if isinstance(case, tuple) else (case,) for case in cases)
    return [pytest.param(*each, marks=pytest.mark.exhaustive) for each in values]

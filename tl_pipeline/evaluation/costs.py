"""What wrong decisions cost, where some errors are worse than others."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tl_pipeline.errors import UnknownName

# Label -> prediction -> cost, by names; ``DEFAULT`` stands for all other predictions.
Costs = Mapping[str, Mapping[str, float]]
DEFAULT = "default"
# The metric; unlike those that candidates are chosen by, the smaller is the better.
COST = "cost"


def of_rows(
    costs: Costs, names: Sequence[str], truth: np.ndarray, predicted: np.ndarray
) -> np.ndarray:
    """What each decision costs, float64 (n,): 0 if right, 1 where ``costs`` is silent.

    ``truth`` and ``predicted`` (n,) are numbers of ``names``.
    """
    pairs, row = np.unique(truth * len(names) + predicted, return_inverse=True)
    prices = [_price(costs, names, *divmod(int(pair), len(names))) for pair in pairs]
    return np.array(prices, float)[row]


def _price(costs: Costs, names: Sequence[str], truth: int, predicted: int) -> float:
    if truth == predicted:
        return 0.0
    said = costs.get(names[truth], {})
    return said.get(names[predicted], said.get(DEFAULT, 1.0))


def check(costs: Costs, classes: Iterable[str]) -> None:
    """Refuse names that are none of ``classes``.

    Raises:
        UnknownName: one is not.
    """
    known = set(classes)
    for label, said in costs.items():
        for name in (label, *(name for name in said if name != DEFAULT)):
            if name not in known:
                raise UnknownName("class in costs", name, known)

"""How often predictions of about one confidence are right."""

from typing import NamedTuple

import numpy as np

_BINS = 10


class Bin(NamedTuple):
    """Predictions of about one confidence: how many, their mean, how often right."""

    rows: int
    confidence: float
    accuracy: float


def reliability(confidence: np.ndarray, right: np.ndarray) -> list[Bin]:
    """The bins of a reliability diagram (Niculescu-Mizil & Caruana 2005).

    Ten of equal width by ``confidence`` (n,), those without rows left out; ``right``
    (n,) tells whether each prediction is.
    """
    place = np.minimum((confidence.astype(float) * _BINS).astype(int), _BINS - 1)
    return [
        Bin(
            int(inside.sum()),
            float(confidence[inside].mean(dtype=float)),
            float(right[inside].mean()),
        )
        for inside in (place == number for number in np.unique(place))
    ]

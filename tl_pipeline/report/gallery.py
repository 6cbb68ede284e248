"""The most confident errors on test, each beside the nearest image that was learned."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tl_pipeline.report.embedded import Neighbour
from tl_pipeline.report.tested import PredictedTest
from tl_pipeline.report.thumbnails import Thumbnail

SHOWN = 24  # errors that are shown at once
_MOST = 72
# So that a cell of the confusion matrix has something to show.
_PAIRS, _OF_A_PAIR = 24, 3


@dataclass(frozen=True)
class Error:
    """A wrong prediction; ``cell`` is (label, predicted) as numbers of classes."""

    image: Thumbnail
    label: str
    predicted: str
    confidence: float
    cell: tuple[int, int]
    neighbour: Thumbnail | None = None
    cosine: float | None = None


@dataclass(frozen=True)
class Gallery:
    """The errors with pictures, the most confident first; ``total`` counts all."""

    errors: list[Error]
    total: int


def chosen(tested: PredictedTest) -> np.ndarray:
    """The rows with pictures: the most confident errors, and some of frequent pairs.

    Returns:
        Row numbers, the most confident first.
    """
    found = dict.fromkeys(tested.errors[:SHOWN].tolist())
    pairs = Counter(_cell(tested, row) for row in tested.errors)
    frequent = {pair for pair, _ in pairs.most_common(_PAIRS)}
    taken: Counter[tuple[int, int]] = Counter()
    for row in tested.errors.tolist():
        pair = _cell(tested, row)
        if pair in frequent and taken[pair] < _OF_A_PAIR and len(found) < _MOST:
            taken[pair] += 1
            found[row] = None
    return np.array([row for row in tested.errors.tolist() if row in found], int)


def hang(
    tested: PredictedTest,
    rows: np.ndarray,
    neighbours: Mapping[str, Neighbour],
    thumbnails: Mapping[str, Thumbnail],
) -> Gallery:
    """The gallery of ``rows`` of ``tested``."""

    def error(row: int) -> Error:
        image_id = tested.image_ids[row]
        near = neighbours.get(image_id)
        return Error(
            image=thumbnails[image_id],
            label=tested.labels[row],
            predicted=tested.predicted[row],
            confidence=float(tested.confidence[row]),
            cell=_cell(tested, row),
            neighbour=thumbnails[near.image_id] if near else None,
            cosine=near.cosine if near else None,
        )

    return Gallery([error(row) for row in rows.tolist()], len(tested.errors))


def _cell(tested: PredictedTest, row: int) -> tuple[int, int]:
    return int(tested.truth[row]), int(tested.guess[row])

"""The confusion matrix as a picture, with classes that are confused side by side."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from tl_pipeline.report.tested import PredictedTest

# Of more classes those with the most errors are shown, and the others as one.
MOST = 300
_KEPT = 100
_WORST_PAIRS = 15
_WIDTH = 660  # of all cells together
_LARGEST, _LEAST_NAMED, _LEAST_COUNTED = 44, 13, 20  # pixels of a cell
_LETTERS = 20  # of a name beside a line
_LETTER = 6.6  # pixels
OTHERS = -1


class Cell(NamedTuple):
    """Test images of one (label, predicted); places are numbers of lines."""

    row: int
    column: int
    images: int
    share: float  # of the images of the label


class Pair(NamedTuple):
    """How many images of ``label`` were taken for ``predicted``."""

    label: str
    predicted: str
    cell: tuple[int, int]
    images: int
    share: float


class Matrix(NamedTuple):
    """``lines`` are numbers of classes in the order of rows and columns.

    The last of them is ``OTHERS`` where there are too many classes: all the rest.
    ``side`` is that of a cell in pixels. ``named`` and ``counted`` tell whether there
    is room for names beside the lines and for counts in the cells; ``margin`` is the
    room for names in pixels.
    """

    lines: list[int]
    names: list[str]
    cells: list[Cell]
    side: float
    named: bool
    counted: bool
    margin: float


def matrix(tested: PredictedTest) -> Matrix:
    """The matrix of all classes, or of those with the most errors and the rest."""
    lines = ordered(tested, _lines(tested))
    names = [tested.classes[line] for line in lines]
    others = len(lines) < len(tested.classes)
    if others:
        lines, names = [*lines, OTHERS], [*names, "all other classes"]
    place = np.full(len(tested.classes), len(lines) - 1)
    place[lines[: len(lines) - others]] = np.arange(len(lines) - others)
    pairs = Counter(zip(place[tested.truth], place[tested.guess], strict=True))
    rows: Counter[int] = Counter()
    for (row, _), images in pairs.items():
        rows[row] += images
    cells = [
        Cell(int(row), int(column), images, images / rows[row])
        for (row, column), images in sorted(pairs.items())
    ]
    side = round(min(_LARGEST, _WIDTH / len(lines)), 1)
    named = side >= _LEAST_NAMED
    longest = max(min(len(name), _LETTERS) for name in names)
    return Matrix(
        lines,
        names,
        cells,
        side,
        named,
        counted=side >= _LEAST_COUNTED,
        margin=round(12 + _LETTER * longest, 1) if named else 4.0,
    )


def worst_pairs(tested: PredictedTest) -> list[Pair]:
    """The most frequent errors, the most frequent first."""
    pairs = Counter(zip(tested.truth.tolist(), tested.guess.tolist(), strict=True))
    of_class = np.bincount(tested.truth, minlength=len(tested.classes))
    frequent = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    wrong = [(cell, images) for cell, images in frequent if cell[0] != cell[1]]
    return [
        Pair(
            tested.classes[cell[0]],
            tested.classes[cell[1]],
            cell,
            images,
            images / int(of_class[cell[0]]),
        )
        for cell, images in wrong[:_WORST_PAIRS]
    ]


def _lines(tested: PredictedTest) -> np.ndarray:
    """The numbers of the classes that have a line of their own, ascending."""
    count = len(tested.classes)
    if count <= MOST:
        return np.arange(count)
    wrong = ~tested.right
    errors = np.bincount(tested.truth[wrong], minlength=count)
    errors += np.bincount(tested.guess[wrong], minlength=count)
    return np.sort(np.argsort(-errors, kind="stable")[:_KEPT])


def ordered(tested: PredictedTest, classes: Sequence[int] | np.ndarray) -> list[int]:
    """``classes`` so that neighbours are those that are confused most.

    By the leaves of a tree of average linkage, turned so that neighbours are alike
    (Bar-Joseph et al. 2001). Two classes are the more alike the larger a share of the
    images of either is taken for the other. Classes without errors stay at the end,
    sorted.
    """
    classes = np.asarray(classes)
    place = np.full(len(tested.classes), -1)
    place[classes] = np.arange(len(classes))
    pairs = place[np.stack([tested.truth, tested.guess])]
    seen = np.zeros((len(classes), len(classes)))
    np.add.at(seen, tuple(pairs[:, (pairs >= 0).all(axis=0)]), 1)
    shares = seen / np.maximum(seen.sum(axis=1, keepdims=True), 1)
    alike = shares + shares.T
    np.fill_diagonal(alike, 0)
    confused = np.flatnonzero(alike.any(axis=1))
    calm = classes[~alike.any(axis=1)].tolist()
    if len(confused) < 3:
        return classes[confused].tolist() + calm
    apart = squareform(2 - alike[np.ix_(confused, confused)], checks=False)
    tree = hierarchy.linkage(apart, "average", optimal_ordering=True)
    return classes[confused[hierarchy.leaves_list(tree)]].tolist() + calm

"""Near duplicates: images far more alike than unrelated images ever are.

Embeddings are whitened (centred, the leading principal components scaled to unit
variance), which keeps what tells images apart and drops what all of them share. Two
images of one class are near duplicates if they pass two tests, each as seen by either:

1. Each is much nearer to the other than to any image of another class: the
   distance-ratio test of Lowe (2004, "Distinctive image features from scale-invariant
   keypoints", section 7.1), whose second neighbour is known to show something else.
2. Each is nearer to the other than unrelated images of their class come by chance.
   Around an image, images that have nothing to do with each other lie as if drawn from
   an even density of some dimension: of the k nearest, those at less than a share t of
   the k-th distance number k * t ** (dimension / 2). The dimension is measured, and a
   pair counts where that number is below one in 10,000.

So every image has its own threshold, set by its surroundings. The first test alone
fails where classes lie far apart, the second where a class holds several objects.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Measured on photos, small photos and frames of one object: with fewer components
# frames of two objects look alike, with more every image is far from all.
COMPONENTS = 128
# Whitening in almost as many dimensions as there are images puts all of them at the
# same distance from each other.
_IMAGES_PER_COMPONENT = 4
_FITTED_ON = 20_000  # rows are enough for a covariance of some thousand dimensions
_CALIBRATED_ON = 2_000
_CHANCE = 0.01
_MOST = 0.6
# Where there is no third class, chance cannot be measured.
_OF_TWO_CLASSES = 0.5
_CELLS = 1 << 22  # similarities held at once
_COLUMNS = 4096  # foreign images that are compared before it is seen who is left
_TINY = np.finfo(np.float32).eps
_NEIGHBOURS = 64  # of one image: those its surroundings are measured by
_UNRELATED = 1e-4  # pairs that chance may make of an image
_FEWEST = 8  # neighbours by which a dimension can be told
# Copies that are all of an image's neighbours are so much nearer than is usual.
_CROWDED = 0.25


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of near duplicates among n images, and the clusters that they form.

    ``pairs`` is int64 of shape (n_pairs, 2), positions with the smaller first: of each
    image those with its 64 nearest; ``similarity`` is float32 of shape (n_pairs,), the
    cosine of the whitened embeddings; ``clusters`` is int64 of shape (n,), -1 for an
    image without a near duplicate. ``ratio`` is how much nearer than the nearest image
    of another class a near duplicate must be.
    """

    pairs: np.ndarray
    similarity: np.ndarray
    clusters: np.ndarray
    ratio: float


def find(
    vectors: np.ndarray, labels: np.ndarray, ratio: float | None = None
) -> NearDuplicates:
    """Find the near duplicates among images with embeddings and labels.

    ``vectors`` is float32 of shape (n, width), ``labels`` of shape (n,). Images of one
    class alone have none. With a ``ratio`` the first test is done with that, and the
    second is not. Every pair of one class is compared, and with all other images each
    that may have a near duplicate, in memory that does not grow with n * n. Copies
    under two labels are not found.
    """
    _, classes = np.unique(labels, return_inverse=True)
    if classes.max(initial=0) < 1:  # nothing is known to differ
        nothing = np.empty(0, np.float32)
        pairs = np.empty((0, 2), np.int64)
        return NearDuplicates(pairs, nothing, np.full(len(vectors), -1), 0.0)
    order = np.argsort(classes, kind="stable")
    points, classes = whiten(vectors)[order], classes[order]
    ends = np.append(np.flatnonzero(np.diff(classes)) + 1, len(classes)).tolist()
    bounds = list(zip([0, *ends], ends, strict=False))
    around = [_surroundings(points, start, end) for start, end in bounds]
    limits = np.full(len(points), np.inf, np.float32)
    if not ratio:
        limits = _by_chance(around)
        ratio = calibrate(points, classes, limits)
    nearest = np.concatenate([one.nearest for one in around])
    limits, left = _limited_by_foreign(points, classes, nearest, limits, ratio)
    return _joined(points, bounds, limits, left, order, ratio)


def _joined(
    points: np.ndarray,
    bounds: "list[Bounds]",
    limits: np.ndarray,
    left: np.ndarray,
    order: np.ndarray,
    ratio: float,
) -> NearDuplicates:
    """The pairs that are nearer than the ``limits`` of both, and their clusters.

    ``left`` are the points that may be in a pair, ascending.
    """
    component = np.arange(len(points))
    found = [np.empty((2, 0), np.int64)]
    for start, end in bounds:
        members = left[np.searchsorted(left, start) : np.searchsorted(left, end)]
        if not len(members):
            continue
        of_class = np.arange(len(members))
        for rows, distances in _own(points, start, end, members):
            least = np.minimum(limits[members[rows], None], limits[members])
            first, second = np.nonzero(distances < least)
            of_class = _merged(of_class, rows[first], second)
            edges = members[rows[first]], members[second]
            found.append(np.stack(_nearest(first, distances[first, second], *edges)))
        component[members] = members[of_class]
    edges = np.concatenate(found, axis=1)
    pairs = np.unique(np.sort(order[edges].T, axis=1), axis=0)
    place = np.argsort(order)  # of an image among the points
    similarity = np.einsum("ij,ij->i", *(points[place[pairs[:, s]]] for s in (0, 1)))
    clusters = np.full(len(points), -1, np.int64)
    joined = np.unique(pairs)
    named = np.unique(component[place[joined]], return_inverse=True)[1]
    # numbered from 0 in the order of the images
    first = np.unique(named, return_index=True)[1]
    clusters[joined] = np.argsort(np.argsort(first))[named]
    return NearDuplicates(pairs, similarity, clusters, ratio)


def _merged(component: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The components with these edges added, each named by one of its points."""
    if not len(one):
        return component
    size = len(component)
    ends = np.concatenate([one, np.arange(size)]), np.concatenate([other, component])
    graph = coo_array((np.ones(len(ends[0]), bool), ends), shape=(size, size))
    labels = connected_components(graph, directed=False)[1]
    return np.unique(labels, return_index=True)[1][labels]


def _nearest(
    row: np.ndarray, distance: np.ndarray, one: np.ndarray, other: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The edges, at most ``_NEIGHBOURS`` of a row: the shortest."""
    order = np.lexsort((distance, row))
    starts = np.searchsorted(row[order], row[order])
    kept = order[np.arange(len(order)) - starts < _NEIGHBOURS]
    return one[kept], other[kept]


def whiten(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors of the leading principal components: float32 (n, components)."""
    spread = np.linspace(0, len(vectors) - 1, min(len(vectors), _FITTED_ON))
    sample = vectors[np.unique(spread.astype(np.int64))].astype(np.float64)
    mean = sample.mean(axis=0)
    variances, axes = np.linalg.eigh(np.cov(sample - mean, rowvar=False, ddof=0))
    kept = min(COMPONENTS, max(1, len(sample) // _IMAGES_PER_COMPONENT))
    # What does not vary has no direction; eigh sorts from small to large.
    kept = max(1, min(kept, int((variances > variances[-1] * 1e-9).sum())))
    scale = np.sqrt(np.maximum(variances[-kept:], np.finfo(np.float32).tiny))
    projection = (axes[:, -kept:] / scale).astype(np.float32)
    points = (vectors - mean.astype(np.float32)) @ projection
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    return points / np.maximum(lengths, np.finfo(np.float32).tiny)


def calibrate(points: np.ndarray, classes: np.ndarray, by_chance: np.ndarray) -> float:
    """The ratio that unrelated images undercut in one of a hundred cases, at most 0.6.

    By how much nearer an image of another class can be by chance is seen where nothing
    is a duplicate: at the nearest image of another class against the nearest of a
    third. Images nearer to another class than unrelated ones come ``by_chance`` (n,)
    are copies under two labels, and tell nothing. Two classes leave no third; for them,
    and where all are copies, it is 0.5. ``points`` are sorted by ``classes``, numbers
    from 0.
    """
    if classes.max(initial=0) < 2:
        return _OF_TWO_CLASSES
    spread = np.linspace(0, len(points) - 1, min(len(points), _CALIBRATED_ON))
    starts = np.flatnonzero(np.diff(classes, prepend=-1))
    ratios = []
    for rows in _pieces(np.unique(spread.astype(np.int64)), len(points)):
        # of each row the nearest of each class
        similar = np.maximum.reduceat(points[rows] @ points.T, starts, axis=1)
        similar[np.arange(len(rows)), classes[rows]] = -1
        third, second = 1 - np.partition(similar, -2, axis=1)[:, -2:].T
        unrelated = second >= by_chance[rows]
        ratios.append((second / np.maximum(third, _TINY))[unrelated])
    found = np.concatenate(ratios)
    if not len(found):
        return _OF_TWO_CLASSES
    return float(min(_MOST, np.quantile(found, _CHANCE)))


# Points of one class: the first, and the first behind them.
Bounds = tuple[int, int]


def _limited_by_foreign(
    points: np.ndarray,
    classes: np.ndarray,
    nearest: np.ndarray,
    limits: np.ndarray,
    ratio: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The limits (n,), at most ``ratio`` times the distance to the nearest foreign one.

    Only of points whose ``nearest`` of their own class (n,) is within the limit: of
    others it is not needed, and most fall out after few comparisons. Those that are
    left come second, ascending. ``points`` are sorted by ``classes``.
    """
    limits = limits.astype(np.float32)
    shares = -(-len(points) // _COLUMNS)
    left = _within(np.arange(len(points)), nearest, limits)
    for share in range(shares):
        # every class is in every share, so that far points fall out at once
        columns = np.arange(share, len(points), shares)
        for rows in _pieces(left, len(columns)):
            similar = points[rows] @ points[columns].T
            _forget_own(similar, classes[rows], classes[columns])
            foreign = ratio * (1 - similar.max(axis=1))
            limits[rows] = np.minimum(limits[rows], foreign)
        left = _within(left, nearest, limits)
    return limits, left


def _within(rows: np.ndarray, nearest: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Those of ``rows`` whose nearest point lies within their limit, or almost."""
    return rows[nearest[rows] < np.maximum(limits[rows], 2 * _TINY)]


def _forget_own(similar: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> None:
    """Set to -1 what is of one class; both classes are sorted."""
    for number in np.unique(rows):
        row = slice(*np.searchsorted(rows, [number, number + 1]))
        similar[row, slice(*np.searchsorted(columns, [number, number + 1]))] = -1


class _Surroundings(NamedTuple):
    """Of the images of one class: distances to the nearest and the k-th neighbour.

    Both are infinite of an image that is alone in its class. ``dimensions`` is half the
    dimension as each image sees it, empty where there are too few neighbours.
    """

    nearest: np.ndarray
    kth: np.ndarray
    neighbours: int
    dimensions: np.ndarray


def _by_chance(around: list[_Surroundings]) -> np.ndarray:
    """How near unrelated images of the same class come by chance: float32 (n,)."""
    images = sum(len(one.nearest) for one in around)
    half = _half_dimension(around)
    if half is None:  # of images that have at most one neighbour nothing is known
        return np.zeros(images, np.float32)
    usual = np.array([np.median(a.nearest) if a.neighbours else np.nan for a in around])
    limits = []
    for number, one in enumerate(around):
        share = (_UNRELATED / max(one.neighbours - 1, 1)) ** (1 / half)
        others = np.delete(usual, number)
        crowded = _CROWDED * (_UNRELATED / np.log(2)) ** (1 / half)
        crowded *= np.nanquantile(others, 0.05, method="lower")
        # one image: nothing is near
        own = share * one.kth if one.neighbours else np.zeros(1)
        limits.append(np.maximum(own, crowded).astype(np.float32))
    return np.concatenate(limits)


def _half_dimension(around: list[_Surroundings]) -> float | None:
    """Half the dimension in which unrelated images of a class lie around one.

    Two ways of measuring it, of which the larger is taken, as copies make both too
    small: by the distances to the outer half of the neighbours, which copies seldom
    reach, and by that to the nearest, which shows what is near.
    """
    outer = np.concatenate([one.dimensions for one in around])
    inner = [
        np.log((one.neighbours - 1) / np.log(2))
        / np.log(one.kth / one.nearest).clip(min=np.finfo(np.float32).eps)
        for one in around
        if one.neighbours > 1
    ]
    if not inner:
        return None
    found = np.median(np.concatenate(inner))
    return float(max(found, np.median(outer)) if len(outer) else found)


def _surroundings(points: np.ndarray, start: int, end: int) -> _Surroundings:
    k = min(_NEIGHBOURS, end - start - 1)
    if k < 1:
        alone = np.full(1, np.inf, np.float32)
        return _Surroundings(alone, alone, 0, np.empty(0))
    nearest = [
        np.sort(np.partition(distances, k - 1, axis=1)[:, :k], axis=1)
        for _, distances in _own(points, start, end, np.arange(start, end))
    ]
    distances = np.concatenate(nearest).clip(min=_TINY)
    first, last, half = distances[:, 0], distances[:, -1], k // 2
    if k < _FEWEST:
        return _Surroundings(first, last, k, np.empty(0))
    # In an even density log(d_k / d_j) is the sum of 1/l for l from j to k - 1, divided
    # by half the dimension.
    sums = np.cumsum(1 / np.arange(k - 1, half - 1, -1)).sum()
    logs = np.log(last[:, None] / distances[:, half - 1 : k - 1]).sum(axis=1)
    return _Surroundings(first, last, k, sums / logs.clip(min=_TINY))


def _own(
    points: np.ndarray, start: int, end: int, members: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Some ``members`` of a class at a time, each with its distances to all of them.

    Rows are numbers within ``members``. The distance to itself is infinite. Where a
    class is narrow, cosines differ by less than float32 can tell; around the mean of
    the class it tells the distances.
    """
    own = points[members] - points[start:end].mean(axis=0)
    halves = np.einsum("ij,ij->i", own, own) / 2
    for rows in _pieces(np.arange(len(own)), len(own)):
        distances = halves[rows, None] + halves
        distances -= own[rows] @ own.T
        distances[np.arange(len(rows)), rows] = np.inf
        yield rows, distances.clip(min=0, out=distances)


def _pieces(rows: np.ndarray, columns: int) -> list[np.ndarray]:
    """``rows`` in pieces that have no more than ``_CELLS`` cells."""
    count = min(len(rows), -(-len(rows) * columns // _CELLS))
    return np.array_split(rows, max(1, count))

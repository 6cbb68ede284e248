"""Near duplicates: images far more alike than images of two classes ever are.

Embeddings are whitened (centred, the leading principal components scaled to unit
variance), which keeps what tells images apart and drops what all of them share. Two
images are near duplicates if each is much nearer to the other than to any image of
another class: the distance-ratio test of Lowe (2004, "Distinctive image features from
scale-invariant keypoints", section 7.1), whose second neighbour is the nearest that is
known to show something else. So every image has its own threshold, set by its
surroundings: in a dataset of lookalikes it is stricter than among diverse photos.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Measured on photos, small photos and frames of one object (see benchmarks): with fewer
# components frames of two objects look alike, with more every image is far from all.
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
_CELLS = 1 << 25  # similarities held at once
_NEIGHBOURS = 64  # of one image: enough to join it to its cluster


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of near duplicates among n images, and the clusters that they form.

    ``pairs`` is int64 of shape (n_pairs, 2), positions with the smaller first;
    ``similarity`` is float32 of shape (n_pairs,), the cosine of the whitened
    embeddings; ``clusters`` is int64 of shape (n,), -1 for an image without a near
    duplicate. ``ratio`` is how much nearer than the nearest image of another class a
    near duplicate must be.
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
    class alone have none. Without a ``ratio`` it is calibrated. Every pair of images is
    compared: n * n * 128 multiplications, in memory that does not grow with n * n.
    Copies under two labels are each other's nearest image of another class, and are
    not found.
    """
    _, classes = np.unique(labels, return_inverse=True)
    if classes.max(initial=0) < 1:  # nothing is known to differ
        nothing = np.empty(0, np.float32)
        pairs = np.empty((0, 2), np.int64)
        return NearDuplicates(pairs, nothing, np.full(len(vectors), -1), 0.0)
    points = whiten(vectors)
    if ratio is None:
        ratio = calibrate(points, classes)
    foreign = np.empty(len(points), np.float32)  # distance to the nearest other class
    found = [np.empty((2, 0), np.int64)]
    for rows, similar in _similarities(points, np.arange(len(points))):
        other = classes[rows][:, None] != classes[None, :]
        foreign[rows] = 1 - similar.max(axis=1, where=other, initial=-1)
        found.append(_above(rows, similar, 1 - ratio * foreign[rows]))
    first, second = np.concatenate(found, axis=1)
    similarity = np.einsum("ij,ij->i", points[first], points[second])
    mutual = 1 - similarity < ratio * np.minimum(foreign[first], foreign[second])
    pairs = np.sort(np.stack([first, second], axis=1)[mutual], axis=1)
    pairs, once = np.unique(pairs, axis=0, return_index=True)
    clusters = _clusters(pairs, len(points))
    return NearDuplicates(pairs, similarity[mutual][once], clusters, ratio)


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


def calibrate(points: np.ndarray, classes: np.ndarray) -> float:
    """The ratio that unrelated images undercut in one of a hundred cases, at most 0.6.

    By how much nearer an image of another class can be by chance is seen where nothing
    is a duplicate: at the nearest image of another class against the nearest of a
    third. Two classes leave no third; for them it is 0.5.
    """
    if classes.max(initial=0) < 2:
        return _OF_TWO_CLASSES
    spread = np.linspace(0, len(points) - 1, min(len(points), _CALIBRATED_ON))
    ratios = []
    for rows, similar in _similarities(points, np.unique(spread.astype(np.int64))):
        own = classes[rows][:, None] == classes[None, :]
        similar[own] = -1
        second = similar.argmax(axis=1)
        nearest = 1 - similar.max(axis=1)
        similar[classes[second][:, None] == classes[None, :]] = -1
        third = 1 - similar.max(axis=1)
        ratios.append(nearest / np.maximum(third, np.finfo(np.float32).tiny))
    return float(min(_MOST, np.quantile(np.concatenate(ratios), _CHANCE)))


def _similarities(
    points: np.ndarray, wanted: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Some rows at a time, each with its cosine to every image, -1 to itself."""
    for rows in np.array_split(wanted, -(-len(wanted) * len(points) // _CELLS)):
        similar = points[rows] @ points.T
        similar[np.arange(len(rows)), rows] = -1
        yield rows, similar


def _above(rows: np.ndarray, similar: np.ndarray, least: np.ndarray) -> np.ndarray:
    """(2, n_pairs): each row with the images above its ``least``, the most alike."""
    above = similar > least[:, None]
    crowded = np.flatnonzero(above.sum(axis=1) > _NEIGHBOURS)
    for row in crowded:
        most = np.argpartition(similar[row], -_NEIGHBOURS)[-_NEIGHBOURS:]
        above[row] = False
        above[row, most] = True
    at, second = np.nonzero(above)
    return np.stack([rows[at], second])


def _clusters(pairs: np.ndarray, images: int) -> np.ndarray:
    """The connected components with a pair, numbered from 0 in the order of images."""
    edges = coo_array((np.ones(len(pairs)), pairs.T), shape=(images, images))
    _, component = connected_components(edges, directed=False)
    joined = np.zeros(images, bool)
    joined[pairs] = True
    clusters = np.full(images, -1, np.int64)
    clusters[joined] = np.unique(component[joined], return_inverse=True)[1]
    return clusters

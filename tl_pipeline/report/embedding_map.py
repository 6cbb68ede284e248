"""Where the test images lie to each other in the best encoder's embeddings."""

import math
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from tl_pipeline.data.splits import draw
from tl_pipeline.report.embedded import BestEmbeddings
from tl_pipeline.report.tested import PredictedTest

WIDTH, HEIGHT = 640, 440
_MARGIN = 10
_MOST = 1000  # points
_PICTURES = 240  # points with a picture, as long as
_MOST_PIXELS = 250e6  # are not exceeded by all of them
# Fewer points say no more by t-SNE than by PCA.
_LEAST = 100
_COMPONENTS, _ITERATIONS, _PERPLEXITY = 50, 300, 30.0


class Point(NamedTuple):
    """A test image; ``row`` is its row in ``PredictedTest``, y grows downwards."""

    x: float
    y: float
    row: int


class EmbeddingMap(NamedTuple):
    """Points in units of the picture; ``method`` names how they were placed."""

    points: list[Point]
    method: str
    encoder: str


def draw_map(embeddings: BestEmbeddings, tested: PredictedTest) -> EmbeddingMap | None:
    """The map of the test images, or of a thousand of them; None for fewer than four.

    Raises:
        DamagedArtifact: see ``EmbeddingFolder.load``.
    """
    place = {image_id: row for row, image_id in enumerate(tested.image_ids.tolist())}
    some = sorted(place, key=lambda image_id: draw(image_id, 0))[:_MOST]
    found = embeddings.load(some)
    if len(found.image_ids) < 4:
        return None
    # Several threads meet after each of thousands of small steps, and wait there.
    with threadpool_limits(1):
        places, method = _placed(found.vectors)
    rows = [place[image_id] for image_id in found.image_ids]
    points = [
        Point(x, y, row) for (x, y), row in zip(_fitted(places), rows, strict=True)
    ]
    return EmbeddingMap(points, method, embeddings.encoder)


def with_pictures(
    tested: PredictedTest, found: EmbeddingMap, pixels: np.ndarray
) -> list[int]:
    """The rows of points that get a picture: errors and others by turns.

    ``pixels`` (n,) are those of each test image: large photos take long to decode.
    """
    rows = [point.row for point in found.points]
    rows.sort(key=lambda row: draw(tested.image_ids[row], 0))
    wrong = [row for row in rows if not tested.right[row]]
    others = [row for row in rows if tested.right[row]]
    turns = [row for pair in zip_longest(wrong, others) for row in pair]
    first = [row for row in turns if row is not None][:_PICTURES]
    affordable = np.cumsum(pixels[first]) <= _MOST_PIXELS
    return [row for row, fits in zip(first, affordable, strict=True) if fits]


def _placed(vectors: np.ndarray) -> tuple[np.ndarray, str]:
    """Each of ``vectors`` (n, width) on a plane, (n, 2), and by what method."""
    # a second, which a plan does not need
    from sklearn.decomposition import PCA  # noqa: PLC0415
    from sklearn.manifold import TSNE  # noqa: PLC0415

    width = min(_COMPONENTS, *vectors.shape)
    axes = PCA(width, svd_solver="randomized", random_state=0).fit_transform(vectors)
    if len(axes) < _LEAST:
        flat = np.zeros((len(axes), 2))
        flat[:, : min(2, width)] = axes[:, :2]
        return flat, "the first two principal components"
    perplexity = min(_PERPLEXITY, math.sqrt(len(axes)))
    made = TSNE(
        init="pca", perplexity=perplexity, max_iter=_ITERATIONS, random_state=0
    ).fit_transform(axes)
    return made, f"t-SNE of {width} principal components"


def _fitted(places: np.ndarray) -> list[tuple[float, float]]:
    """``places`` stretched to the picture, in tenths of its units."""
    low, high = places.min(axis=0), places.max(axis=0)
    shares = (places - low) / np.where(high > low, high - low, 1)
    size = np.array([WIDTH, HEIGHT]) - 2 * _MARGIN
    return [(round(x, 1), round(y, 1)) for x, y in (_MARGIN + shares * size).tolist()]

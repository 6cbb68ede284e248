"""Clusters are joined by pairs: frames of a film, many copies, several geometries."""

import numpy as np
import pytest

from tl_pipeline.data.near_duplicates import find

CLASSES, EACH = 6, 70


def images(
    seed: int, width: int, spread: float, each: int = EACH
) -> tuple[np.ndarray, np.ndarray]:
    """Independent images: classes whose centres lie ``spread`` deviations apart."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), each)
    centres = spread * rng.normal(size=(CLASSES, width))
    vectors = centres[labels] + rng.normal(size=(len(labels), width))
    return vectors.astype(np.float32), labels


def film(vectors: np.ndarray, frames: int, step: float) -> np.ndarray:
    """``frames`` that begin at the first image, each ``step`` deviations further."""
    rng = np.random.default_rng(2)
    way = np.cumsum(rng.normal(size=(frames, vectors.shape[1])), axis=0)
    return (vectors[0] + step * way).astype(np.float32)


def test_frames_of_a_film_are_one_cluster_though_its_ends_are_no_pair():
    vectors, labels = images(0, width=48, spread=1)
    frames = film(vectors, frames=150, step=0.12)
    found = find(
        np.concatenate([vectors, frames]), np.append(labels, [labels[0]] * 150)
    )
    film_rows = np.arange(len(vectors), len(vectors) + 150)
    assert len(set(found.clusters[film_rows])) == 1
    assert found.clusters[film_rows[0]] >= 0
    pairs = {tuple(pair) for pair in found.pairs.tolist()}
    assert (film_rows[0], film_rows[1]) in pairs
    assert (film_rows[0], film_rows[-1]) not in pairs


def test_more_copies_than_neighbours_are_kept_are_one_cluster_and_nothing_else():
    """Each copy differs from the others, by less than from any image.

    They are fewer than the other images of their class, which say what is usual there.
    """
    vectors, labels = images(0, width=48, spread=1, each=400)
    rng = np.random.default_rng(3)
    copies = vectors[7] + 0.05 * rng.normal(size=(150, 48)).astype(np.float32)
    found = find(
        np.concatenate([vectors, copies]), np.append(labels, [labels[7]] * 150)
    )
    members = np.flatnonzero(found.clusters >= 0)
    assert members.tolist() == [7, *range(len(vectors), len(vectors) + 150)]
    assert len(set(found.clusters[members])) == 1


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("width", "spread"),
    [(width, spread) for width in (8, 48, 256) for spread in (0.3, 1.0, 5.0)],
)
def test_independent_images_are_no_pairs(seed: int, spread: float, width: int):
    vectors, labels = images(seed, width, spread)
    assert find(vectors, labels).pairs.tolist() == []

"""Near duplicates are found among lookalikes, and lookalikes are not."""

import numpy as np
import pytest

from tl_pipeline.data import near_duplicates
from tl_pipeline.data.near_duplicates import find

CLASSES, EACH, WIDTH = 6, 70, 48


@pytest.fixture
def images() -> tuple[np.ndarray, np.ndarray]:
    """Classes that overlap; the dimensions differ in scale by a hundred."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), EACH)
    centres = rng.normal(size=(CLASSES, WIDTH))
    vectors = centres[labels] + rng.normal(size=(len(labels), WIDTH))
    return (vectors * np.geomspace(0.1, 10, WIDTH)).astype(np.float32), labels


def planted(
    vectors: np.ndarray, labels: np.ndarray, originals: list[int], noise: float = 0.05
) -> tuple[np.ndarray, np.ndarray]:
    """Copies of ``originals``, a little changed, behind all others."""
    rng = np.random.default_rng(1)
    change = rng.normal(size=(len(originals), WIDTH)) * vectors.std(axis=0)
    copies = (vectors[originals] + noise * change).astype(np.float32)
    return np.concatenate([vectors, copies]), np.append(labels, labels[originals])


def test_planted_copies_are_found_and_nothing_else(
    images: tuple[np.ndarray, np.ndarray],
) -> None:
    originals, size = [3, 100, 250], CLASSES * EACH
    found = find(*planted(*images, originals))
    assert found.pairs.tolist() == [[3, size], [100, size + 1], [250, size + 2]]
    assert (found.similarity > 0.9).all()
    assert sorted(np.flatnonzero(found.clusters == 1)) == [100, size + 1]
    assert (found.clusters >= 0).sum() == 6


def test_data_without_copies_have_none(images: tuple[np.ndarray, np.ndarray]) -> None:
    found = find(*images)
    assert len(found.pairs) == 0
    assert (found.clusters == -1).all()
    assert 0 < found.ratio <= 0.6


def test_several_copies_of_one_image_are_one_cluster(
    images: tuple[np.ndarray, np.ndarray],
) -> None:
    found = find(*planted(*images, [7, 7, 7]))
    size = CLASSES * EACH
    assert sorted(np.flatnonzero(found.clusters == 0)) == [7, size, size + 1, size + 2]


@pytest.mark.parametrize("copies", [65, 150, 300])
def test_a_cluster_larger_than_the_neighbours_kept_is_still_one(
    images: tuple[np.ndarray, np.ndarray], copies: int
) -> None:
    """All of an image's 64 neighbours are copies, and each has others."""
    found = find(*planted(*images, [7] * copies, noise=0.02))
    assert np.bincount(found.clusters[found.clusters >= 0]).tolist() == [copies + 1]
    assert len(found.pairs) <= 64 * (copies + 1)


@pytest.mark.parametrize("apart", [0, 5, 20])
@pytest.mark.parametrize(("width", "classes"), [(8, 10), (30, 5), (100, 40), (30, 250)])
def test_independent_draws_are_none_however_far_classes_lie_apart(
    width: int, classes: int, apart: int
) -> None:
    rng = np.random.default_rng([width, classes, apart])
    labels = np.arange(2000) % classes
    centres = apart * rng.normal(size=(classes, width))
    vectors = centres[labels] + rng.normal(size=(2000, width))
    found = find(vectors.astype(np.float32), labels)
    assert (found.clusters >= 0).sum() <= 2
    copies = vectors[:10] + 0.003 * rng.normal(size=(10, width))
    both = np.concatenate([vectors, copies]).astype(np.float32)
    pairs = find(both, np.append(labels, labels[:10])).pairs.tolist()
    assert all([i, 2000 + i] in pairs for i in range(10))


def test_an_object_within_a_class_is_no_duplicate_of_itself() -> None:
    """A class of three kinds that lie far apart: each kind is many images."""
    rng = np.random.default_rng(5)
    labels = np.arange(900) % 3
    kinds = 10 * rng.normal(size=(9, 30))
    vectors = kinds[np.arange(900) % 9] + rng.normal(size=(900, 30))
    assert (find(vectors.astype(np.float32), labels).clusters == -1).all()


def test_the_scale_of_dimensions_does_not_matter(
    images: tuple[np.ndarray, np.ndarray],
) -> None:
    vectors, labels = planted(*images, [3, 100])
    scaled = vectors * np.geomspace(5, 0.01, WIDTH).astype(np.float32) + 2
    assert find(scaled, labels).pairs.tolist() == find(vectors, labels).pairs.tolist()


def test_rows_compared_at_a_time_do_not_matter(
    images: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, labels = planted(*images, [3, 100, 100, 250])
    whole = find(vectors, labels)
    monkeypatch.setattr(near_duplicates, "_CELLS", 1000)
    parts = find(vectors, labels)
    assert parts.pairs.tolist() == whole.pairs.tolist()
    assert parts.clusters.tolist() == whole.clusters.tolist()


def test_comparisons_that_are_skipped_change_nothing(
    images: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pairs are those of all distances, however few are looked at at a time."""
    vectors, labels = planted(*images, [3, 100, 100, 250], noise=0.3)
    points = near_duplicates.whiten(vectors).astype(np.float64)
    distances = 1 - points @ points.T
    other = labels[:, None] != labels
    foreign = np.where(other, distances, np.inf).min(axis=1)
    np.fill_diagonal(distances, np.inf)
    near = distances < 0.7 * np.minimum(foreign[:, None], foreign)
    right = np.argwhere(np.triu(near & ~other))
    assert len(right) == 6
    for columns in (7, 4096):
        monkeypatch.setattr(near_duplicates, "_COLUMNS", columns)
        assert find(vectors, labels, 0.7).pairs.tolist() == right.tolist()


def test_of_two_classes_the_ratio_is_fixed(
    images: tuple[np.ndarray, np.ndarray],
) -> None:
    vectors, labels = images
    two = labels < 2
    assert find(vectors[two], labels[two]).ratio == 0.5


def test_a_given_ratio_replaces_the_calibrated_one(
    images: tuple[np.ndarray, np.ndarray],
) -> None:
    vectors, labels = planted(*images, [3])
    assert find(vectors, labels, ratio=0.99).ratio == 0.99
    assert len(find(vectors, labels, ratio=0.99).pairs) > 1
    assert len(find(vectors, labels, ratio=1e-6).pairs) == 0


def test_copies_under_two_labels_are_not_near_duplicates(
    images: tuple[np.ndarray, np.ndarray],
) -> None:
    vectors, labels = planted(*images, [3])
    labels[-1] = 5
    assert len(find(vectors, labels).pairs) == 0


def test_copies_under_two_labels_hide_no_others(
    images: tuple[np.ndarray, np.ndarray],
) -> None:
    """Ten images in a hundred have one: chance is measured at the others."""
    usual = find(*images).ratio
    vectors, labels = planted(*images, [*range(5, 415, 20)], noise=0.01)
    labels[CLASSES * EACH :] = (labels[CLASSES * EACH :] + 1) % CLASSES
    size = len(labels)
    found = find(*planted(vectors, labels, [3, 100, 250]))
    assert found.pairs.tolist() == [[3, size], [100, size + 1], [250, size + 2]]
    assert found.ratio == pytest.approx(usual, abs=0.05)


@pytest.mark.parametrize("rows", [2, 3, 5])
def test_a_handful_of_images_is_no_fault(
    images: tuple[np.ndarray, np.ndarray], rows: int
) -> None:
    vectors, _ = images
    found = find(vectors[:rows], np.arange(rows) % 2)
    assert found.clusters.shape == (rows,)


def test_equal_embeddings_are_no_fault() -> None:
    labels = np.arange(8) % 2
    found = find(np.ones((8, 4), np.float32), labels)
    assert np.isfinite(found.similarity).all()

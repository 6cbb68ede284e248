"""Unit vectors: the nearest are those of all cosines, never those of other parts."""

import os

import numpy as np
import pyarrow as pa
import pytest

from tl_pipeline.maintenance import gc
from tl_pipeline.store import unit_vectors
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder

KEY = "e" * 32


def ids(start: int, end: int) -> list[str]:
    return [f"{number:032x}" for number in range(start, end)]


@pytest.fixture
def folder(store: Store) -> EmbeddingFolder:
    """300 images in three parts; two have the same vector, one has no direction."""
    values = np.random.default_rng(1).normal(size=(300, 5)).astype(np.float32)
    values[[7, 250]] = values[11] * 4
    values[5] = 0
    made = EmbeddingFolder(store, KEY)
    for start in (200, 0, 100):
        made.add(ids(start, start + 100), values[start : start + 100])
    return made


@pytest.mark.parametrize("cells", [1, 70, 1 << 22])
@pytest.mark.parametrize("queries", [1, 12])
def test_the_nearest_are_those_of_all_cosines(
    store: Store,
    folder: EmbeddingFolder,
    monkeypatch: pytest.MonkeyPatch,
    cells: int,
    queries: int,
):
    monkeypatch.setattr(unit_vectors, "_CELLS", cells)
    loaded = folder.load(folder.embedded())
    whole = [row for row, name in enumerate(loaded.image_ids) if name != ids(5, 6)[0]]
    known = loaded.vectors[whole].astype(float)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    asked = loaded.vectors[8 : 8 + queries] * 2
    found = unit_vectors.opened(store, KEY)
    for query, near in zip(asked, found.nearest(asked, 9), strict=True):
        cosines = known @ query / np.linalg.norm(query)
        best = np.argsort(-cosines.astype(np.float32), kind="stable")[:9]
        assert [name for name, _ in near] == [loaded.image_ids[whole[b]] for b in best]
        assert [cosine for _, cosine in near] == pytest.approx(cosines[best], abs=1e-6)


def test_equal_vectors_are_equally_near_and_sorted_by_id(
    store: Store, folder: EmbeddingFolder
):
    vector = folder.load(ids(7, 8)).vectors
    found = unit_vectors.opened(store, KEY)
    (near,) = found.nearest(vector, 2)
    assert near == [(ids(7, 8)[0], 1.0), (ids(11, 12)[0], 1.0)]
    among = found.among(pa.array(ids(8, 300)))
    (near,) = found.nearest(vector, 2, among)
    assert [name for name, _ in near] == [*ids(11, 12), *ids(250, 251)]
    (few,) = found.nearest(vector, 9, found.among(pa.array(ids(250, 252))))
    assert sorted(name for name, _ in few) == ids(250, 252)
    assert found.nearest(np.zeros((1, 5)), 2) == [[]]
    assert found.nearest(vector, 0) == [[]]
    assert len(found.nearest(vector, 1000)[0]) == 299


@pytest.mark.usefixtures("folder")
def test_an_image_is_found_by_its_id(store: Store):
    found = unit_vectors.opened(store, KEY)
    rows = found.find([*ids(120, 121), "none", *ids(5, 6), *ids(3, 4)])
    assert [found.ids[int(rows[at])].as_py() for at in (0, 3)] == [
        *ids(120, 121),
        *ids(3, 4),
    ]
    assert rows[1:3].tolist() == [-1, -1]


def test_parts_that_came_went_or_changed_are_followed(
    store: Store, folder: EmbeddingFolder
):
    """A part of the same images by another machine has the same name."""
    before = unit_vectors.opened(store, KEY)
    folder.add(ids(300, 302), np.eye(2, 5, dtype=np.float32))
    after = unit_vectors.opened(store, KEY)
    assert (len(before.ids), len(after.ids)) == (299, 301)
    folder.add(ids(300, 302), np.eye(2, 5, 3, dtype=np.float32))
    again = unit_vectors.opened(store, KEY)
    (row,) = again.find(ids(301, 302))
    assert again.vectors[row].tolist() == [0, 0, 0, 0, 1]
    next(folder.path.glob("part-*")).unlink()
    assert len(unit_vectors.opened(store, KEY).ids) < 301
    assert len(list((store.root / "memo" / "unit_vectors").iterdir())) == 2


def test_of_an_image_in_two_parts_one_row_counts(store: Store, folder: EmbeddingFolder):
    folder.add(ids(0, 150), np.ones((150, 5), np.float32))
    found = unit_vectors.opened(store, KEY)
    assert len(found.ids) == len(set(found.ids.to_pylist())) == 300


@pytest.mark.usefixtures("folder")
def test_what_was_left_half_written_is_not_believed(store: Store):
    made = unit_vectors.opened(store, KEY)
    place = store.root / "memo" / "unit_vectors"
    next(place.glob("*.ids")).unlink()
    again = unit_vectors.opened(store, KEY)
    assert again.vectors.tolist() == made.vectors.tolist()


@pytest.mark.usefixtures("folder")
def test_a_store_that_cannot_be_written_to_has_them_for_a_while(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert len(unit_vectors.opened(store, KEY).ids) == 299
    assert not (store.root / "memo" / "unit_vectors").exists()


def test_they_go_with_their_encoder(store: Store, folder: EmbeddingFolder):
    unit_vectors.opened(store, KEY)
    folder.describe("{}")
    gc.collect(store, retention_days=0)
    assert not folder.path.exists()
    assert list((store.root / "memo" / "unit_vectors").iterdir()) == []


def test_without_embeddings_nothing_is_near(store: Store):
    found = unit_vectors.opened(store, KEY)
    assert found.nearest(np.ones((1, 3)), 4) == [[]]

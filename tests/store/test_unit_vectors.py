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


def files(store: Store) -> dict[str, int]:
    """Name -> inode."""
    place = store.root / "memo" / "unit_vectors"
    return {file.name: file.stat().st_ino for file in place.iterdir()}


def counted(found: unit_vectors.UnitVectors) -> dict[str, list[float]]:
    """The vectors by id."""
    rows = zip(found.ids.to_pylist(), found.vectors.tolist(), strict=True)
    return {name: vector for name, vector in rows if name}


def test_parts_that_came_went_or_changed_are_followed(
    store: Store, folder: EmbeddingFolder
):
    """A part of the same images by another machine has the same name."""
    before = unit_vectors.opened(store, KEY)
    first, known = files(store), counted(before)
    folder.add(ids(300, 302), np.eye(2, 5, dtype=np.float32))
    after = unit_vectors.opened(store, KEY)
    assert (len(counted(before)), len(counted(after))) == (299, 301)
    folder.add(ids(300, 302), np.eye(2, 5, 3, dtype=np.float32))
    again = unit_vectors.opened(store, KEY)
    new = {ids(300, 301)[0]: [0, 0, 0, 1, 0], ids(301, 302)[0]: [0, 0, 0, 0, 1]}
    assert counted(again) == known | new
    next(folder.path.glob("part-*")).unlink()
    left = counted(unit_vectors.opened(store, KEY))
    assert left.keys() == folder.embedded() - {ids(5, 6)[0]}
    assert left.items() <= counted(again).items()
    values = [name for name in first if name.endswith(".f32")]
    assert {name: files(store)[name] for name in values} == {
        name: first[name] for name in values
    }
    assert len(files(store)) == 2
    assert counted(before) == known  # what is mapped stays as it was


def test_rows_of_no_part_do_not_pile_up(store: Store, folder: EmbeddingFolder):
    """As after ``tl store compact``."""
    unit_vectors.opened(store, KEY)
    first = files(store)
    loaded = folder.load(folder.embedded())
    for part in folder.path.glob("part-*"):
        part.unlink()
    folder.add(loaded.image_ids, loaded.vectors)
    found = unit_vectors.opened(store, KEY)
    assert (len(found.vectors), len(counted(found))) == (300, 299)
    assert len(files(store)) == 2
    assert files(store).keys() & first.keys() == {f"{KEY}.arrow"}


def test_of_an_image_in_two_parts_one_row_counts(store: Store, folder: EmbeddingFolder):
    """That of the larger part; the other counts once that is gone."""
    before = counted(unit_vectors.opened(store, KEY))
    folder.add(ids(0, 150), np.ones((150, 5), np.float32))
    ones = dict.fromkeys(ids(0, 150), pytest.approx([0.2**0.5] * 5))
    assert counted(unit_vectors.opened(store, KEY)) == before | ones
    (larger,) = [p for p, rows in folder.parts().whole.items() if len(rows) == 150]
    larger.unlink()
    assert counted(unit_vectors.opened(store, KEY)) == before


@pytest.mark.parametrize("ending", ["arrow", "f32"])
@pytest.mark.parametrize("left", [None, 50])
@pytest.mark.usefixtures("folder")
def test_what_is_not_whole_is_not_believed(store: Store, ending: str, left: int | None):
    made = counted(unit_vectors.opened(store, KEY))
    (file,) = (store.root / "memo" / "unit_vectors").glob(f"*.{ending}")
    if left is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:left])
    assert counted(unit_vectors.opened(store, KEY)) == made


def test_what_a_killed_writer_appended_is_not_believed(
    store: Store, folder: EmbeddingFolder
):
    made = counted(unit_vectors.opened(store, KEY))
    (values,) = (store.root / "memo" / "unit_vectors").glob("*.f32")
    with values.open("ab") as file:
        file.write(b"x" * 33)
    folder.add(ids(300, 301), np.eye(1, 5, dtype=np.float32))
    found = unit_vectors.opened(store, KEY)
    assert counted(found) == made | {ids(300, 301)[0]: [1, 0, 0, 0, 0]}
    assert values.stat().st_size == 301 * 5 * 4


def test_under_several_encoders_the_mean_of_cosines_counts(
    store: Store, folder: EmbeddingFolder
):
    other = EmbeddingFolder(store, "f" * 32)
    values = np.random.default_rng(2).normal(size=(200, 3)).astype(np.float32)
    other.add(ids(250, 300) + ids(0, 150), values)
    every = [unit_vectors.opened(store, key) for key in (KEY, "f" * 32)]
    joint = unit_vectors.side_by_side(every, ids(2, 300))
    shared = [*ids(2, 5), *ids(6, 150), *ids(250, 300)]
    assert joint.ids.to_pylist() == shared

    def cosines(part: EmbeddingFolder) -> np.ndarray:
        vectors = part.load(shared).vectors.astype(float)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors @ vectors[:4].T

    mean = (cosines(folder) + cosines(other)) / 2
    found = joint.nearest(joint.vectors[:4], 3)
    for near, said in zip(found, mean.T, strict=True):
        best = np.argsort(-said, kind="stable")[:3]
        assert [name for name, _ in near] == [shared[row] for row in best]
        assert [cosine for _, cosine in near] == pytest.approx(said[best], abs=1e-6)


@pytest.mark.usefixtures("folder")
def test_a_store_that_cannot_be_written_to_has_them_for_a_while(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert len(counted(unit_vectors.opened(store, KEY))) == 299
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

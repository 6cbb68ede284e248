"""The folder of embedding parts: exact, and as good as its undamaged files."""

import itertools
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tl_pipeline.artifacts import Store
from tl_pipeline.embeddings import EmbeddingFolder
from tl_pipeline.errors import DamagedArtifact

IDS = st.text("0123456789abcdef", min_size=1, max_size=32)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def opened(root: Path) -> EmbeddingFolder:
    """An empty folder of embeddings in a new store."""
    store = Store.open(root)
    store.create()
    folder = EmbeddingFolder(store, "0" * 32)
    folder.describe("{}")
    return folder


@pytest.fixture
def parts(tmp_path: Path) -> EmbeddingFolder:
    """An empty folder of embeddings."""
    return opened(tmp_path / "store")


def some(ids: str) -> np.ndarray:
    """A vector of eight noisy numbers for every character of ``ids``."""
    return np.stack(
        [np.random.default_rng(ord(i)).normal(size=8).astype("f4") for i in ids]
    )


def files(folder: EmbeddingFolder, pattern: str) -> list[Path]:
    """The files of that pattern."""
    return sorted(folder.path.glob(pattern))


@st.composite
def parts_of_one_width(draw) -> list[tuple[list[str], np.ndarray]]:
    """Up to three parts with distinct ids and any finite float32 matrix."""
    ids = draw(st.lists(IDS, min_size=1, max_size=30, unique=True))
    shape = (len(ids), draw(st.integers(1, 40)))
    matrix = draw(arrays.arrays(np.float32, shape, elements=FINITE))
    cuts = sorted(draw(st.lists(st.integers(0, len(ids)), max_size=2)))
    edges = [0, *cuts, len(ids)]
    spans = [slice(a, b) for a, b in itertools.pairwise(edges) if a < b]
    return [(ids[span], matrix[span]) for span in spans]


@settings(deadline=None, database=None, max_examples=60)
@given(parts_of_one_width())
def test_what_is_added_is_loaded_bit_for_bit_and_sorted(
    given_parts: list[tuple[list[str], np.ndarray]],
):
    with tempfile.TemporaryDirectory() as root:
        folder = opened(Path(root) / "store")
        for ids, vectors in given_parts:
            folder.add(ids, vectors)
        expected = {
            i: row.tobytes()
            for ids, vectors in given_parts
            for i, row in zip(ids, vectors, strict=True)
        }
        found = folder.load(expected)
        assert found.image_ids == sorted(expected)
        assert found.vectors.dtype == np.float32
        rows = [row.tobytes() for row in found.vectors]
        assert dict(zip(found.image_ids, rows, strict=True)) == expected
        assert folder.embedded() == expected.keys()


def test_only_what_is_wanted_and_there_is_loaded(parts: EmbeddingFolder):
    parts.add(list("dbf"), some("dbf"))
    parts.add(list("ace"), some("ace"))
    found = parts.load(["e", "b", "d", "missing"])
    assert found.image_ids == list("bde")
    assert np.array_equal(found.vectors, some("bde"))


def test_nothing_there_is_nothing_loaded(parts: EmbeddingFolder):
    found = parts.load(["a"])
    assert (found.image_ids, len(found.vectors)) == ([], 0)
    assert parts.embedded() == set()
    assert parts.refused() == {}


def test_an_image_in_two_parts_is_loaded_once(parts: EmbeddingFolder):
    parts.add(list("ab"), some("ab"))
    parts.add(list("bc"), some("bc"))
    found = parts.load("abc")
    assert found.image_ids == list("abc")
    assert np.array_equal(found.vectors, some("abc"))


def test_any_float_matrix_is_kept_as_float32(parts: EmbeddingFolder):
    parts.add(list("ab"), some("ab").astype(np.float64).T.copy().T)
    assert np.array_equal(parts.load("ab").vectors, some("ab"))


def test_large_parts_of_many_row_groups_keep_their_order(parts: EmbeddingFolder):
    ids = [f"{i:06d}" for i in range(40_000)]
    vectors = np.arange(80_000, dtype=np.float32).reshape(-1, 2)
    parts.add(ids, vectors)
    assert np.array_equal(parts.load(ids).vectors, vectors)


def test_the_encoder_is_described_once(parts: EmbeddingFolder):
    parts.describe('{"another": 1}')
    assert (parts.path / "encoder.json").read_text() == "{}"


def test_refused_images_keep_reason_and_detail(parts: EmbeddingFolder):
    parts.refuse([("a", "undecodable", "broken ü"), ("b", "empty", "")])
    parts.refuse([("c", "changed", "x")])
    assert parts.refused() == {
        "a": ("undecodable", "broken ü"),
        "b": ("empty", ""),
        "c": ("changed", "x"),
    }
    assert parts.embedded() == set()


def test_first_seen_is_kept_while_an_image_is_refused_for_the_same_reason(
    parts: EmbeddingFolder,
):
    began = datetime.now(UTC)
    parts.refuse([("a", "unreadable", "gone"), ("b", "unreadable", "gone")])
    first = {i: row["first_seen"] for i, row in parts.refusals().items()}
    assert all(began <= seen <= datetime.now(UTC) for seen in first.values())
    parts.refuse([("a", "unreadable", "still"), ("b", "empty", "")])
    parts.refuse([("a", "unreadable", "still"), ("c", "empty", "")])
    found = parts.refusals()
    assert found["a"]["first_seen"] == first["a"]
    assert found["b"]["first_seen"] > first["b"]
    assert found["b"]["reason"] == "empty"  # the last one, whatever its file is called


def test_an_image_that_was_embedded_later_is_refused_no_more(parts: EmbeddingFolder):
    parts.refuse([("a", "unreadable", "gone"), ("b", "empty", "")])
    parts.add(["a"], some("a"))
    assert parts.refused() == {"b": ("empty", "")}


def test_refusals_of_an_older_version_have_no_time(parts: EmbeddingFolder):
    parts.refuse([("a", "undecodable", "x"), ("b", "unreadable", "gone")])
    (file,) = files(parts, "refused-*")
    pq.write_table(pq.read_table(file).drop_columns("first_seen"), file)
    assert parts.refused() == {"a": ("undecodable", "x"), "b": ("unreadable", "gone")}
    parts.refuse([("b", "unreadable", "gone"), ("c", "empty", "")])
    found = {i: row["first_seen"] for i, row in parts.refusals().items()}
    assert found["a"] is found["b"] is None
    assert found["c"] is not None
    with parts.writing():
        assert len(files(parts, "refused-*")) == 2


def truncate(file: Path) -> None:
    """Cut the file in the middle."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("damage", [truncate, lambda file: file.write_bytes(b"")])
def test_a_truncated_part_does_not_count_and_is_set_aside(
    parts: EmbeddingFolder, damage
):
    parts.add(list("ab"), some("ab"))
    damage(files(parts, "part-*")[0])
    parts.add(list("cd"), some("cd"))
    assert parts.embedded() == set("cd")
    assert parts.load("abcd").image_ids == list("cd")
    with parts.writing():
        assert len(files(parts, "part-*")) == 1
    assert len(files(parts, ".damaged-part-*")) == 1
    parts.add(list("ab"), some("ab"))
    assert np.array_equal(parts.load("abcd").vectors, some("abcd"))


def test_a_truncated_table_of_refusals_is_set_aside(parts: EmbeddingFolder):
    parts.refuse([("a", "undecodable", "x")])
    truncate(files(parts, "refused-*")[0])
    assert parts.refused() == {}
    with parts.writing():
        assert files(parts, "refused-*") == []


def test_what_a_killed_writer_left_is_swept(parts: EmbeddingFolder):
    (parts.path / ".writing-0").write_bytes(b"half a part")
    with parts.writing():
        assert files(parts, ".writing-*") == []


def test_a_damaged_data_page_is_noticed_and_computed_anew(parts: EmbeddingFolder):
    parts.add(list("ab"), some("ab"))
    parts.add(list("cd"), some("cd"))
    file = next(
        f for f in files(parts, "part-*") if some("ab").tobytes() in f.read_bytes()
    )
    data = bytearray(file.read_bytes())
    data[data.index(some("ab").tobytes()) + 17] ^= 0xFF
    file.write_bytes(data)
    assert parts.embedded() == set("abcd")  # ids are whole: only reading can tell
    with pytest.raises(DamagedArtifact, match="set aside"):
        parts.load("abcd")
    assert parts.embedded() == set("cd")
    assert len(files(parts, ".damaged-part-*")) == 1
    assert np.array_equal(parts.load("abcd").vectors, some("cd"))


def test_damage_in_a_part_that_is_not_wanted_does_no_harm(parts: EmbeddingFolder):
    parts.add(list("ab"), some("ab"))
    file = files(parts, "part-*")[0]
    data = bytearray(file.read_bytes())
    data[data.index(some("ab").tobytes())] ^= 0xFF
    file.write_bytes(data)
    parts.add(list("cd"), some("cd"))
    assert np.array_equal(parts.load("cd").vectors, some("cd"))


def flips(data: bytes):
    """Copies of ``data`` with one byte changed, at every place in turn."""
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 0x41
        yield place, bytes(changed)


def test_one_changed_byte_of_a_part_never_gives_other_vectors(parts: EmbeddingFolder):
    parts.add(list("ab"), some("ab"))
    file = files(parts, "part-*")[0]
    lied, crashed = [], {}
    for place, changed in flips(file.read_bytes()):
        file.write_bytes(changed)
        try:
            found = parts.load("ab")
        except DamagedArtifact:
            continue
        except Exception as error:  # noqa: BLE001 - all are gathered for the message
            crashed[place] = repr(error)
            continue
        whole = found.image_ids == list("ab")
        if found.image_ids and not (
            whole and np.array_equal(found.vectors, some("ab"))
        ):
            lied.append(place)
    assert (lied, crashed) == ([], {})


def test_one_changed_byte_of_a_table_of_refusals_refuses_nothing_else(
    parts: EmbeddingFolder,
):
    parts.refuse([("a" * 32, "undecodable", "image file is truncated")])
    true = parts.refused()
    file = files(parts, "refused-*")[0]
    lied, crashed = [], {}
    for place, changed in flips(file.read_bytes()):
        file.write_bytes(changed)
        try:
            found = parts.refused()
        except Exception as error:  # noqa: BLE001 - all are gathered for the message
            crashed[place] = repr(error)
            continue
        if found not in ({}, true):
            lied.append(place)
    assert (lied, crashed) == ([], {})

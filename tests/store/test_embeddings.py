"""The folder of embedding parts: exact, and as good as its undamaged files."""

import errno
import itertools
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tl_pipeline.errors import DamagedArtifact, StoreError
from tl_pipeline.store import duplicate_rows, part_files
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder, described
from tl_pipeline.store.files import why
from tl_pipeline.store.part_index import Scan

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
    """The files of that pattern, parts and others."""
    found = (*folder.path.glob(pattern), *folder.about.glob(pattern))
    return sorted(found)


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
    assert (parts.about / "encoder.json").read_text() == "{}"


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


def part_of(folder: EmbeddingFolder, ids: str) -> Path:
    """The part file that holds the vectors of ``ids``."""
    return next(
        f for f in files(folder, "part-*") if some(ids).tobytes() in f.read_bytes()
    )


def flip(file: Path, place: int) -> None:
    """Change one byte of ``file``."""
    data = bytearray(file.read_bytes())
    data[place] ^= 0xFF
    file.write_bytes(data)


def test_a_damaged_vector_is_noticed_before_its_part_counts(parts: EmbeddingFolder):
    parts.add(list("ab"), some("ab"))
    parts.add(list("cd"), some("cd"))
    file = part_of(parts, "ab")
    flip(file, file.read_bytes().index(some("ab").tobytes()) + 17)
    assert parts.embedded() == set("cd")
    assert file.exists()  # only the one writer sets aside
    with parts.writing():
        assert not file.exists()
    (aside,) = files(parts, ".damaged-part-*")
    assert "CRC" in (why(aside) or "")
    parts.add(list("ab"), some("ab"))
    assert np.array_equal(parts.load("abcd").vectors, some("abcd"))


def test_a_vector_damaged_after_its_part_was_believed_is_noticed_by_load(
    parts: EmbeddingFolder,
):
    parts.add(list("ab"), some("ab"))
    parts.add(list("cd"), some("cd"))
    assert parts.embedded() == set("abcd")
    file = part_of(parts, "ab")
    place = file.read_bytes().index(some("ab").tobytes()) + 17

    def rot() -> Scan:
        # the disk changes its mind: neither size nor times tell of it
        found = look()
        flip(file, place)
        return found

    look, parts._parts.scan = parts._parts.scan, rot
    with pytest.raises(DamagedArtifact, match="set aside"):
        parts.load("abcd")
    parts._parts.scan = look
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


def flips(data: bytes, mask: int = 0x41):
    """Copies of ``data`` with one byte changed, at every place in turn."""
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= mask
        yield place, bytes(changed)


@pytest.mark.parametrize("mask", [0x01, 0x41, 0x80])
def test_one_changed_byte_of_a_part_never_gives_other_rows(
    parts: EmbeddingFolder, mask: int
):
    parts.add(list("ab"), some("ab"))
    file = files(parts, "part-*")[0]
    lied, noticed = [], 0
    for place, changed in flips(file.read_bytes(), mask):
        file.write_bytes(changed)
        try:
            ids, vectors = part_files.read_part(file)
            part_files.check_part(file)
        except part_files.DamagedPartError:
            noticed += 1
            continue
        if ids != list("ab") or not np.array_equal(vectors, some("ab")):
            lied.append(place)
    assert lied == []
    assert noticed > 300  # magic, page headers, ids, vectors, most of the footer


def test_a_part_cut_anywhere_is_damaged(parts: EmbeddingFolder):
    parts.add(list("ab"), some("ab"))
    file = files(parts, "part-*")[0]
    data = file.read_bytes()
    for length in range(len(data)):
        file.write_bytes(data[:length])
        with pytest.raises(part_files.DamagedPartError):
            part_files.check_part(file)


def test_a_part_that_holds_other_rows_than_its_name_says_is_damaged(
    parts: EmbeddingFolder,
):
    parts.add(list("ab"), some("ab"))
    (named,) = files(parts, "part-*")
    parts.add(list("a"), some("a"))
    (other,) = set(files(parts, "part-*")) - {named}
    other.replace(named)
    assert parts.embedded() == set()
    (why,) = parts.parts().damaged.values()
    assert why == "its 1 rows are not those of its name"


def test_values_that_are_not_numbers_are_no_damage(parts: EmbeddingFolder):
    vectors = some("ab")
    vectors[0, 3] = np.nan
    parts.add(list("ab"), vectors)
    assert parts.embedded() == set("ab")
    assert np.isnan(parts.load("ab").vectors[0, 3])


def test_a_file_that_cannot_be_read_now_is_not_called_damaged(
    parts: EmbeddingFolder, monkeypatch: pytest.MonkeyPatch
):
    parts.add(list("ab"), some("ab"))

    def refused(*_: object, **__: object):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(part_files.pq, "ParquetFile", refused)
    with pytest.raises(StoreError, match=r"cannot read .*part-.*Permission denied"):
        parts.embedded()


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


def counted(folder: EmbeddingFolder, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the parts that ``folder`` reads from now on."""
    seen: list[str] = []
    read = folder._parts._read

    def note(file: Path):
        seen.append(file.name)
        return read(file)

    monkeypatch.setattr(folder._parts, "_read", note)
    return seen


def opened_again(parts: EmbeddingFolder, *, trust: bool = True) -> EmbeddingFolder:
    """The same folder as another process sees it."""
    return EmbeddingFolder(parts._store, parts.encoder_key, trust=trust)


def test_what_was_read_through_once_is_believed_until_it_changes(
    parts: EmbeddingFolder, monkeypatch: pytest.MonkeyPatch
):
    parts.add(list("ab"), some("ab"))
    parts.add(list("cd"), some("cd"))
    assert parts.embedded() == set("abcd")
    again = opened_again(parts)
    seen = counted(again, monkeypatch)
    assert again.embedded() == set("abcd")
    assert seen == []
    parts.add(list("e"), some("e"))
    assert again.embedded() == set("abcde")
    assert len(seen) == 1
    part_of(parts, "ab").touch()
    assert again.embedded() == set("abcde")
    assert seen[1:] == [part_of(parts, "ab").name]
    strict = opened_again(parts, trust=False)
    seen = counted(strict, monkeypatch)
    assert strict.embedded() == set("abcde")
    assert len(seen) == 3


@pytest.mark.parametrize("damage", [truncate, Path.unlink, lambda f: flip(f, 40)])
def test_a_lost_or_damaged_memo_costs_a_reading_and_no_more(
    parts: EmbeddingFolder, monkeypatch: pytest.MonkeyPatch, damage
):
    parts.add(list("ab"), some("ab"))
    parts.refuse([("c", "empty", "")])
    assert parts.embedded() == set("ab")
    memos = sorted((parts._store.root / "memo" / "parts").glob("*"))
    assert memos
    for memo in memos:
        damage(memo)
    again = opened_again(parts)
    seen = counted(again, monkeypatch)
    assert again.embedded() == set("ab")
    assert again.refused() == {"c": ("empty", "")}
    assert len(seen) == 1


def test_planning_remembers_nothing(parts: EmbeddingFolder):
    parts.add(list("ab"), some("ab"))
    with parts._store.overlay() as overlay:
        assert EmbeddingFolder(overlay, parts.encoder_key).embedded() == set("ab")
    assert not (parts._store.root / "memo").exists()


def rows_in_files(folder: EmbeddingFolder) -> list[str]:
    """The ids in all parts, doubled ones twice."""
    tables = folder.parts().whole.values()
    return sorted(i for rows in tables for i in rows["image_id"].to_pylist())


def test_the_next_writer_takes_doubled_rows_away(parts: EmbeddingFolder):
    parts.add(list("abcd"), some("abcd"))
    parts.add(list("cde"), some("cde"))
    parts.add(list("ae"), some("ae"))
    parts.add(list("fb"), some("fb"))
    assert np.array_equal(parts.load("abcdef").vectors, some("abcdef"))
    with parts.writing():
        assert rows_in_files(parts) == list("abcdef")
    assert part_of(parts, "abcd").exists()
    assert np.array_equal(parts.load("abcdef").vectors, some("abcdef"))


def test_a_writer_killed_while_it_takes_doubled_rows_away_loses_none(
    parts: EmbeddingFolder, monkeypatch: pytest.MonkeyPatch
):
    """Killed before each unlinking in turn, and after it."""
    parts.add(list("abcd"), some("abcd"))
    parts.add(list("cde"), some("cde"))
    parts.add(list("efg"), some("efg"))
    unlink = Path.unlink

    class Killed(Exception):
        pass

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith("part-"):
            raise Killed
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(Killed), parts.writing():
            pass
    assert len(rows_in_files(parts)) > 7
    assert np.array_equal(parts.load("abcdefg").vectors, some("abcdefg"))
    with parts.writing():
        assert rows_in_files(parts) == list("abcdefg")
    assert np.array_equal(parts.load("abcdefg").vectors, some("abcdefg"))


def test_rows_doubled_inside_one_part_are_found_too(parts: EmbeddingFolder):
    parts.add(list("aba"), some("aba"))
    ((_, again),) = duplicate_rows.find(parts.parts().whole).items()
    assert again.tolist() == [2]
    with parts.writing():
        assert rows_in_files(parts) == list("ab")
    assert np.array_equal(parts.load("ab").vectors, some("ab"))


def test_any_reader_of_parquet_reads_the_folder(parts: EmbeddingFolder):
    """Identity, refusals and speed lie elsewhere."""
    parts.add(list("ab"), some("ab"))
    parts.refuse([("c", "undecodable", "x")])
    root = parts.path.parent
    assert {f.name[:5] for f in parts.path.iterdir()} == {"part-"}
    for rows in (pd.read_parquet(root), ds.dataset(root).to_table().to_pandas()):
        assert sorted(rows["image_id"]) == ["a", "b"]
    assert (parts.about / "encoder.json").exists()


def test_what_an_older_version_wrote_is_read_and_then_moved(parts: EmbeddingFolder):
    parts.add(list("ab"), some("ab"))
    parts.refuse([("c", "undecodable", "x")])
    for file in list(parts.about.iterdir()):
        file.rename(parts.path / file.name)
    parts.about.rmdir()
    (parts.path / "speed.json").write_text("{}")
    store = Store.open(parts.path.parents[1])
    old = EmbeddingFolder(store, parts.encoder_key)
    old.describe("another")
    assert old.description.read_text() == "{}"
    assert old.refused() == {"c": ("undecodable", "x")}
    assert list(described(store)) == [parts.encoder_key]
    with old.writing():
        assert {f.name[:5] for f in old.path.iterdir()} == {"part-"}
    assert old.refused() == {"c": ("undecodable", "x")}
    assert described(store)[parts.encoder_key] == old.about / "encoder.json"
    assert old.embedded() == set("ab")

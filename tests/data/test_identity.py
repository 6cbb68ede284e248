"""An image is its bytes; a memo spares reading files that did not change."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.exhaustive import more
from tl_pipeline.config.datasets import ImageFolderSpec
from tl_pipeline.data.identity import Memo, image_id
from tl_pipeline.data.scan import Scan, scan
from tl_pipeline.sources import Entry, Source
from tl_pipeline.sources.image_folder import ImageFolder
from tl_pipeline.store.artifacts import Store

HOUR = 3_600_000_000_000


class Counting(Source):
    """An image folder that notes which files are read."""

    def __init__(self, spec: ImageFolderSpec) -> None:
        self._source = ImageFolder(spec)
        self.read_uris: list[str] = []

    def entries(self) -> Iterator[Entry]:
        return self._source.entries()

    def read(self, uri: str) -> bytes:
        self.read_uris.append(uri)
        return self._source.read(uri)


def age(file: Path, nanoseconds: int = HOUR) -> None:
    """Let ``file`` have been modified that long ago."""
    then = time.time_ns() - nanoseconds
    os.utime(file, ns=(then, then))


@pytest.fixture
def photos(folder: Path) -> list[Path]:
    """Sixty photos, an hour old."""
    files = sorted(folder.rglob("*.jpg"))
    for file in files:
        age(file)
    return files


Look = Callable[..., tuple[Scan, list[str]]]


@pytest.fixture
def look(store: Store, folder: Path) -> Look:
    """``look()`` scans the folder and tells what it found and which files it read."""
    spec = ImageFolderSpec(name="photos", path=folder)

    def look(*, trust: bool = True) -> tuple[Scan, list[str]]:
        source = Counting(spec)
        found = scan(source, spec, Memo(store, spec.name, trust=trust))
        return found, sorted(source.read_uris)

    return look


@pytest.fixture
def memo_file(store: Store) -> Path:
    return store.root / "memo" / "photos.parquet"


@pytest.mark.parametrize("data", [b"", b"an image", bytes(1000)])
def test_an_id_is_the_first_half_of_the_sha256(data: bytes):
    assert image_id(data) == hashlib.sha256(data).hexdigest()[:32]


def test_unchanged_files_are_not_read_again(look: Look, photos: list[Path]):
    first, read = look()
    assert read == [str(photo) for photo in photos]
    assert look() == (first, [])
    assert {row["uri"]: row["image_id"] for row in first.manifest.to_pylist()} == {
        str(photo): image_id(photo.read_bytes()) for photo in photos
    }


def test_another_size_or_time_is_read(look: Look, photos: list[Path]):
    look()
    longer, touched = photos[3], photos[7]
    before = longer.stat().st_mtime_ns
    longer.write_bytes(longer.read_bytes() + b"more")
    os.utime(longer, ns=(before, before))
    age(touched, 2 * HOUR)
    found, read = look()
    assert read == [str(longer), str(touched)]
    ids = {row["uri"]: row["image_id"] for row in found.manifest.to_pylist()}
    assert ids[str(longer)] == image_id(longer.read_bytes())
    assert look() == (found, [])


@pytest.mark.parametrize("nanoseconds", [0, HOUR // 3600, -HOUR], ids=str)
def test_files_modified_just_now_or_in_the_future_are_not_trusted(
    look: Look, photos: list[Path], nanoseconds: int
):
    """They could change again without another time of modification."""
    age(photos[5], nanoseconds)
    look()
    assert look()[1] == [str(photos[5])]


def test_new_files_alone_are_read(look: Look, photos: list[Path]):
    look()
    new = photos[0].with_name("new.jpg")
    new.write_bytes(photos[0].read_bytes() + b"more")
    age(new)
    assert look()[1] == [str(new)]
    assert look()[1] == []


def test_without_trust_all_is_read_and_then_remembered(
    look: Look, photos: list[Path], memo_file: Path
):
    first, _ = look()
    memo_file.unlink()
    look(trust=False)
    found, read = look(trust=False)
    assert (found, len(read)) == (first, len(photos))
    assert look() == (first, [])


def test_a_refused_file_is_read_every_time(look: Look, photos: list[Path]):
    photos[0].write_bytes(b"no image")
    age(photos[0])
    first, _ = look()
    assert [row["reason"] for row in first.quarantine.to_pylist()] == ["not an image"]
    assert look() == (first, [str(photos[0])])


def test_vanished_files_are_forgotten(look: Look, photos: list[Path]):
    look()
    data = photos[0].read_bytes()
    before = photos[0].stat().st_mtime_ns
    photos[0].unlink()
    look()
    photos[0].write_bytes(data)
    os.utime(photos[0], ns=(before, before))
    assert look()[1] == [str(photos[0])]


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    "damage",
    [lambda _: b"", lambda _: b"no parquet", truncated],
    ids=["empty", "no parquet", "truncated"],
)
@pytest.mark.usefixtures("photos")
def test_a_damaged_memo_is_forgotten(look: Look, memo_file: Path, damage: Callable):
    first, all_read = look()
    memo_file.write_bytes(damage(memo_file.read_bytes()))
    assert look() == (first, all_read)
    assert look() == (first, [])


@pytest.mark.usefixtures("photos")
def test_a_memo_of_another_form_is_forgotten(look: Look, memo_file: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    first, all_read = look()
    pq.write_table(pa.table({"uri": ["x"]}), memo_file)
    assert look() == (first, all_read)


@pytest.mark.parametrize("step", [31, *more(7)])
@pytest.mark.usefixtures("photos")
def test_one_changed_byte_of_a_memo_never_gives_another_id(
    look: Look, memo_file: Path, step: int
):
    """One byte in 31, or in 7: either it is noticed, or it does no harm."""
    first, _ = look()
    data = memo_file.read_bytes()
    lied, crashed = [], {}
    for place in range(0, len(data), step):
        changed = bytearray(data)
        changed[place] ^= 0x41
        memo_file.write_bytes(changed)
        try:
            found, _ = look()
        except Exception as error:  # noqa: BLE001 - all are gathered for the message
            crashed[place] = repr(error)
            continue
        if found != first:
            lied.append(place)
    assert (lied, crashed) == ([], {})


def test_nothing_is_written_where_there_is_no_store(
    tmp_path: Path, folder: Path, photos: list[Path]
):
    absent = Store.open(tmp_path / "absent")
    spec = ImageFolderSpec(name="photos", path=folder)
    found = scan(ImageFolder(spec), spec, Memo(absent, spec.name))
    assert len(found.manifest) == len(photos)
    assert not absent.root.exists()

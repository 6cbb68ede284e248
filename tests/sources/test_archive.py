"""What an archive gives: the same as the folder it was made of, without unpacking."""

import gzip
import io
import os
import pickle
import random
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tl_pipeline.config.datasets import ArchiveSpec, ImageFolderSpec
from tl_pipeline.data.identity import image_id
from tl_pipeline.errors import DatasetError
from tl_pipeline.sources import Entry, archive_index
from tl_pipeline.sources.archive import Archive
from tl_pipeline.sources.image_folder import ImageFolder

Files = list[tuple[str, bytes]]
TAR_MODES = {"x.tar": "w", "x.tar.gz": "w:gz", "x.tar.bz2": "w:bz2", "x.tar.xz": "w:xz"}
KINDS = ["stored.zip", "deflated.zip", *TAR_MODES]


def write(path: Path, files: Files) -> Path:
    """An archive of the kind that its name tells."""
    if path.suffix == ".zip":
        how = zipfile.ZIP_STORED if "stored" in path.name else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(path, "w", how) as archive:
            for name, data in files:
                archive.writestr(name, data)
        return path
    with tarfile.open(path, TAR_MODES[path.name]) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def opened(path: Path, **fields: Any) -> Archive:
    return Archive(ArchiveSpec(name="x", type="archive", path=path, **fields))


def listing(path: Path, **fields: Any) -> dict[str, Entry]:
    """What an archive lists: member -> entry."""
    entries = opened(path, **fields).entries()
    return {entry.uri.partition("#")[2]: entry for entry in entries}


def facts(path: Path, **fields: Any) -> dict[str, tuple[str | None, str | None]]:
    """Member -> (label, split)."""
    found = listing(path, **fields)
    return {name: (entry.label, entry.split) for name, entry in found.items()}


def named(*names: str) -> Files:
    return [(name, b"bytes of " + name.encode()) for name in names]


@contextmanager
def traced() -> Iterator[Callable[[], int]]:
    """Counts the most bytes that Python holds at once inside."""
    most = 0
    tracemalloc.start()
    try:
        yield lambda: most
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture
def photos(two_hundred: list[tuple[bytes, str]]) -> Files:
    return [
        (f"{label}/{number}.ppm", data)
        for number, (data, label) in enumerate(two_hundred)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_images_and_labels_come_back(tmp_path: Path, photos: Files, kind: str):
    source = opened(write(tmp_path / kind, photos))
    found = {image_id(source.read(e.uri)): e.label for e in source.entries()}
    assert found == {image_id(data): name.split("/")[0] for name, data in photos}


@pytest.mark.parametrize("kind", KINDS)
def test_threads_read_what_one_reads(tmp_path: Path, photos: Files, kind: str):
    source = opened(write(tmp_path / kind, photos))
    uris = [entry.uri for entry in source.entries()] * 3
    random.Random(1).shuffle(uris)
    alone = [source.read(uri) for uri in uris]
    fresh = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(fresh.read, uris)) == alone


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_written_beside_or_read_beforehand(tmp_path: Path, kind: str):
    source = opened(tmp_path / kind)
    write(tmp_path / kind, named("a/1", "b/2"))
    assert [source.read(e.uri) for e in source.entries()] == [
        b"bytes of a/1",
        b"bytes of b/2",
    ]
    assert [file.name for file in tmp_path.iterdir()] == [kind]


@pytest.mark.parametrize(
    "names",
    [
        ["bees/2", "ants/1", "ants/deep/er/0", "stray"],
        ["train/ants/1", "val/ants/2", "stray", "val/loose"],
        ["train/ants/1", "valid/ants/2", "test/ants/3", "train/stray"],
        ["train/ants/1"],
        ["Training/ants/1", "Testing/ants/2"],
        ["seg_train/seg_train/ants/1", "seg_test/seg_test/ants/2"],
        ["train/1", "bus/1"],
        ["train/ants/1", "test/ants/1", "@eaDir/1", "__MACOSX/train/ants/1"],
        [".git/1", "ants/.DS_Store", "ants/1", "bees/2"],
    ],
    ids=lambda names: names[0],
)
@pytest.mark.parametrize("kind", ["stored.zip", "x.tar"])
def test_the_layout_is_that_of_the_unpacked_folder(
    tmp_path: Path, kind: str, names: list[str]
):
    archive = write(tmp_path / kind, named(*names))
    root = tmp_path / "root"
    for name, data in named(*names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    expected = {
        str(Path(e.uri).relative_to(root)): (e.label, e.split)
        for e in ImageFolder(ImageFolderSpec(name="x", path=root)).entries()
    }
    assert facts(archive) == expected
    wrapped = write(tmp_path / f"{kind[0]}.zip", named(*(f"photos/{n}" for n in names)))
    if len({name.split("/")[0] for name in names}) > 1:
        assert facts(wrapped) == {f"photos/{n}": at for n, at in expected.items()}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat/1", "cat/2"], {"cat/1": ("cat", None), "cat/2": ("cat", None)}),
        (["d/cat/1", "README"], {"d/cat/1": ("d", None), "README": (None, None)}),
        (["./d/cat/1", "__MACOSX/d/._1"], {"./d/cat/1": ("cat", None)}),
        (["d/cat/1", "d/README"], {"d/cat/1": ("cat", None), "d/README": (None, None)}),
        (["test/cat/1"], {"test/cat/1": ("cat", None)}),
    ],
)
def test_one_folder_that_wraps_everything_is_passed_over(
    tmp_path: Path, names: list[str], expected: dict[str, tuple[str, str]]
):
    assert facts(write(tmp_path / "x.tar", named(*names))) == expected


@pytest.mark.parametrize("tool", [zipfile.ZipFile, tarfile.open])
def test_members_that_are_folders_are_no_inputs(tmp_path: Path, tool: Callable):
    for name in ("train/ants", "test/ants", "models"):
        (tmp_path / "root" / name).mkdir(parents=True)
        (tmp_path / "root" / name / "1").write_bytes(b"1")
    (tmp_path / "root" / "models" / "1").unlink()
    path = tmp_path / "packed"
    with tool(path, "w") as archive:
        add = archive.write if tool is zipfile.ZipFile else archive.add
        for file in sorted((tmp_path / "root").rglob("*")):
            options = {} if tool is zipfile.ZipFile else {"recursive": False}
            add(file, file.relative_to(tmp_path / "root"), **options)
    assert facts(path) == {
        "test/ants/1": ("ants", "test"),
        "train/ants/1": ("ants", "train"),
    }


@pytest.mark.parametrize(
    "names",
    [["train/a/1", "test/a/1", "annotations/1"], ["val/a/1", "test/a/1"]],
    ids=lambda names: names[0],
)
@pytest.mark.parametrize("wrap", ["", "photos/"])
def test_what_are_splits_is_asked_where_a_folder_would_ask(
    tmp_path: Path, names: list[str], wrap: str
):
    path = write(tmp_path / "x.zip", named(*(wrap + name for name in names)))
    with pytest.raises(
        DatasetError, match=r"look like splits, but .* 'splits: {train:"
    ):
        facts(path)


def test_the_entry_says_which_folders_are_splits(tmp_path: Path):
    names = ["x/b/1", "x/c/2", "y/b/3", "z/b/4"]
    path = write(tmp_path / "x.zip", named(*names))
    found = facts(path, splits={"train": ["x", "y"]})
    assert found == {
        "x/b/1": ("b", "train"),
        "x/c/2": ("c", "train"),
        "y/b/3": ("b", "train"),
    }
    assert facts(path, splits={})["z/b/4"] == ("z", None)


def test_a_zip_member_keeps_its_version_in_a_new_zip(tmp_path: Path):
    old = listing(write(tmp_path / "stored.zip", named("a/1", "b/2")))
    (tmp_path / "stored.zip").unlink()
    files = [("c/0", b"new"), ("a/1", b"changed"), *named("b/2")]
    new = listing(write(tmp_path / "stored.zip", files))
    assert old["b/2"].version == new["b/2"].version
    assert old["a/1"].version != new["a/1"].version


def test_a_tar_member_has_the_version_of_its_tar(tmp_path: Path):
    path = write(tmp_path / "x.tar", named("a/1", "b/2"))
    old = listing(path)
    assert len({entry.version for entry in old.values()}) == 2
    assert listing(path) == old
    os.utime(path, ns=(0, 10**18))
    new = listing(path)
    assert new["a/1"].modified_ns == 10**18
    assert new["a/1"].version != old["a/1"].version


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_archive_is_indexed_again(tmp_path: Path, kind: str):
    source = opened(write(tmp_path / kind, named("a/1")))
    (old,) = source.entries()
    write(tmp_path / kind, [("b/0", b"more" * 999), ("a/1", b"other")])
    os.utime(tmp_path / kind, ns=(0, 10**18))
    assert source.read(old.uri) == b"other"
    assert len(list(source.entries())) == 2
    (tmp_path / kind).unlink()
    with pytest.raises(OSError, match=kind):
        source.read(old.uri)


# Hostile and damaged archives


def test_hostile_members_of_a_tar_are_listed_and_not_read(tmp_path: Path):
    path = write(tmp_path / "x.tar", named("a/1", "../out", "/etc/x", "a/../../.b"))
    with tarfile.open(path, "a") as archive:
        for kind in (
            tarfile.SYMTYPE,
            tarfile.LNKTYPE,
            tarfile.CHRTYPE,
            tarfile.FIFOTYPE,
        ):
            info = tarfile.TarInfo(f"a/kind{kind.decode()}")
            info.type, info.linkname = kind, "1"
            archive.addfile(info)
    entries = listing(path)
    assert entries.pop("a/1").label == "a"
    assert len(entries) == 7
    for name, entry in entries.items():
        assert entry.label is None
        with pytest.raises(PermissionError, match=name):
            opened(path).read(entry.uri)


def test_hostile_members_of_a_zip_are_listed_and_not_read(tmp_path: Path):
    path = write(tmp_path / "stored.zip", named("a/1", "../out", "/etc/x"))
    with zipfile.ZipFile(path, "a") as archive:
        for mode in (stat.S_IFLNK, stat.S_IFBLK):
            info = zipfile.ZipInfo(f"a/{mode}")
            info.external_attr = mode << 16
            archive.writestr(info, "/etc/passwd")
    entries = listing(path)
    assert entries.pop("a/1").label == "a"
    assert len(entries) == 4
    for name, entry in entries.items():
        assert entry.label is None
        with pytest.raises(PermissionError, match=name):
            opened(path).read(entry.uri)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_member_of_a_name_counts(tmp_path: Path, kind: str):
    files = [("a/1", b"one"), ("a/1#2", b"x"), ("a/1", b"two"), ("a/1", b"three")]
    if kind.endswith("zip"):
        with pytest.warns(UserWarning, match="Duplicate name"):
            path = write(tmp_path / kind, files)
    else:
        path = write(tmp_path / kind, files)
    source = opened(path)
    found = {e.uri.partition("#")[2]: source.read(e.uri) for e in source.entries()}
    assert found == {"a/1": b"three", "a/1#2": b"x"}
    assert source.notes() == [
        "2 members are replaced by later ones of their name: 'a/1'"
    ]


def directory(path: Path, at: int, form: str, value: int) -> None:
    """Overwrite one field of the central directory's first record."""
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, data.index(b"PK\1\2") + at, value)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("at", "form", "value", "reason"),
    [
        (24, "<I", 2**30 + 1, "1073741825 bytes"),
        (24, "<I", 10, "damaged"),  # inflates to more than it says
        (24, "<I", 10**6, "damaged"),
        (16, "<I", 1, "checksum"),
        (8, "<H", 1, "encrypted"),
        (10, "<H", 14, "compressed by LZMA, which is not read"),
        (42, "<I", 7, "damaged"),
    ],
)
def test_a_zip_member_that_is_not_what_it_says_is_refused(
    tmp_path: Path, at: int, form: str, value: int, reason: str
):
    path = write(tmp_path / "deflated.zip", [("a/1", bytes(10**7))])
    directory(path, at, form, value)
    (entry,) = opened(path).entries()
    assert entry.label == "a"
    with pytest.raises(OSError, match=f"a/1.*{reason}"):
        opened(path).read(entry.uri)


def test_a_zip_member_is_not_inflated_beyond_its_size(tmp_path: Path):
    path = write(tmp_path / "deflated.zip", [("a/1", bytes(10**8))])
    directory(path, 24, "<I", 10)
    (entry,) = opened(path).entries()
    with traced() as peak, pytest.raises(OSError, match="damaged"):
        opened(path).read(entry.uri)
    assert peak() < 1_000_000


def test_a_damaged_deflate_stream_is_refused(tmp_path: Path):
    path = write(tmp_path / "deflated.zip", [("a/1", bytes(1000))])
    data = bytearray(path.read_bytes())
    data[33:37] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    (entry,) = opened(path).entries()
    with pytest.raises(OSError, match="damaged"):
        opened(path).read(entry.uri)


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_over_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    monkeypatch.setattr(archive_index, "_LARGEST", 10)
    source = opened(write(tmp_path / kind, [("a/1", bytes(10)), ("a/2", bytes(11))]))
    fits, too_large = source.entries()
    assert source.read(fits.uri) == bytes(10)
    with pytest.raises(OSError, match="a/2: 11 bytes"):
        source.read(too_large.uri)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.9, 0.97])
@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_archive_is_an_error(
    tmp_path: Path, photos: Files, kind: str, share: float
):
    path = write(tmp_path / kind, photos)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(DatasetError, match=kind):
        listing(path)


def test_a_tar_that_ends_between_members_is_an_error(tmp_path: Path):
    path = write(tmp_path / "x.tar", named("a/1", "b/2"))
    os.truncate(path, 1024)
    with pytest.raises(DatasetError, match="truncated"):
        listing(path)


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path):
    path = write(tmp_path / "x.tar", named("a/1", "b/2", "c/3"))
    data = bytearray(path.read_bytes())
    data[1024] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"x\.tar"):
        listing(path)


def test_tars_that_are_concatenated_are_an_error(tmp_path: Path):
    path = write(tmp_path / "x.tar", named("a/1"))
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(DatasetError, match="concatenated"):
        listing(path)


@pytest.mark.parametrize("size", [-1, -512, -1024, -(10**6)])
def test_a_negative_size_does_not_lead_round_in_a_circle(tmp_path: Path, size: int):
    path = write(tmp_path / "x.tar", named("a/1", "b/2"))
    data = bytearray(path.read_bytes())
    data[124:136] = b"\xff" + size.to_bytes(11, "big", signed=True)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="negative"):
        listing(path)


def test_a_header_that_claims_gigabytes_is_not_read(tmp_path: Path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 10**9
    path = tmp_path / "x.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(DatasetError, match="a header of 10"):
        listing(path)


@pytest.mark.parametrize("data", [b"", b"text" * 500, b"PK\3\4" + bytes(2000)])
def test_what_is_no_archive_is_an_error(tmp_path: Path, data: bytes):
    (tmp_path / "photos.zip").write_bytes(data)
    with pytest.raises(DatasetError, match=r"photos\.zip"):
        listing(tmp_path / "photos.zip")


def test_a_missing_archive_or_a_folder_is_an_error(tmp_path: Path):
    for path in (tmp_path / "gone.zip", tmp_path):
        with pytest.raises(DatasetError, match=path.name):
            listing(path)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_archive_is_an_error(tmp_path: Path, kind: str):
    with pytest.raises(DatasetError, match="empty"):
        listing(write(tmp_path / kind, named(".hidden")))


@pytest.mark.parametrize("name", ["a/2", "", "../x", "a"])
def test_a_member_that_is_not_there_is_an_os_error(tmp_path: Path, name: str):
    path = write(tmp_path / "x.tar", named("a/1"))
    for uri in (f"{path}#{name}", f"/etc/hosts#{name}"):
        with pytest.raises(OSError, match=uri):
            opened(path).read(uri)


def test_names_that_are_no_utf8_fit_a_table_and_can_be_read(tmp_path: Path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo(os.fsdecode(b"b\xff/\xfe.jpg"))
        archive.addfile(info)
    (entry,) = opened(path).entries()
    assert f"{entry.uri}{entry.label}".encode()
    assert opened(path).read(entry.uri) == b""


def test_five_thousand_members_are_indexed_in_bounded_memory(tmp_path: Path):
    data = random.Random(1).randbytes(20_000)
    path = write(tmp_path / "x.tar.gz", [(f"a/{n}.jpg", data) for n in range(5000)])
    source = opened(path)
    with traced() as peak:
        entries = list(source.entries())
    assert peak() < 50_000_000
    assert len(entries) == 5000
    assert source.read(entries[-1].uri) == data


# What is no archive that can be read, and names


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"7z\xbc\xaf\x27\x1c\0\4", "it is a 7z archive; read are zip files, and tar "),
        (b"Rar!\x1a\x07\1\0", "it is a rar archive"),
        (b"\n<!doctype HTML>\n<p>Sign in", "it is an HTML page: a download page was"),
        (b"<!-- x --><html>", "it is an HTML page"),
        (b'{"error": "not found"}', "it is JSON, perhaps an error message"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS"),
        (b"MZ\x90\0", "it is a Windows program, perhaps an archive that unpacks"),
        (b"PK\7\x08PK\3\4", "it is one of several volumes of a zip archive"),
        (b"\x04\x22\x4d\x18", "it is compressed by LZ4"),
        (gzip.compress(b"\xff\xd8\xff\xe0"), "inside is a JPEG image"),
        (
            gzip.compress(b"some text"),
            "by gzip, and what is inside is neither a zip nor",
        ),
        (b"some text", "it is neither a zip nor a tar"),
        (b"", "empty file"),
    ],
    ids=range(13),
)
def test_another_kind_of_file_is_named(tmp_path: Path, head: bytes, said: str):
    (tmp_path / "photos.zip").write_bytes(head)
    with pytest.raises(DatasetError) as error:
        listing(tmp_path / "photos.zip")
    assert said in str(error.value)


def test_a_tar_compressed_by_zstandard_is_read(tmp_path: Path, photos: Files):
    plain = write(tmp_path / "x.tar", photos).read_bytes()
    half = len(plain) // 2
    frames = b"".join(
        pa.Codec("zstd").compress(part, asbytes=True)
        for part in (plain[:half], plain[half:])
    )
    (tmp_path / "x.tar.zst").write_bytes(frames)
    source = opened(tmp_path / "x.tar.zst")
    read = [source.read(entry.uri) for entry in source.entries()]
    assert read == [data for _, data in photos]


def test_a_zip_that_unpacks_itself_is_read(tmp_path: Path):
    path = write(tmp_path / "x.zip", named("a/1", "b/2"))
    path.write_bytes(b"MZ" + bytes(5000) + path.read_bytes())
    source = opened(path)
    assert [source.read(entry.uri) for entry in source.entries()] == [
        b"bytes of a/1",
        b"bytes of b/2",
    ]


def test_a_zip_compressed_by_bzip2_is_read(tmp_path: Path, photos: Files):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_BZIP2) as archive:
        for name, data in photos:
            archive.writestr(name, data)
    source = opened(tmp_path / "x.zip")
    read = [source.read(entry.uri) for entry in source.entries()]
    assert read == [data for _, data in photos]


def unmarked(path: Path, *names: bytes) -> Path:
    """A zip whose names are these bytes, without the mark of UTF-8."""
    files = [(chr(97 + i) * len(name), name) for i, name in enumerate(names)]
    data = write(path, files).read_bytes()
    for plain, name in files:
        data = data.replace(plain.encode(), name, 2)
    path.write_bytes(data)
    return path


def test_names_of_a_zip_in_an_unmarked_encoding_are_told_and_read(tmp_path: Path):
    names = ["犬/一.jpg".encode("shift_jis"), "猫/二二二.jpg".encode("shift_jis")]
    path = unmarked(tmp_path / "x.zip", *names)
    plain = opened(path)
    assert len(list(plain.entries())) == 2
    (note,) = plain.notes()
    assert note.startswith("2 names are not marked as UTF-8 and are read in code page")
    assert "'encoding: shift_jis'" in note
    told = opened(path, encoding="shift_jis")
    assert [entry.label for entry in told.entries()] == ["犬", "猫"]
    assert told.notes() == []
    assert [told.read(entry.uri) for entry in told.entries()] == names


def test_names_of_a_zip_that_are_utf8_without_the_mark_are_read(tmp_path: Path):
    source = opened(unmarked(tmp_path / "x.zip", "café/1.jpg".encode()))
    assert [entry.label for entry in source.entries()] == ["café"]
    assert source.notes() == []


def test_names_of_a_tar_may_be_in_another_encoding(tmp_path: Path):
    with tarfile.open(tmp_path / "x.tar", "w", encoding="cp1252") as archive:
        archive.addfile(tarfile.TarInfo("café/1.jpg"), io.BytesIO())
    found = facts(tmp_path / "x.tar", encoding="cp1252")
    assert found == {"café/1.jpg": ("café", None)}

"""What WebDataset's tar shards give: samples, their images and labels."""

import io
import json
import os
import pickle
import random
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tl_pipeline.config.datasets import WebDatasetSpec
from tl_pipeline.data.identity import image_id
from tl_pipeline.errors import DatasetError
from tl_pipeline.sources.webdataset import WebDataset

Files = list[tuple[str, bytes]]


def write(path: Path, files: Files, mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def opened(path: Path, **fields) -> WebDataset:
    return WebDataset(WebDatasetSpec(name="x", type="webdataset", path=path, **fields))


def facts(path: Path, **fields) -> list[tuple[str, str | None]]:
    """(shard#member, label) of every entry."""
    entries = opened(path, **fields).entries()
    return [(Path(e.uri).name, e.label) for e in entries]


def sample(key: str, label: str = "cat") -> Files:
    return [(f"{key}.jpg", b"image of " + key.encode()), (f"{key}.cls", label.encode())]


@pytest.fixture
def shards(tmp_path: Path, two_hundred: list[tuple[bytes, str]]) -> Path:
    """Two shards of a hundred samples each."""
    for shard in range(2):
        files = []
        for key, (data, label) in enumerate(two_hundred[shard::2]):
            files += [(f"{key:04d}.ppm", data), (f"{key:04d}.cls", label.encode())]
        write(tmp_path / f"photos-{shard:03d}.tar", files)
    return tmp_path / "photos-{000..001}.tar"


def test_images_and_labels_come_back(
    shards: Path, two_hundred: list[tuple[bytes, str]]
):
    source = opened(shards)
    entries = list(source.entries())
    assert len({entry.uri for entry in entries}) == 200
    found = {image_id(source.read(entry.uri)): entry.label for entry in entries}
    assert found == {image_id(data): label for data, label in two_hundred}
    assert {entry.split for entry in entries} == {None}


def test_threads_read_what_one_reads(shards: Path):
    source = opened(shards)
    uris = [entry.uri for entry in source.entries()] * 3
    random.Random(1).shuffle(uris)
    alone = [source.read(uri) for uri in uris]
    fresh = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(fresh.read, uris)) == alone


def test_a_changed_shard_changes_its_versions_only(shards: Path):
    def versions() -> list[str | None]:
        return [entry.version for entry in opened(shards).entries()]

    old = versions()
    assert versions() == old
    os.utime(shards.with_name("photos-001.tar"), ns=(0, 10**18))
    new = versions()
    assert new[:100] == old[:100]
    assert not set(new[100:]) & set(old)


def test_a_compressed_shard_is_read(tmp_path: Path):
    path = write(tmp_path / "x.tar.gz", sample("1"), "w:gz")
    assert facts(path) == [("x.tar.gz#1.jpg", "cat")]
    assert opened(path).read(f"{path}#1.jpg") == b"image of 1"


# Samples


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["1.png", "1.jpg", "2.png"], ["1.jpg", "2.png"]),
        (["1.JPG"], ["1.JPG"]),
        (["a.b/1.jpg", "a.b/2.jpg"], ["1.jpg", "2.jpg"]),
        (["a/1.jpg", "b/1.jpg"], ["1.jpg", "1.jpg"]),
        (["1.seg.png", "1.png"], ["1.png"]),
        (
            ["v2.0_1.jpg", "v2.0_1.cls", "v2.0_2.cls", "v2.0_2.JPG"],
            ["v2.0_1.jpg", "v2.0_2.JPG"],
        ),
        (["1.jpg", "1.seg.cls", "1.cls", "1.depth.png"], ["1.jpg"]),
        (["a.b.jpg", "a.cls"], ["a#refused"]),
        (["README", "1.jpg"], ["README", "1.jpg"]),
        (["1.jpg", "1.jpg"], ["1.jpg", "1.jpg#2"]),
        (["1.jpg", "2.jpg", "1.png"], ["1.jpg", "2.jpg", "1.png"]),
        (["._1.jpg", "1.jpg", ".git/2.jpg"], ["1.jpg"]),
    ],
    ids="-".join,
)
def test_consecutive_members_of_one_stem_are_a_sample(
    tmp_path: Path, names: list[str], expected: list[str]
):
    path = write(tmp_path / "x.tar", [(name, b"x") for name in names])
    uris = [entry.uri.partition("=")[0] for entry in opened(path).entries()]
    assert [Path(uri.partition("#")[2]).name for uri in uris] == expected


def test_endings_of_images_are_taken_in_the_order_of_the_spec(tmp_path: Path):
    path = write(tmp_path / "x.tar", [("1.jpg", b"x"), ("1.left.png", b"y")])
    found = facts(path, image=("left.png", "jpg"))
    assert found == [("x.tar#1.left.png", None)]


def test_a_sample_without_an_image_is_listed_to_be_refused(tmp_path: Path):
    files = [*sample("2")[1:], ("2.left.jpg", b"l"), ("2.right.jpg", b"r")]
    path = write(
        tmp_path / "x.tar", [("1.cls", b"cat"), ("1.txt", b"no image"), *files]
    )
    source = opened(path)
    entries = list(source.entries())
    assert [(entry.label, entry.version) for entry in entries] == [("cat", None)] * 2
    for entry, endings, cure in zip(
        entries,
        ["cls, txt", "cls, left.jpg, right.jpg"],
        ["cls", "left.jpg"],
        strict=True,
    ):
        said = rf"the sample has {endings}, none of which .* 'image: \[{cure}\]'"
        with pytest.raises(OSError, match=said):
            source.read(entry.uri)


def test_images_left_out_for_another_are_counted(tmp_path: Path):
    files = [
        ("1.jpg", b"x"),
        ("1.depth.png", b"d"),
        ("1.right.jpg", b"r"),
        *sample("2"),
    ]
    path = write(tmp_path / "x.tar", [*files, *sample("2")])
    source = opened(path)
    assert len(list(source.entries())) == 3
    left_out, again = source.notes()
    assert left_out.endswith("left out are 1 depth.png, 1 right.jpg ('image' decides)")
    assert again == "2 members have a name that came before: samples of their own"
    chosen = opened(path, image="right.jpg")
    assert [chosen.read(e.uri) for e in chosen.entries() if e.version] == [b"r"]
    assert chosen.notes()[0].endswith("are 1 depth.png, 1 jpg ('image' decides)")


def test_thousands_of_names_with_dots_are_as_many_samples(tmp_path: Path):
    files = [file for n in range(3000) for file in sample(f"IMG_v2.0_{n:04d}")]
    found = facts(write(tmp_path / "x.tar", files))
    assert found[2999] == ("x.tar#IMG_v2.0_2999.jpg", "cat")
    assert len(found) == 3000


def test_hostile_members_are_listed_alone_and_not_read(tmp_path: Path):
    path = write(tmp_path / "x.tar", [*sample("1"), *sample("../2")])
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("1.png")
        info.type, info.linkname = tarfile.SYMTYPE, "1.jpg"
        archive.addfile(info)
    source = opened(path)
    entries = list(source.entries())
    assert sorted(str(e.label) for e in entries) == ["None", "None", "None", "cat"]
    for entry in entries:
        if entry.label is None:
            with pytest.raises(PermissionError, match=r"x\.tar#"):
                source.read(entry.uri)


# Labels


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (b"cat", "cat"),
        (b" 7\n", "7"),
        ("k\u00e4tzchen".encode(), "k\u00e4tzchen"),
        (b"\xef\xbb\xbfcat", "cat"),
        (b"", None),
        (b" \n", None),
        (b"\xff\xfe", None),
        (b"x" * (1 << 20), "x" * (1 << 20)),
        (b"x" * ((1 << 20) + 1), None),
    ],
    ids=range(9),
)
def test_labels_of_text(tmp_path: Path, text: bytes, label: str | None):
    path = write(tmp_path / "x.tar", [("1.jpg", b"x"), ("1.cls", text)])
    assert facts(path) == [("x.tar#1.jpg", label)]


@pytest.mark.parametrize(
    ("document", "label"),
    [
        ('{"a": {"b": "cat"}}', "cat"),
        ('{"a": {"b": 7}}', "7"),
        ('{"a": {"b": 0}}', "0"),
        ('{"a": {"b": true}}', "true"),
        ('{"a": {"b": 1.5}}', "1.5"),
        ('{"a": {"b": NaN}}', None),
        ('{"a": {"b": null}}', None),
        ('{"a": {"b": " "}}', None),
        ('{"a": {"b": ["cat"]}}', None),
        ('{"a": "cat"}', None),
        ("[1]", None),
        ("{", None),
        ("[" * 100_000, None),
    ],
    ids=range(13),
)
def test_labels_of_json(tmp_path: Path, document: str, label: str | None):
    path = write(tmp_path / "x.tar", [("1.json", document.encode()), ("1.jpg", b"x")])
    assert facts(path, label="json:a.b") == [("x.tar#1.jpg", label)]


def test_a_label_fits_a_table(tmp_path: Path):
    document = json.dumps({"class": "\ud800"}).encode()
    path = write(tmp_path / "x.tar", [("1.json", document), ("1.jpg", b"x")])
    ((_, label),) = facts(path, label="json:class")
    assert label is not None
    assert label.encode()


def test_a_sample_without_a_label_has_none(tmp_path: Path):
    path = write(tmp_path / "x.tar", [("1.jpg", b"x"), *sample("2")])
    assert facts(path) == [("x.tar#1.jpg", None), ("x.tar#2.jpg", "cat")]


# Shards


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a-000.tar", ["a-000"]),
        ("a-{000..002}.tar", ["a-000", "a-001", "a-002"]),
        ("a-{002..001}.tar", ["a-002", "a-001"]),
        ("{b,a}-000.tar", ["b-000", "a-000"]),
        ("{a,b}-{000..001}.tar", ["a-000", "a-001", "b-000", "b-001"]),
        ("{a,a}-000.tar", ["a-000"]),
        ("c-{9..11}.tar", ["c-9", "c-10", "c-11"]),
        ("a-*.tar", ["a-000", "a-001", "a-002"]),
        ("{b,c}-*[01].tar", ["b-000", "b-001", "c-10", "c-11"]),
        ("d#{1}.tar", ["d#{1}"]),
        ("e[1]/a.tar", ["a"]),
    ],
)
def test_patterns_of_shards(tmp_path: Path, pattern: str, expected: list[str]):
    names = [f"{letter}-{n:03d}" for letter in "ab" for n in range(3)]
    for name in [*names, "c-9", "c-10", "c-11", "d#{1}", "e[1]/a"]:
        write(tmp_path / f"{name}.tar", sample("k#1"))
    (tmp_path / "._a-000.tar").write_bytes(b"of macOS")
    source = opened(tmp_path / pattern)
    uris = [entry.uri for entry in source.entries()]
    assert [Path(uri).name for uri in uris] == [f"{n}.tar#k#1.jpg" for n in expected]
    assert {opened(tmp_path / pattern).read(uri) for uri in uris} == {b"image of k#1"}


@pytest.mark.parametrize(
    ("pattern", "missing"),
    [
        ("a-{000..015}.tar", "a-001.tar"),
        ("a-{000..999999999}.tar", "a-000000000.tar"),
        ("a-00{0,7}.tar", "a-007.tar"),
        ("{a,b}-000.tar", "b-000.tar"),
        ("b-*.tar", r"b-\*.tar"),
        ("gone/{0..1}.tar", "gone/0.tar"),
    ],
)
def test_a_missing_shard_is_named(tmp_path: Path, pattern: str, missing: str):
    write(tmp_path / "a-000.tar", sample("1"))
    with pytest.raises(DatasetError, match=missing):
        facts(tmp_path / pattern)
    with pytest.raises(OSError, match="uri"):
        opened(tmp_path / pattern).read("uri#1.jpg")


def test_a_truncated_shard_is_named(shards: Path):
    os.truncate(shards.with_name("photos-001.tar"), 100_000)
    with pytest.raises(DatasetError, match=r"photos-001\.tar"):
        facts(shards)


def test_a_shard_that_is_a_dangling_link_is_an_error(tmp_path: Path):
    write(tmp_path / "a.tar", sample("1"))
    (tmp_path / "b.tar").symlink_to(tmp_path / "gone")
    with pytest.raises(DatasetError, match=r"b\.tar"):
        facts(tmp_path / "*.tar")


def test_an_empty_shard_is_fine_beside_others_only(tmp_path: Path):
    write(tmp_path / "a.tar", [])
    with pytest.raises(DatasetError, match="no samples"):
        facts(tmp_path / "*.tar")
    write(tmp_path / "b.tar", sample("1"))
    assert facts(tmp_path / "*.tar") == [("b.tar#1.jpg", "cat")]


@pytest.mark.parametrize("uri", ["/etc/hosts#1.jpg", "1.jpg", "#"])
def test_a_uri_of_no_shard_is_an_os_error(shards: Path, uri: str):
    with pytest.raises(OSError, match=uri):
        opened(shards).read(uri)

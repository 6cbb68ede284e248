"""What each source takes for an input, a label and a split."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tl_pipeline.config.datasets import DigitsSpec, ImageFolderSpec
from tl_pipeline.errors import DatasetError
from tl_pipeline.inputs.images import decode
from tl_pipeline.sources import Entry
from tl_pipeline.sources.digits import Digits
from tl_pipeline.sources.image_folder import ImageFolder


def tree(root: Path, *names: str) -> dict[str, Entry]:
    """Make these files below ``root`` and list the folder: relative name -> entry."""
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"bytes of " + name.encode())
    return listing(root)


def listing(root: Path) -> dict[str, Entry]:
    """What an image folder at ``root`` lists: relative name -> entry."""
    entries = ImageFolder(ImageFolderSpec(name="x", path=root)).entries()
    return {str(Path(entry.uri).relative_to(root)): entry for entry in entries}


def facts(entries: dict[str, Entry]) -> dict[str, tuple[str | None, str | None]]:
    """Relative name -> (label, split)."""
    return {name: (entry.label, entry.split) for name, entry in entries.items()}


# Digits


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits(DigitsSpec(name="digits", type="digits"))


def test_digits_are_those_of_scikit_learn(digits: Digits):
    expected = load_digits()
    entries = list(digits.entries())
    assert [entry.label for entry in entries] == [str(n) for n in expected.target]
    shown = [decode(digits.read(entry.uri)).convert("L") for entry in entries]
    scaled = np.rint(expected.images * 255 / 16)
    assert np.array_equal(np.stack([np.asarray(image) for image in shown]), scaled)


def test_digits_are_read_anew_and_declare_no_split(digits: Digits):
    entries = list(digits.entries())
    assert {(e.split, e.group, e.version) for e in entries} == {(None, None, None)}


@pytest.mark.parametrize("uri", ["digits:1797", "digits:-001"])
def test_a_digit_that_is_not_listed_cannot_be_read(digits: Digits, uri: str):
    with pytest.raises(OSError, match=uri):
        digits.read(uri)


# Image folders


def test_folders_are_classes_and_no_split_is_declared(tmp_path: Path):
    found = tree(tmp_path, "bees/2.jpg", "ants/1.jpg", "ants/0.jpg")
    assert facts(found) == {
        "ants/0.jpg": ("ants", None),
        "ants/1.jpg": ("ants", None),
        "bees/2.jpg": ("bees", None),
    }
    assert list(found) == sorted(found)


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["train", "val"], ["train", "test"]),
        (["train", "valid"], ["train", "test"]),
        (["train", "validation"], ["train", "test"]),
        (["train", "val", "test"], ["train", "validation", "test"]),
        (["train", "valid", "test"], ["train", "validation", "test"]),
        (["train", "test"], ["train", "test"]),
        (["train"], ["train"]),
    ],
    ids="-".join,
)
def test_folders_that_are_all_splits_are_splits(
    tmp_path: Path, folders: list[str], expected: list[str]
):
    found = tree(tmp_path, *(f"{folder}/ants/1.jpg" for folder in folders))
    assert [found[f"{folder}/ants/1.jpg"].split for folder in folders] == expected
    assert {entry.label for entry in found.values()} == {"ants"}


@pytest.mark.parametrize(
    "folders",
    [["train", "bus"], ["train", "test", "plane"], ["val", "test"], ["Train", "test"]],
    ids="-".join,
)
def test_folders_named_like_splits_are_classes_beside_others(
    tmp_path: Path, folders: list[str]
):
    found = tree(tmp_path, *(f"{folder}/deep/1.jpg" for folder in folders))
    assert facts(found) == {f"{name}/deep/1.jpg": (name, None) for name in folders}


def test_names_that_begin_with_a_dot_are_left_out(tmp_path: Path):
    found = tree(tmp_path, ".git/1.jpg", "ants/.DS_Store", "ants/1.jpg", ".hidden")
    assert facts(found) == {"ants/1.jpg": ("ants", None)}


def test_a_hidden_folder_does_not_stop_splits_from_being_splits(tmp_path: Path):
    found = tree(tmp_path, ".cache/1", "train/ants/1.jpg", "test/ants/1.jpg")
    assert found["train/ants/1.jpg"].split == "train"
    assert len(found) == 2


def test_files_outside_a_class_have_no_label(tmp_path: Path):
    flat = tree(tmp_path / "flat", "stray.jpg", "ants/1.jpg")
    assert facts(flat) == {"ants/1.jpg": ("ants", None), "stray.jpg": (None, None)}
    names = ["stray.jpg", "train/stray.jpg", "train/ants/1.jpg"]
    assert facts(tree(tmp_path / "split", *names)) == {
        "stray.jpg": (None, None),
        "train/ants/1.jpg": ("ants", "train"),
        "train/stray.jpg": (None, "train"),
    }


@pytest.mark.parametrize(
    "name", ["1", "1.JPG", "1.jfif", "notes.txt", "a b.jpg", "ü.png", "1.jpg.bak"]
)
def test_a_file_with_any_ending_is_an_input(tmp_path: Path, name: str):
    assert facts(tree(tmp_path, f"ants/{name}")) == {f"ants/{name}": ("ants", None)}


@pytest.mark.parametrize(
    ("name", "split"), [("ants/a/b/1.jpg", None), ("train/ants/a/1.jpg", "train")]
)
def test_deeper_folders_belong_to_their_class(
    tmp_path: Path, name: str, split: str | None
):
    assert facts(tree(tmp_path, name)) == {name: ("ants", split)}


def test_size_and_time_are_the_version_of_a_file(tmp_path: Path):
    file = tmp_path / "ants" / "1.jpg"
    tree(tmp_path, "ants/1.jpg")
    seen = set()
    for size, mtime in [(5, 10**18), (6, 10**18), (5, 10**18 + 1)]:
        file.write_bytes(bytes(size))
        os.utime(file, ns=(mtime, mtime))
        entry = listing(tmp_path)["ants/1.jpg"]
        assert entry.modified_ns == mtime
        seen.add(entry.version)
    assert len(seen) == 3
    assert None not in seen


def test_links_are_followed(tmp_path: Path):
    tree(tmp_path / "elsewhere", "1.jpg")
    tree(tmp_path / "root", "ants/2.jpg")
    (tmp_path / "root" / "bees").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "ants" / "1.jpg").symlink_to(tmp_path / "elsewhere" / "1.jpg")
    found = listing(tmp_path / "root")
    assert list(found) == ["ants/1.jpg", "ants/2.jpg", "bees/1.jpg"]
    assert None not in {entry.version for entry in found.values()}


@pytest.mark.parametrize("target", ["gone.jpg", "link.jpg"])
def test_a_link_to_nowhere_is_an_input_that_cannot_be_read(tmp_path: Path, target: str):
    """A dangling link or one to itself: listed without a version, refused later."""
    tree(tmp_path, "ants/1.jpg")
    (tmp_path / "ants" / "link.jpg").symlink_to(tmp_path / "ants" / target)
    found = listing(tmp_path)
    assert list(found) == ["ants/1.jpg", "ants/link.jpg"]
    entry = found["ants/link.jpg"]
    assert (entry.label, entry.version) == ("ants", None)
    with pytest.raises(OSError, match=r"link\.jpg"):
        ImageFolder(ImageFolderSpec(name="x", path=tmp_path)).read(entry.uri)


def test_a_link_to_a_folder_above_does_not_list_for_ever(tmp_path: Path):
    tree(tmp_path, "ants/1.jpg")
    (tmp_path / "ants" / "up").symlink_to(tmp_path / "ants")
    assert [name for name in listing(tmp_path) if name.endswith(".jpg")] == [
        "ants/1.jpg"
    ]


@pytest.mark.skipif(sys.platform == "darwin", reason="names are always UTF-8 there")
def test_a_name_that_is_no_utf8_has_a_uri_that_a_table_can_hold(tmp_path: Path):
    tree(tmp_path, "ants/1.jpg")
    (tmp_path / "ants" / os.fsdecode(b"\xff.jpg")).write_bytes(b"x")
    spec = ImageFolderSpec(name="x", path=tmp_path)
    uris = {entry.uri.encode() for entry in ImageFolder(spec).entries()}
    assert len(uris) == 2


def test_uris_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tree(tmp_path / "photos", "ants/1.jpg")
    monkeypatch.chdir(tmp_path)
    relative = ImageFolder(ImageFolderSpec(name="x", path=Path("photos")))
    (entry,) = relative.entries()
    assert entry.uri == str(tmp_path / "photos" / "ants" / "1.jpg")


@pytest.mark.parametrize("make", ["nothing", "folder", "dots", "file"])
def test_a_missing_or_empty_folder_is_an_error(tmp_path: Path, make: str):
    root = tmp_path / "root"
    if make == "file":
        root.write_bytes(b"x")
    elif make != "nothing":
        root.mkdir()
    if make == "dots":
        (root / ".DS_Store").write_bytes(b"x")
    with pytest.raises(DatasetError, match="root"):
        listing(root)


def test_real_photos_are_read_byte_for_byte(folder: Path):
    source = ImageFolder(ImageFolderSpec(name="photos", path=folder))
    entries = list(source.entries())
    assert len(entries) == 60
    for entry in entries[::10]:
        assert source.read(entry.uri) == Path(entry.uri).read_bytes()
        with Image.open(entry.uri) as image:
            image.verify()

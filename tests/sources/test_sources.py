"""What each source takes for an input, a label and a split."""

import os
import sys
from pathlib import Path
from typing import Any

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


def listing(root: Path, **fields: Any) -> dict[str, Entry]:
    """What an image folder at ``root`` lists: relative name -> entry."""
    entries = ImageFolder(ImageFolderSpec(name="x", path=root, **fields)).entries()
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
        (["train", "val"], ["train", "validation"]),
        (["Train", "Valid"], ["train", "validation"]),
        (["TRAIN", "validation"], ["train", "validation"]),
        (["Training", "Testing"], ["train", "test"]),
        (["seg_train", "seg_test"], ["train", "test"]),
        (["train2017", "val2017"], ["train", "validation"]),
        (["training_set", "test_set"], ["train", "test"]),
        (["train", "dev"], ["train", "validation"]),
        (["train", "eval"], ["train", "validation"]),
        (["TrainImages", "TestImages"], ["train", "test"]),
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


@pytest.mark.parametrize("folders", [["train", "bus"], ["test", "train", "bus"]])
def test_classes_that_are_called_like_splits_hold_files(
    tmp_path: Path, folders: list[str]
):
    found = tree(tmp_path, *(f"{folder}/1.jpg" for folder in folders))
    assert facts(found) == {f"{name}/1.jpg": (name, None) for name in sorted(folders)}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train/a/1", "bus/1"], "'train' look like splits, but 'bus' beside them"),
        (["train/a/1", "test/a/1", "plane/b/1"], "but 'plane' beside them do not"),
        (["Train/a/1", "test/a/1", "x/1"], "{train: Train, test: test}"),
        (["val/a/1", "test/a/1"], "{train: NAME, test: test, validation: val}"),
        (["train/1", "test/1"], "they hold files and no folders of classes"),
        (["train_1/a/1", "train_2/a/1", "x/1"], "{train: [train_1, train_2]}"),
    ],
)
def test_where_folders_may_be_splits_or_classes_the_entry_must_say(
    tmp_path: Path, names: list[str], said: str
):
    with pytest.raises(DatasetError) as error:
        tree(tmp_path, *names)
    assert said in str(error.value)
    assert "'splits: {}' for classes" in str(error.value)


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ({"train": "b"}, {"b/y/1": ("y", "train")}),
        (
            {"train": ["b", "a"], "test": "train"},
            {
                "a/x/1": ("x", "train"),
                "b/y/1": ("y", "train"),
                "train/z/1": ("z", "test"),
            },
        ),
        (
            {},
            {
                "a/x/1": ("a", None),
                "b/y/1": ("b", None),
                "train/z/1": ("train", None),
            },
        ),
    ],
    ids=str,
)
def test_the_entry_says_which_folders_are_splits(
    tmp_path: Path, splits: Any, expected: dict[str, tuple[str | None, str | None]]
):
    for name in ("a/x/1", "b/y/1", "train/z/1"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x")
    assert facts(listing(tmp_path, splits=splits)) == expected


def test_a_folder_that_the_entry_names_must_be_there(tmp_path: Path):
    (tmp_path / "a").mkdir()
    with pytest.raises(DatasetError, match=r"has no 'b', which 'splits' names; .*: a"):
        listing(tmp_path, splits={"train": ["a", "b"]})


def test_empty_folders_and_those_of_archivers_change_nothing(tmp_path: Path):
    names = ["train/a/1", "test/a/1"]
    before = facts(tree(tmp_path, *names))
    (tmp_path / "backup" / "old" / ".git").mkdir(parents=True)
    (tmp_path / "val").mkdir()
    junk = ["__MACOSX/train/a/._1", "@eaDir/1.jpg", "train/a/@eaDir/1.jpg"]
    junk += ["$RECYCLE.BIN/x/1", "test/a/Thumbs.db", "test/desktop.ini"]
    assert facts(tree(tmp_path, *junk)) == before


def test_one_split_alone_declares_nothing_unless_it_is_train(tmp_path: Path):
    assert facts(tree(tmp_path / "one", "test/a/1")) == {"test/a/1": ("a", None)}
    found = facts(tree(tmp_path / "two", "Training/a/1"))
    assert found == {"Training/a/1": ("a", "train")}


def test_a_split_in_a_folder_of_its_name_is_unwrapped(tmp_path: Path):
    """As Kaggle unpacks: seg_train/seg_train/buildings/1.jpg."""
    names = ["seg_train/seg_train/a/1", "seg_test/seg_test/a/1"]
    found = facts(tree(tmp_path, *names))
    assert found == {names[1]: ("a", "test"), names[0]: ("a", "train")}


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


@pytest.mark.parametrize(
    "links",
    [
        {"ants/up": "ants"},
        {"ants/up": "."},
        {"ants/link": "bees", "bees/link": "ants"},
        {"ants/link": "bees", "wasps": "ants"},
    ],
    ids=str,
)
def test_links_to_folders_that_are_listed_anyway_list_nothing_again(
    tmp_path: Path, links: dict[str, str]
):
    expected = facts(tree(tmp_path, "ants/1.jpg", "bees/2.jpg"))
    for name, target in links.items():
        (tmp_path / name).symlink_to(tmp_path / target)
    assert facts(listing(tmp_path)) == expected


def test_a_ring_of_links_outside_is_listed_once(tmp_path: Path):
    tree(tmp_path / "pool", "a/1.jpg", "b/2.jpg")
    (tmp_path / "pool" / "a" / "to_b").symlink_to(tmp_path / "pool" / "b")
    (tmp_path / "pool" / "b" / "to_a").symlink_to(tmp_path / "pool" / "a")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "ants").symlink_to(tmp_path / "pool" / "a")
    assert facts(listing(tmp_path / "root")) == {
        "ants/1.jpg": ("ants", None),
        "ants/to_b/2.jpg": ("ants", None),
    }


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

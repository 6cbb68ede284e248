"""Names of classes and corrected labels, in place of what a source says."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tl_pipeline.config.datasets import ImageFolderSpec
from tl_pipeline.data.identity import Memo, image_id
from tl_pipeline.data.scan import Scan, scan
from tl_pipeline.errors import DatasetError
from tl_pipeline.sources import open_source
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store


@pytest.fixture
def signs(tmp_path: Path) -> Path:
    """Five images of class 0, four of class 1."""
    for number in range(9):
        file = tmp_path / "signs" / str(number % 2) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number).save(file)
    return tmp_path / "signs"


def scanned(store: Store, folder: Path, **fields: Any) -> Scan:
    spec = ImageFolderSpec(type="image_folder", name="signs", path=folder, **fields)
    return scan(open_source(spec), spec, Memo(store, "signs"))


def labels(found: Scan) -> dict[str, str]:
    """Name of the file -> label."""
    rows = tables.values(found.manifest, "uri", "label")
    return {Path(uri).stem: label for uri, label in rows}


def corrected(folder: Path, text: str) -> Path:
    file = folder.parent / "corrected.csv"
    file.write_text(text)
    return file


def test_classes_get_the_names_of_the_entry(store: Store, signs: Path):
    found = scanned(store, signs, class_names={"0": "stop", "2": "yield"})
    assert labels(found) == {str(n): "1" if n % 2 else "stop" for n in range(9)}
    assert found.notes == ("class_names: no image is labelled 2",)


@pytest.mark.parametrize("by", ["image_id", "uri"])
def test_corrected_labels_count(store: Store, signs: Path, by: str):
    """Of image 0 the file says stop, of image 1 nothing, and 7 it names as it is."""
    names = {
        "image_id": lambda file: image_id(file.read_bytes()),
        "uri": lambda file: str(file.resolve()),
    }[by]
    rows = [
        (signs / "0/0.png", "go"),
        (signs / "1/1.png", ""),
        (signs / "1/7.png", "1"),
    ]
    text = f"score,{by},label\n" + "".join(f"1,{names(f)},{s}\n" for f, s in rows)
    file = corrected(signs, f"{text}0,gone,stop\n")
    found = scanned(store, signs, class_names={"0": "stop"}, relabel=file)
    expected = {str(n): "1" if n % 2 else "stop" for n in range(9)} | {"0": "go"}
    assert labels(found) == {n: s for n, s in expected.items() if n != "1"}
    (refused,) = found.quarantine.to_pylist()
    assert Path(refused["uri"]).name == "1.png"
    assert refused["reason"] == "no label"
    assert found.notes[:2] == (
        "2 images relabelled by corrected.csv",
        f"{file} names images that are not there: gone",
    )


def test_copies_under_two_labels_are_kept_with_the_corrected_one(
    store: Store, signs: Path
):
    data = (signs / "0/0.png").read_bytes()
    (signs / "1/copy.png").write_bytes(data)
    assert scanned(store, signs).quarantine.num_rows == 2
    file = corrected(signs, f"image_id,label\n{image_id(data)},1\n")
    found = scanned(store, signs, relabel=file)
    assert (found.quarantine.num_rows, found.duplicates.num_rows) == (0, 1)
    assert labels(found)["0"] == "1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "needs a header with label and image_id or uri, and here is nothing"),
        ("uri,class\na,b\n", "image_id or uri, and here is uri, class"),
        ("uri,label\na,b\na,c\n", "a has two labels, b and c; leave one"),
        (None, "'relabel' cannot be read: "),
    ],
)
def test_a_file_that_does_not_say_which_label_is_meant_is_refused(
    store: Store, signs: Path, text: str | None, said: str
):
    file = signs.parent / "corrected.csv"
    if text is not None:
        file = corrected(signs, text)
    with pytest.raises(DatasetError, match=said):
        scanned(store, signs, relabel=file)

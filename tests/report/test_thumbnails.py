"""What a page shows of inputs: pictures, texts, or why there is none."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tl_pipeline.config.datasets import (
    DatasetSpec,
    FeaturesSpec,
    ImageFolderSpec,
    TableSpec,
)
from tl_pipeline.data.identity import Memo
from tl_pipeline.data.scan import scan
from tl_pipeline.report import duplicate_pairs
from tl_pipeline.report.thumbnails import Thumbnails, fitted
from tl_pipeline.sources import open_source
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.tables import MANIFEST, NEAR_DUPLICATES


def thumbnails(store: Store, dataset: DatasetSpec) -> Thumbnails:
    """Those of a manifest of all inputs of ``dataset``."""
    found = scan(open_source(dataset), dataset, Memo(store, dataset.name))
    folder = store.path(Artifact("manifests", "made", "made"))
    folder.mkdir(parents=True)
    tables.write(MANIFEST, found.manifest, folder)
    return Thumbnails(store, "made", dataset)


@pytest.fixture
def photos(tmp_path: Path, store: Store) -> Thumbnails:
    """Three images, red, green and blue, of 300 x 150, 20 x 40 and 1 x 500 pixels."""
    made = (("red", (300, 150)), ("green", (20, 40)), ("blue", (1, 500)))
    for colour, size in made:
        (tmp_path / "photos" / colour).mkdir(parents=True)
        file = tmp_path / "photos" / colour / f"{colour}.png"
        Image.new("RGB", size, colour).save(file)
    path = tmp_path / "photos"
    return thumbnails(
        store, ImageFolderSpec(name="x", type="image_folder", path=str(path))
    )


def by_label(made: Thumbnails) -> dict[str, str]:
    rows = made.manifest.to_pylist()
    return {row["label"]: row["image_id"] for row in rows}


def test_pictures_are_small_and_keep_their_shape(photos: Thumbnails):
    ids = by_label(photos)
    found = photos.of([ids["red"], ids["green"], ids["blue"], ids["red"]])
    shown = {name: found[ids[name]] for name in ids}
    sizes = {name: (one.width, one.height) for name, one in shown.items()}
    assert sizes == {"red": (112, 56), "green": (56, 112), "blue": (1, 112)}
    stored = {"red": (112, 56), "green": (20, 40), "blue": (1, 112)}
    for name, one in shown.items():
        kind, data = one.src.split(",")
        assert kind == "data:image/webp;base64"
        image = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
        assert image.size == stored[name]
        middle = image.getpixel((image.width // 2, image.height // 2))
        expected = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255)}[name]
        assert np.abs(np.subtract(middle, expected)).max() < 12
        assert len(one.src) < 600
    assert not photos.failed


def test_bytes_that_are_others_now_are_not_shown(photos: Thumbnails, tmp_path: Path):
    ids = by_label(photos)
    Image.new("RGB", (9, 9)).save(tmp_path / "photos" / "red" / "red.png")
    found = photos.of(ids.values())
    assert found[ids["red"]].src == ""
    assert "changed since it was ingested" in str(found[ids["red"]].missing)
    assert found[ids["green"]].src
    assert photos.failed


def test_of_texts_the_beginning_is_shown(tmp_path: Path, store: Store):
    file = tmp_path / "texts.csv"
    file.write_text(f"text,label\n<b>short</b>,a\n{'long ' * 100},b\n")
    made = thumbnails(
        store, TableSpec(name="x", type="table", path=str(file), text_column="text")
    )
    ids = by_label(made)
    found = made.of(ids.values())
    assert found[ids["a"]].text == "<b>short</b>"
    assert found[ids["b"]].text == ("long " * 100)[:240] + "…"
    assert not found[ids["a"]].src


def test_vectors_have_only_their_uri(tmp_path: Path, store: Store):
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.savez(tmp_path / "x.npz", features=rows, labels=np.array(["a", "b"] * 2))
    spec = FeaturesSpec(name="x", type="features", train=str(tmp_path / "x.npz"))
    made = thumbnails(store, spec)
    (one, *_) = made.of(made.manifest["image_id"].to_pylist()).values()
    assert (one.src, one.text, one.missing) == ("", None, None)
    assert one.uri
    assert not made.failed


def test_pairs_of_two_labels_come_first_then_the_most_alike(
    photos: Thumbnails, store: Store
):
    ids = by_label(photos)
    images, one, other = photos.manifest, ids["green"], ids["blue"]
    labels = ["red" if i == ids["red"] else "x" for i in images["image_id"].to_pylist()]
    for name, column in (("label", labels), ("split", ["train"] * 3)):
        images = images.set_column(images.column_names.index(name), name, [column])
    photos.manifest = images
    pairs = [(one, other, 0.99), (ids["red"], one, 0.7), (ids["red"], other, 0.8)]
    names = ("image_id", "near_id", "similarity")
    rows = [dict(zip(names, pair, strict=True), cluster=0) for pair in pairs]
    folder = store.path(Artifact("manifests", "made", "made"))
    tables.write(NEAR_DUPLICATES, tables.from_rows(NEAR_DUPLICATES, rows), folder)
    found = duplicate_pairs.find(store, "made", photos)
    assert [round(pair.similarity, 2) for pair in found] == [0.8, 0.7, 0.99]
    assert [pair.harm for pair in found] == ["two labels", "two labels", ""]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((640, 480), (112, 84)), ((8, 8), (112, 112)), ((10_000, 1), (112, 1))],
)
def test_the_longer_side_is_always_the_same(
    size: tuple[int, int], expected: tuple[int, int]
):
    assert fitted(size) == expected

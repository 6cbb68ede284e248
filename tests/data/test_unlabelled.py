"""Datasets without labels, whatever their kind: rows, splits, and what is refused."""

import io
import tarfile
import zipfile
from pathlib import Path

import pyarrow.compute as pc
import pytest

from tl_pipeline.config import catalog
from tl_pipeline.config.datasets import DatasetSpec, DigitsSpec
from tl_pipeline.data.identity import Memo, image_id
from tl_pipeline.data.scan import scan
from tl_pipeline.errors import CatalogError
from tl_pipeline.sources import open_source
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store


@pytest.fixture
def images(two_hundred: list[tuple[bytes, str]]) -> dict[str, bytes]:
    """Names and bytes of six images; one of them twice, in a folder of another class.

    With labels those two would conflict, and the folders would be unclear splits.
    """
    found = {f"train/{i}.ppm": data for i, (data, _) in enumerate(two_hundred[:3])}
    found |= {f"other/{i}.ppm": data for i, (data, _) in enumerate(two_hundred[3:6])}
    return {**found, "top.ppm": two_hundred[6][0], "val/again.ppm": two_hundred[0][0]}


def entry(place: Path, fields: str) -> DatasetSpec:
    """The dataset of a catalogue whose one entry has these ``fields``."""
    file = place / "data_catalog.yaml"
    file.write_text(f"version: 1\ndatasets:\n  new: {{{fields}}}\n")
    return catalog.find("new", file)


def folder(place: Path, images: dict[str, bytes]) -> str:
    for name, data in images.items():
        (place / "new" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "new" / name).write_bytes(data)
    return "type: image_folder, path: new"


def archive(place: Path, images: dict[str, bytes]) -> str:
    with zipfile.ZipFile(place / "new.zip", "w") as made:
        for name, data in images.items():
            made.writestr(name, data)
    return "type: archive, path: new.zip"


def table(place: Path, images: dict[str, bytes]) -> str:
    folder(place, images)
    lines = ["image,session", *(f"new/{name},s" for name in images)]
    (place / "new.csv").write_text("\n".join(lines))
    return "type: table, path: new.csv"


def shards(place: Path, images: dict[str, bytes]) -> str:
    with tarfile.open(place / "new.tar", "w") as made:
        for name, data in images.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))
    return "type: webdataset, path: new.tar"


@pytest.mark.parametrize("kind", [folder, archive, table, shards])
def test_every_image_is_a_row_without_label_in_one_split(
    kind, images: dict[str, bytes], tmp_path: Path, store: Store
):
    dataset = entry(tmp_path, f"{kind(tmp_path, images)}, labels: none")
    found = scan(open_source(dataset), dataset, Memo(store, "new"), labelled=False)
    manifest = found.manifest
    assert manifest["image_id"].to_pylist() == sorted(
        {image_id(data) for data in images.values()}
    )
    assert tables.counts(manifest["split"]) == {"unlabelled": 7}
    nothing = ("label", "group", "weight", "declared")
    assert [manifest[name].null_count for name in nothing] == [7] * 4
    assert (found.quarantine.num_rows, found.duplicates.num_rows) == (0, 1)
    assert found.notes == ()


def test_labels_that_a_source_has_are_left_aside(store: Store):
    """As where a labelled dataset is to be predicted: of any kind."""
    dataset = DigitsSpec(name="digits", type="digits")
    given, said = (
        scan(open_source(dataset), dataset, Memo(store, "digits"), labelled=labelled)
        for labelled in (True, False)
    )
    assert said.manifest["image_id"] == given.manifest["image_id"]
    assert pc.all(pc.is_null(said.manifest["label"])).as_py()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ("type: table, path: a.csv, label_column: x", "label_column"),
        ("type: image_folder, path: a, splits: {}", "splits"),
        ("type: webdataset, path: a.tar, label: cls", "label"),
        ("type: archive, path: a.zip, expect: {classes: 2}", "expect.classes"),
    ],
)
def test_what_says_of_labels_goes_not_with_none(
    fields: str, named: str, tmp_path: Path
):
    with pytest.raises(CatalogError, match=f"{named}: of images with labels, but here"):
        entry(tmp_path, f"{fields}, labels: none")
    with pytest.raises(CatalogError, match="'none'"):
        entry(tmp_path, f"{fields}, labels: some")

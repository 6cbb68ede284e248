"""What every kind of source in SOURCES promises."""

import io
import json
import pickle
import shutil
import tarfile
import typing
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tl_pipeline.config.datasets import (
    ArchiveSpec,
    CocoObjectsSpec,
    DatasetSpec,
    DigitsSpec,
    FeaturesSpec,
    HuggingFaceSpec,
    ImageFolderSpec,
    PickleSpec,
    TableSpec,
    TorchvisionSpec,
    VocObjectsSpec,
    WebDatasetSpec,
)
from tl_pipeline.inputs.images import probe
from tl_pipeline.inputs.modalities import MODALITIES
from tl_pipeline.sources import SOURCES, Source, SourceRow, open_source


@dataclass
class Known:
    """A source whose images are known.

    ``labels`` counts the images of every class; ``unknown`` is a uri of none of them.
    """

    spec: DatasetSpec
    labels: dict[str, int]
    unknown: str


def known_folder(folder: Path) -> Known:
    spec = ImageFolderSpec(name="photos", path=folder)
    gone = str(folder / "china" / "gone.jpg")
    return Known(spec, {"china": 30, "flower": 30}, gone)


def known_digits(_: Path) -> Known:
    spec = DigitsSpec(name="digits", type="digits")
    counts = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    return Known(spec, {str(n): c for n, c in enumerate(counts)}, "digits:1797")


def known_table(folder: Path) -> Known:
    table = folder.parent / "photos.csv"
    rows = [
        f"photos/{file.parent.name}/{file.name},{file.parent.name}"
        for file in photos(folder)
    ]
    table.write_text("\n".join(["image,label", *rows]))
    spec = TableSpec(name="photos", type="table", path=table)
    return Known(spec, {"china": 30, "flower": 30}, str(folder / "gone.jpg"))


def known_archive(folder: Path) -> Known:
    made = folder.parent / "photos.zip"
    with zipfile.ZipFile(made, "w") as archive:
        for file in photos(folder):
            archive.write(file, file.relative_to(folder))
    spec = ArchiveSpec(name="photos", type="archive", path=made)
    return Known(spec, {"china": 30, "flower": 30}, f"{made}#china/gone.jpg")


def known_shards(folder: Path) -> Known:
    shard = folder.parent / "shard-000.tar"
    with tarfile.open(shard, "w") as archive:
        for number, file in enumerate(photos(folder)):
            archive.add(file, f"{number:04d}.jpg")
            label = tarfile.TarInfo(f"{number:04d}.cls")
            label.size = len(file.parent.name)
            archive.addfile(label, io.BytesIO(file.parent.name.encode()))
    spec = WebDatasetSpec(name="photos", type="webdataset", path=shard)
    return Known(spec, {"china": 30, "flower": 30}, f"{shard}#gone.jpg")


def known_torchvision(folder: Path) -> Known:
    root = folder.parent / "root"
    shutil.copytree(folder, root / "eurosat" / "2750")
    spec = TorchvisionSpec(
        name="photos", type="torchvision", dataset="EuroSAT", path=root
    )
    return Known(spec, {"china": 30, "flower": 30}, str(root / "gone.jpg"))


def known_pickle(folder: Path) -> Known:
    made = folder.parent / "train.p"
    pixels = [np.asarray(Image.open(f).resize((32, 32))) for f in photos(folder)]
    labels = np.array([file.parent.name for file in photos(folder)])
    with made.open("wb") as file:
        pickle.dump({"features": np.stack(pixels), "labels": labels}, file)
    spec = PickleSpec(name="photos", type="pickle", train=made)
    return Known(spec, {"china": 30, "flower": 30}, f"{made}#60")


def known_features(folder: Path) -> Known:
    """Thumbnails as vectors: there are no images to give back."""
    made = folder.parent / "features.npz"
    pixels = [np.asarray(Image.open(f).resize((4, 4))) for f in photos(folder)]
    labels = np.array([file.parent.name for file in photos(folder)])
    np.savez(made, features=np.stack(pixels).astype(np.float32), labels=labels)
    spec = FeaturesSpec(name="photos", type="features", train=made)
    return Known(spec, {"china": 30, "flower": 30}, f"{made}#60")


def known_voc(folder: Path) -> Known:
    """Every photo is one object, whose box is the whole photo."""
    root = folder.parent / "root"
    base = root / "VOCdevkit" / "VOC2012"
    for part in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (base / part).mkdir(parents=True)
    lists: dict[str, str] = {"train": "", "val": ""}
    for number, file in enumerate(photos(folder)):
        width, height = probe(file.read_bytes())
        shutil.copy(file, base / "JPEGImages" / f"{number:06d}.jpg")
        ends = f"<xmin>1</xmin><ymin>1</ymin><xmax>{width}</xmax><ymax>{height}</ymax>"
        (base / "Annotations" / f"{number:06d}.xml").write_text(
            f"<annotation><object><name>{file.parent.name}</name>"
            f"<bndbox>{ends}</bndbox></object></annotation>"
        )
        lists["val" if number % 5 == 0 else "train"] += f"{number:06d}\n"
    for name, lines in lists.items():
        (base / "ImageSets" / "Main" / f"{name}.txt").write_text(lines)
    spec = VocObjectsSpec(name="photos", type="voc_objects", path=root)
    gone = f"{base}/JPEGImages/gone.jpg#box=0,0,9,9"
    return Known(spec, {"china": 30, "flower": 30}, gone)


def known_coco(folder: Path) -> Known:
    """Every photo is one object, whose box is the whole photo."""
    made = folder.parent / "instances.json"
    images, annotations = [], []
    for number, file in enumerate(photos(folder)):
        width, height = probe(file.read_bytes())
        name = str(file.relative_to(folder))
        images.append({"id": number, "file_name": name})
        told = {"image_id": number, "category_id": len(file.parent.name)}
        annotations.append({**told, "bbox": [0.0, 0.0, width, height]})
    categories = [{"id": len(name), "name": name} for name in ("china", "flower")]
    document = {"images": images, "annotations": annotations, "categories": categories}
    made.write_text(json.dumps(document))
    spec = CocoObjectsSpec(
        name="photos", type="coco_objects", train=made, images=folder
    )
    return Known(
        spec, {"china": 30, "flower": 30}, f"{folder}/china/gone.jpg#box=0,0,9,9"
    )


def known_saved(folder: Path) -> Known:
    library: Any = pytest.importorskip("datasets", reason="no extra 'huggingface'")
    made = folder.parent / "saved"
    rows = {
        "image": [{"bytes": f.read_bytes(), "path": None} for f in photos(folder)],
        "label": [file.parent.name for file in photos(folder)],
    }
    names = library.ClassLabel(names=["flower", "china"])
    features = library.Features({"image": library.Image(), "label": names})
    library.Dataset.from_dict(rows, features=features).save_to_disk(str(made))
    spec = HuggingFaceSpec(name="photos", type="huggingface", path=made)
    return Known(spec, {"china": 30, "flower": 30}, f"{made}#all:60")


def photos(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.jpg"))


# A new kind of source needs a row here: how to make one of known images.
FACTORIES: dict[str, Callable[[Path], Known]] = {
    "image_folder": known_folder,
    "digits": known_digits,
    "table": known_table,
    "archive": known_archive,
    "webdataset": known_shards,
    "torchvision": known_torchvision,
    "pickle": known_pickle,
    "features": known_features,
    "voc_objects": known_voc,
    "coco_objects": known_coco,
    "huggingface": known_saved,
}


@pytest.fixture(params=SOURCES, ids=lambda row: row.kind)
def row(request: pytest.FixtureRequest) -> SourceRow:
    return request.param


@pytest.fixture
def known(row: SourceRow, folder: Path) -> Known:
    return FACTORIES[row.kind](folder)


@pytest.fixture
def source(known: Known) -> Source:
    return open_source(known.spec)


def test_every_dataset_spec_has_one_row_in_sources():
    union, _ = typing.get_args(DatasetSpec)
    specs = [row.spec for row in SOURCES]
    assert Counter(specs) == Counter(typing.get_args(union))


def test_kind_is_the_type_in_the_catalogue(row: SourceRow):
    assert typing.get_args(row.spec.model_fields["type"].annotation) == (row.kind,)
    assert row.summary


def test_the_row_opens_its_spec(row: SourceRow, known: Known, source: Source):
    assert type(known.spec) is row.spec
    assert type(source) is row.open


def test_every_image_is_listed_once_under_its_label(source: Source, known: Known):
    entries = list(source.entries())
    assert Counter(entry.label for entry in entries) == known.labels
    assert len({entry.uri for entry in entries}) == len(entries)


def test_listing_twice_gives_the_same(source: Source, known: Known):
    entries = list(source.entries())
    assert entries == list(source.entries())
    assert entries == list(open_source(known.spec).entries())


def test_two_listings_do_not_disturb_each_other(source: Source):
    pairs = zip(source.entries(), source.entries(), strict=True)
    assert all(one == other for one, other in pairs)


def test_every_input_is_read_as_what_it_is(source: Source, known: Known):
    for entry in list(source.entries())[::7]:
        size = MODALITIES[known.spec.modality].probe(
            source.read(entry.uri), known.spec.pixels
        )
        if known.spec.modality == "image":
            assert min(length or 0 for length in size) >= 8


def test_reading_does_not_need_listing(source: Source, known: Known):
    uri = next(open_source(known.spec).entries()).uri
    assert source.read(uri) == source.read(uri)


def test_an_unknown_uri_is_an_os_error(source: Source, known: Known):
    """The one kind that costs an input its row in quarantine and not the run."""
    with pytest.raises(OSError, match=known.unknown):
        source.read(known.unknown)


def test_a_copy_in_another_process_is_the_same(source: Source):
    before = pickle.loads(pickle.dumps(source))
    entries = list(source.entries())
    after = pickle.loads(pickle.dumps(source))
    for copy in (before, after):
        assert list(copy.entries()) == entries
        assert copy.read(entries[-1].uri) == source.read(entries[-1].uri)

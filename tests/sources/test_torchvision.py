"""torchvision's datasets, on small copies in their real layout on disk.

Names of files, folders and attributes are torchvision's; only its md5 sums are waved
through, since nobody can write other bytes of the same sum.
"""

import bz2
import importlib
import inspect
import json
import pickle
import random
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tl_pipeline.config.datasets import TorchvisionSpec
from tl_pipeline.data.identity import image_id
from tl_pipeline.errors import DatasetError, InvalidSpec, UnknownName
from tl_pipeline.inputs.images import RefusedImage, as_ppm
from tl_pipeline.sources import Entry
from tl_pipeline.sources.torchvision_dataset import DATASETS, TorchvisionDataset

Images = dict[str, list[tuple[np.ndarray, int]]]  # our split -> (pixels, class index)
Facts = list[tuple[str | None, str | None, bytes]]  # (split, label, bytes), sorted


def opened(
    name: str, root: Path, *, crop: bool = False, download: bool = False
) -> TorchvisionDataset:
    """The source; nothing is read yet."""
    return TorchvisionDataset(
        TorchvisionSpec(
            name="x",
            type="torchvision",
            dataset=name,
            path=root,
            crop=crop,
            download=download,
        )
    )


def facts(source: TorchvisionDataset) -> Facts:
    found = [(e.split, e.label, source.read(e.uri)) for e in source.entries()]
    return sorted(found, key=repr)


def put(file: Path, data: bytes | str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data.encode() if isinstance(data, str) else data)


def is_there(path: str, md5: str | None = None) -> bool:  # noqa: ARG001
    return Path(path).is_file()


@pytest.fixture(autouse=True)
def _any_md5(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision accept files by their names."""
    modules = ("cifar", "fer2013", "flowers102", "imagenet", "places365", "semeion")
    for name in (*modules, "stl10", "svhn", "utils"):
        module = importlib.import_module(f"torchvision.datasets.{name}")
        monkeypatch.setattr(module, "check_integrity", is_there)


# One writer per dataset: the images as torchvision wants to find them


def idx(values: np.ndarray, kind: int = 8) -> bytes:
    """MNIST's format: kind 8 is uint8, kind 12 big-endian int32."""
    head = struct.pack(f">HBB{values.ndim}I", 0, kind, values.ndim, *values.shape)
    return head + values.astype({8: ">u1", 12: ">i4"}[kind]).tobytes()


def stacked(rows: list[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([image for image, _ in rows]), np.array([n for _, n in rows])


def mnist(folder: str, names: dict[str, str]) -> Callable[[Path, Images], None]:
    def write(root: Path, images: Images) -> None:
        for split, rows in images.items():
            data, targets = stacked(rows)
            start = root / folder / "raw" / names[split]
            put(Path(f"{start}-images-idx3-ubyte"), idx(data))
            put(Path(f"{start}-labels-idx1-ubyte"), idx(targets))

    return write


def qmnist(root: Path, images: Images) -> None:
    for split, rows in images.items():
        data, targets = stacked(rows)
        start = root / "QMNIST" / "raw" / f"qmnist-{split}"
        put(Path(f"{start}-images-idx3-ubyte"), idx(data))
        rest = np.full((len(targets), 7), 99)
        put(Path(f"{start}-labels-idx2-int"), idx(np.c_[targets, rest], 12))


def cifar(fine: bool) -> Callable[[Path, Images], None]:
    folder = "cifar-100-python" if fine else "cifar-10-batches-py"
    key = "fine_labels" if fine else "labels"

    def batch(rows: list[tuple[np.ndarray, int]]) -> bytes:
        data, targets = stacked(rows)
        flat = data.transpose(0, 3, 1, 2).reshape(len(data), -1)
        return pickle.dumps({"data": flat, key: targets.tolist()})

    def write(root: Path, images: Images) -> None:
        base, train, test = root / folder, images["train"], images["test"]
        names = [f"class {n}" for n in range(100 if fine else 10)]
        if fine:
            put(base / "train", batch(train))
            put(base / "test", batch(test))
            put(base / "meta", pickle.dumps({"fine_label_names": names}))
            return
        for n in range(5):  # the first batch has all but one image for each other
            rows = train[n - 5 :][:1] if n else train[:-4]
            put(base / f"data_batch_{n + 1}", batch(rows))
        put(base / "test_batch", batch(test))
        put(base / "batches.meta", pickle.dumps({"label_names": names}))

    return write


def usps(root: Path, images: Images) -> None:
    for split, name in (("train", "usps.bz2"), ("test", "usps.t.bz2")):
        lines = []
        for image, target in images[split]:
            # a little more than the level, because torchvision truncates
            levels = (image.ravel() + 0.01) / 255 * 2 - 1
            values = " ".join(f"{n}:{v:.6f}" for n, v in enumerate(levels, 1))
            lines.append(f"{target + 1} {values}\n")
        put(root / name, bz2.compress("".join(lines).encode()))


def semeion(root: Path, images: Images) -> None:
    lines = [
        " ".join([*(f"{v:.4f}" for v in image.ravel() / 255), *(one_hot(target))])
        for image, target in images["all"]
    ]
    put(root / "semeion.data", "\n".join(lines))


def one_hot(target: int) -> list[str]:
    return ["1" if n == target else "0" for n in range(10)]


def svhn(root: Path, images: Images) -> None:
    from scipy.io import savemat

    for split, rows in images.items():
        data, targets = stacked(rows)
        digits = np.where(targets == 0, 10, targets)[:, None]
        arrays = {"X": data.transpose(1, 2, 3, 0), "y": digits}
        savemat(root / f"{split}_32x32.mat", arrays)


def stl10(root: Path, images: Images) -> None:
    base = root / "stl10_binary"
    for split, rows in images.items():
        data, targets = stacked(rows)
        put(base / f"{split}_X.bin", data.transpose(0, 3, 2, 1).tobytes())
        put(base / f"{split}_y.bin", (targets + 1).astype(np.uint8).tobytes())
    put(base / "unlabeled_X.bin", b"")
    put(base / "class_names.txt", "".join(f"class {n}\n" for n in range(10)))


def fer2013(root: Path, images: Images) -> None:
    usage = {"train": "Training", "test": "PrivateTest"}
    lines = ["emotion,pixels,Usage"]
    for split, rows in images.items():
        for image, target in rows:
            lines.append(f"{target},{' '.join(map(str, image.ravel()))},{usage[split]}")
    put(root / "fer2013" / "fer2013.csv", "\n".join(lines))


def folders(pattern: str, **names: str) -> Callable[[Path, Images], None]:
    """Layouts that are folders of classes: ``{split}``, ``{folder}``, ``{n}``."""

    def write(root: Path, images: Images) -> None:
        for split, rows in images.items():
            for n, (image, target) in enumerate(rows):
                folder = names.get(f"_{target}", f"class{target}")
                told = {"split": names.get(split, split), "folder": folder}
                put(root / pattern.format(n=n, m=n + 1, **told), as_ppm(image))

    return write


def caltech(pattern: str) -> Callable[[Path, Images], None]:
    def write(root: Path, images: Images) -> None:
        for n, (image, target) in enumerate(images["all"]):
            name = pattern.format(target=target, one=target + 1, n=n // 2 + 1)
            put(root / name, as_ppm(image))
        put(root / "caltech101/101_ObjectCategories/BACKGROUND_Google/a.jpg", b"x")
        put(root / "caltech256/256_ObjectCategories/001.class0/RENAME2", b"x")

    return write


def pet(root: Path, images: Images) -> None:
    base = root / "oxford-iiit-pet"
    for split, rows in images.items():
        lines = []
        for n, (image, target) in enumerate(rows):
            name = f"{['big_cat', 'pug'][target]}_{split}{n}"
            lines.append(f"{name} {target + 1} 1 1\n")
            put(base / "images" / f"{name}.jpg", as_ppm(image))
        official = "trainval" if split == "train" else split
        put(base / "annotations" / f"{official}.txt", "".join(lines))


def listed(
    images_at: str, list_at: str, line: str = "{name}\n"
) -> Callable[[Path, Images], None]:
    """Layouts with one folder of images and one text file per split."""

    def write(root: Path, images: Images) -> None:
        for split, rows in images.items():
            official = {"validation": "val"}.get(split, split)
            lines = []
            for n, (image, target) in enumerate(rows):
                told = {"name": f"{split}{n}", "target": target}
                put(root / images_at.format(**told), as_ppm(image))
                lines.append(line.format(**told))
            put(root / list_at.format(split=official), "".join(lines))

    return write


def aircraft(root: Path, images: Images) -> None:
    data = "fgvc-aircraft-2013b/data/"
    names = data + "images_variant_{split}.txt"
    line = "{name} class {target}\n"
    listed(data + "images/{name}.jpg", names, line)(root, images)
    put(root / data / "variants.txt", "class 0\nclass 1\n")


def food(root: Path, images: Images) -> None:
    for split, rows in images.items():
        meta: dict[str, list[str]] = {}
        for n, (image, target) in enumerate(rows):
            name = f"class{target}/{split}{n}"
            meta.setdefault(f"class{target}", []).append(name)
            put(root / "food-101" / "images" / f"{name}.jpg", as_ppm(image))
        put(root / "food-101" / "meta" / f"{split}.json", json.dumps(meta))


def flowers(root: Path, images: Images) -> None:
    from scipy.io import savemat

    key = {"train": "trnid", "validation": "valid", "test": "tstid"}
    ids: dict[str, list[int]] = {}
    labels = []
    for split, rows in images.items():
        for image, target in rows:
            labels.append(target + 1)
            ids.setdefault(key[split], []).append(len(labels))
            name = f"image_{len(labels):05d}.jpg"
            put(root / "flowers-102" / "jpg" / name, as_ppm(image))
    savemat(root / "flowers-102" / "setid.mat", ids)
    savemat(root / "flowers-102" / "imagelabels.mat", {"labels": labels})


def cars(root: Path, images: Images) -> None:
    from scipy.io import savemat

    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    where = {
        "train": base / "devkit" / "cars_train_annos.mat",
        "test": base / "cars_test_annos_withlabels.mat",
    }
    for split, rows in images.items():
        kind = [("fname", object), ("class", object)]
        table = np.zeros((1, len(rows)), dtype=kind)
        for n, (image, target) in enumerate(rows):
            table[0, n] = (f"{n:05d}.jpg", target + 1)
            put(base / f"cars_{split}" / f"{n:05d}.jpg", as_ppm(image))
        savemat(where[split], {"annotations": table})
    names = np.array([["class 0", "class 1"]], dtype=object)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": names})


def imagenet(root: Path, images: Images) -> None:
    import torch

    wnids = {"n00": ("crane",), "n01": ("maillot", "tank suit")}
    root.mkdir(exist_ok=True)
    torch.save((wnids, []), root / "meta.bin")
    pattern = "{split}/{folder}/{n}.JPEG"
    folders(pattern, test="val", _0="n00", _1="n01")(root, images)


def sun(root: Path, images: Images) -> None:
    folders("SUN397/c/{folder}/outdoor/sun_{n}.jpg")(root, images)
    names = "/c/class0/outdoor\n/c/class1/outdoor\n"
    put(root / "SUN397" / "ClassName.txt", names)


def clevr(root: Path, images: Images) -> None:
    base = root / "clevr" / "CLEVR_v1.0"
    for split, rows in images.items():
        official = {"test": "val"}.get(split, split)
        scenes = []
        for n, (image, target) in enumerate(rows):
            put(base / "images" / official / f"{n}.png", as_ppm(image))
            scenes.append({"image_filename": f"{n}.png", "objects": [0] * target})
        scene = base / "scenes" / f"CLEVR_{official}_scenes.json"
        put(scene, json.dumps({"scenes": scenes}))


def places(root: Path, images: Images) -> None:
    put(root / "categories_places365.txt", "/c/class0 0\n/c/class1 1\n")
    known = {
        "train": ("data_large_standard", "places365_train_standard.txt"),
        "test": ("val_large", "places365_val.txt"),
    }
    for split, rows in images.items():
        folder, table = known[split]
        at, line = folder + "/{name}.jpg", "/{name}.jpg {target}\n"
        listed(at, table, line)(root, {split: rows})


def gtsrb(root: Path, images: Images) -> None:
    """Tracks of two frames; the box leaves 1, 2, 3 and 4 pixels at the four sides."""
    base = root / "gtsrb"
    head = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
    tables: dict[Path, str] = {}
    for split, rows in images.items():
        for n, (image, target) in enumerate(rows):
            height, width = image.shape[:2]
            folder, name = base / "GTSRB" / "Final_Test" / "Images", f"{n:05d}.ppm"
            table = base / "GT-final_test.csv"
            if split == "train":
                folder = base / "GTSRB" / "Training" / f"{target:05d}"
                name = f"{n // 4:05d}_{n:05d}.ppm"
                table = folder / f"GT-{target:05d}.csv"
            row = (name, width, height, 1, 2, width - 4, height - 5, target)
            put(folder / name, as_ppm(image))
            tables[table] = tables.get(table, head) + ";".join(map(str, row)) + "\n"
    for table, text in tables.items():
        put(table, text)


EMNIST = {split: f"emnist-balanced-{split}" for split in ("train", "test")}
IDX = {"train": "train", "test": "t10k"}


def dtd(root: Path, images: Images) -> None:
    at = "dtd/dtd/images/class{target}/{name}.jpg"
    line = "class{target}/{name}.jpg\n"
    listed(at, "dtd/dtd/labels/{split}1.txt", line)(root, images)


# name: (writer, shape of an image, names of the classes 0 and 1)
COPIES: dict[str, tuple[Callable[[Path, Images], None], tuple[int, ...], list[str]]] = {
    "CIFAR10": (cifar(fine=False), (32, 32, 3), ["class 0", "class 1"]),
    "CIFAR100": (cifar(fine=True), (32, 32, 3), ["class 0", "class 1"]),
    "CLEVRClassification": (clevr, (9, 8, 3), ["0", "1"]),
    "Caltech101": (
        caltech("caltech101/101_ObjectCategories/class{target}/image_{n:04d}.jpg"),
        (9, 8, 3),
        ["class0", "class1"],
    ),
    "Caltech256": (
        caltech(
            "caltech256/256_ObjectCategories/{one:03d}.class{target}"
            "/{one:03d}_{n:04d}.jpg"
        ),
        (9, 8, 3),
        ["001.class0", "002.class1"],
    ),
    "Country211": (
        folders("country211/{split}/{folder}/{n}.jpg", validation="valid"),
        (9, 8, 3),
        ["class0", "class1"],
    ),
    "DTD": (dtd, (9, 8, 3), ["class0", "class1"]),
    "EMNIST": (mnist("EMNIST", EMNIST), (28, 28), ["0", "1"]),
    "EuroSAT": (
        folders("eurosat/2750/{folder}/{n}.jpg"),
        (9, 8, 3),
        ["class0", "class1"],
    ),
    "FER2013": (fer2013, (48, 48), ["0", "1"]),
    "FGVCAircraft": (aircraft, (9, 8, 3), ["class 0", "class 1"]),
    "FashionMNIST": (mnist("FashionMNIST", IDX), (28, 28), ["T-shirt/top", "Trouser"]),
    "Flowers102": (flowers, (9, 8, 3), ["pink primrose", "hard-leaved pocket orchid"]),
    "Food101": (food, (9, 8, 3), ["class0", "class1"]),
    "GTSRB": (gtsrb, (19, 18, 3), ["00000", "00001"]),
    "ImageNet": (imagenet, (9, 8, 3), ["crane", "maillot"]),
    "Imagenette": (
        folders(
            "imagenette2/{split}/{folder}/{n}.jpeg",
            test="val",
            _0="n01440764",
            _1="n02102040",
        ),
        (9, 8, 3),
        ["tench", "English springer"],
    ),
    "KMNIST": (mnist("KMNIST", IDX), (28, 28), ["o", "ki"]),
    "MNIST": (mnist("MNIST", IDX), (28, 28), ["0 - zero", "1 - one"]),
    "OxfordIIITPet": (pet, (9, 8, 3), ["Big Cat", "Pug"]),
    "Places365": (places, (9, 8, 3), ["/c/class0", "/c/class1"]),
    "QMNIST": (qmnist, (28, 28), ["0 - zero", "1 - one"]),
    "RenderedSST2": (
        folders(
            "rendered-sst2/{split}/{folder}/{n}.png",
            validation="valid",
            _0="negative",
            _1="positive",
        ),
        (9, 8, 3),
        ["negative", "positive"],
    ),
    "SEMEION": (semeion, (16, 16), ["0", "1"]),
    "STL10": (stl10, (96, 96, 3), ["class 0", "class 1"]),
    "SUN397": (sun, (9, 8, 3), ["class0/outdoor", "class1/outdoor"]),
    "SVHN": (svhn, (32, 32, 3), ["0", "1"]),
    "StanfordCars": (cars, (9, 8, 3), ["class 0", "class 1"]),
    "USPS": (usps, (16, 16), ["0", "1"]),
}


def some_images(name: str) -> Images:
    """Eight images per split, of two classes in turn."""
    _, shape, _ = COPIES[name]
    chance = np.random.default_rng(0)
    top = 2 if name == "SEMEION" else 256
    return {
        split: [
            (
                (chance.integers(0, top, shape) * (255 // (top - 1))).astype(np.uint8),
                n % 2,
            )
            for n in range(8)
        ]
        for split in DATASETS[name].splits
    }


@pytest.fixture(params=COPIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


# The table


def test_every_row_has_a_copy_here():
    """PCAM's HDF5 files need h5py, which this project does not."""
    assert set(COPIES) == set(DATASETS) - {"PCAM"}


@pytest.mark.parametrize("row", DATASETS.values(), ids=lambda row: row.name)
def test_every_row_fits_the_class_of_torchvision(row):
    made = getattr(importlib.import_module("torchvision.datasets"), row.name)
    known: set[str] = set()
    for base in made.__mro__:  # **kwargs are those of the class above
        known |= (parameters := inspect.signature(base.__init__).parameters).keys()
        if "kwargs" not in parameters:
            break
    options = {key for split in row.splits.values() for key in split}
    assert {"root", *options} <= known
    assert not row.downloads or "download" in known


@pytest.mark.parametrize("row", DATASETS.values(), ids=lambda row: row.name)
def test_every_row_has_our_splits(row):
    names = set(row.splits)
    assert names == {"all"} or {"train", "test"} <= names
    assert names <= {"all", "train", "validation", "test"}


# What is listed and read


def test_splits_labels_and_bytes(name: str, tmp_path: Path):
    write, _, classes = COPIES[name]
    images = some_images(name)
    write(tmp_path, images)
    assert facts(opened(name, tmp_path)) == sorted(
        (
            (None if split == "all" else split, classes[target], as_ppm(image))
            for split, rows in images.items()
            for image, target in rows
        ),
        key=repr,
    )


def test_uris_versions_and_order(name: str, tmp_path: Path):
    COPIES[name][0](tmp_path, some_images(name))
    entries = list(opened(name, tmp_path).entries())
    assert entries == list(opened(name, tmp_path).entries())
    assert len({entry.uri for entry in entries}) == len(entries)
    for entry in entries:
        if DATASETS[name].files:
            assert Path(entry.uri).is_absolute()
            stat = Path(entry.uri).stat()
            assert entry.version == f"{stat.st_size}:{stat.st_mtime_ns}"
            assert entry.modified_ns == stat.st_mtime_ns
        else:
            assert entry.uri.startswith(f"{name}:{entry.split or 'all'}:")
            assert (entry.version, entry.modified_ns) == (None, None)


def test_a_copy_reads_what_the_original_lists(name: str, tmp_path: Path):
    COPIES[name][0](tmp_path, some_images(name))
    source = opened(name, tmp_path)
    uris = [entry.uri for entry in source.entries()]
    data = {uri: source.read(uri) for uri in uris}
    copy = pickle.loads(pickle.dumps(source))
    shuffled = random.Random(0).sample(uris * 4, len(uris) * 4)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(copy.read, shuffled)) == [data[u] for u in shuffled]


@pytest.mark.parametrize(
    "uri", ["MNIST:train:8", "MNIST:train:-1", "MNIST:all:0", "KMNIST:train:0", "x"]
)
def test_an_array_that_is_not_there_is_an_os_error(tmp_path: Path, uri: str):
    COPIES["MNIST"][0](tmp_path, some_images("MNIST"))
    with pytest.raises(OSError, match=uri):
        opened("MNIST", tmp_path).read(uri)


def test_a_file_that_is_gone_is_listed_without_version(tmp_path: Path):
    food(tmp_path, some_images("Food101"))
    gone = tmp_path / "food-101" / "images" / "class0" / "train0.jpg"
    gone.unlink()
    source = opened("Food101", tmp_path)
    (entry,) = (e for e in source.entries() if e.uri == str(gone))
    assert (entry.label, entry.version) == ("class0", None)
    with pytest.raises(OSError, match="train0"):
        source.read(entry.uri)


def test_two_classes_of_one_name_stay_two(tmp_path: Path):
    """ImageNet has two "crane": a bird and a machine."""
    import torch

    imagenet(tmp_path, some_images("ImageNet"))
    names = {"n00": ("crane",), "n01": ("crane", "lift")}
    torch.save((names, []), tmp_path / "meta.bin")
    labels = {entry.label for entry in opened("ImageNet", tmp_path).entries()}
    assert labels == {"crane (0)", "crane (1)"}


def test_a_test_image_without_a_label_has_none(tmp_path: Path):
    """FER2013 as Kaggle gave it: train.csv and an unlabelled test.csv."""
    pixels = " ".join(["7"] * 48 * 48)
    put(tmp_path / "fer2013" / "train.csv", f"emotion,pixels\n3,{pixels}\n")
    put(tmp_path / "fer2013" / "test.csv", f"pixels\n{pixels}\n")
    entries = list(opened("FER2013", tmp_path).entries())
    assert [(e.split, e.label) for e in entries] == [("train", "3"), ("test", None)]


@pytest.mark.parametrize("name", ["EuroSAT", "Food101", "CIFAR10", "GTSRB"])
def test_two_hundred_come_back(
    tmp_path: Path, two_hundred: list[tuple[bytes, str]], name: str
):
    """The same ids and classes, whether torchvision keeps files or arrays."""
    number = {"china": 0, "flower": 1}
    rows = [
        (np.frombuffer(data[-3072:], np.uint8).reshape(32, 32, 3), number[label])
        for data, label in two_hundred
    ]
    splits = {"train": rows[::2], "test": rows[1::2]}
    COPIES[name][0](tmp_path, {"all": rows} if name == "EuroSAT" else splits)
    classes = dict(zip(COPIES[name][2], number, strict=True))
    source = opened(name, tmp_path)
    found = {
        (image_id(source.read(entry.uri)), classes[entry.label or ""])
        for entry in source.entries()
    }
    assert found == {(image_id(data), label) for data, label in two_hundred}


# GTSRB


@pytest.fixture
def signs(tmp_path: Path) -> Path:
    gtsrb(tmp_path, some_images("GTSRB"))
    return tmp_path


def test_groups_are_tracks_of_the_training_images(signs: Path):
    entries = list(opened("GTSRB", signs).entries())
    groups = {(e.split, e.group) for e in entries}
    assert groups == {
        ("test", None),
        *(("train", f"0000{c}/0000{t}") for c in (0, 1) for t in (0, 1)),
    }


def test_a_crop_is_the_box_with_both_ends(signs: Path):
    source = opened("GTSRB", signs, crop=True)
    whole = {e.uri: e for e in opened("GTSRB", signs).entries()}
    images = some_images("GTSRB")
    expected = [
        (split, f"0000{target}", as_ppm(image[2:-4, 1:-3]))
        for split, rows in images.items()
        for image, target in rows
    ]
    assert facts(source) == sorted(expected, key=repr)
    for entry in source.entries():
        path, _, box = entry.uri.partition("#box=")
        assert box == "1,2,14,14"
        assert (entry.group, entry.version) == (whole[path].group, whole[path].version)


def test_a_fresh_process_cuts_by_the_uri_alone_and_without_torch(signs: Path):
    source = opened("GTSRB", signs, crop=True)
    uri = next(source.entries()).uri
    code = (
        "import pickle, sys\n"
        "source, uri = pickle.load(sys.stdin.buffer)\n"
        "sys.stdout.buffer.write(source.read(uri))\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps((source, uri)),
        capture_output=True,
        check=True,
    )
    assert done.stdout == source.read(uri)


@pytest.mark.parametrize("box", ["0,0,18,5", "0,0,5,19", "9,0,8,5"])
def test_a_box_outside_the_image_is_an_os_error(signs: Path, box: str):
    source = opened("GTSRB", signs, crop=True)
    path = next(source.entries()).uri.partition("#")[0]
    with pytest.raises(OSError, match=r"not inside 18x19"):
        source.read(f"{path}#box={box}")


def test_a_damaged_file_refuses_only_itself(signs: Path):
    source = opened("GTSRB", signs, crop=True)
    entries = list(source.entries())
    put(Path(entries[0].uri.partition("#")[0]), b"no image")
    assert [e.uri for e in source.entries()] == [e.uri for e in entries]
    with pytest.raises(RefusedImage):
        source.read(entries[0].uri)


@pytest.mark.parametrize(
    "table", ["GTSRB/Training/00001/GT-00001.csv", "GT-final_test.csv"]
)
def test_a_missing_annotation_names_its_file(signs: Path, table: str):
    file = signs / "gtsrb" / table
    lines = file.read_text().splitlines(keepends=True)
    if table.startswith("GTSRB"):
        file.write_text("".join(lines[:-1]))
        with pytest.raises(DatasetError, match=rf"{file.name}: no box for 00001_00007"):
            list(opened("GTSRB", signs, crop=True).entries())
        assert len(list(opened("GTSRB", signs).entries())) == 16
    file.unlink()
    with pytest.raises(DatasetError, match=file.name):
        list(opened("GTSRB", signs, crop=True).entries())


def test_a_missing_class_folder_does_not_shift_the_others(signs: Path):
    (signs / "gtsrb/GTSRB/Training/00000").rename(signs / "gtsrb/GTSRB/Training/00041")
    labels = {(e.split, e.label) for e in opened("GTSRB", signs).entries()}
    train = {("train", "00001"), ("train", "00041")}
    assert labels == {*train, ("test", "00000"), ("test", "00001")}


def shared_signs(shared: Path) -> Path:
    root = shared / "data" / "gtsrb-root"
    if not root.is_dir():
        pytest.skip("no GTSRB in the shared data")
    return root


def test_the_real_signs(shared: Path):
    source = opened("GTSRB", shared_signs(shared))
    entries = list(source.entries())
    assert Counter(e.split for e in entries) == {"train": 5160, "test": 2000}
    for split in ("train", "test"):
        found = {e.label for e in entries if e.split == split}
        assert found == {f"{n:05d}" for n in range(43)}
    train: list[Entry] = [e for e in entries if e.split == "train"]
    sizes = Counter(e.group for e in train)
    assert max(sizes.values()) == 30
    assert len(train) / len(sizes) > 15
    assert None not in sizes
    assert len({(e.group, e.label) for e in train}) == len(sizes)
    assert {e.group for e in entries if e.split == "test"} == {None}
    for entry in entries[::500]:
        assert source.read(entry.uri) == Path(entry.uri).read_bytes()


def test_boxes_of_resized_signs_are_refused(shared: Path):
    """The shared images are all 35x35, the annotations those of the originals."""
    source = opened("GTSRB", shared_signs(shared), crop=True)
    with pytest.raises(DatasetError, match=r"GT-00000\.csv.*36x36.*35x35.*resized"):
        next(source.entries())


# What goes wrong


def test_an_unknown_name_offers_the_nearest(tmp_path: Path):
    with pytest.raises(UnknownName, match="Did you mean 'CIFAR10'"):
        opened("CIFAR-10", tmp_path)


def test_a_crop_needs_boxes(tmp_path: Path):
    with pytest.raises(InvalidSpec, match=r"MNIST has no boxes.*GTSRB"):
        opened("MNIST", tmp_path, crop=True)


@pytest.mark.parametrize("name", DATASETS)
def test_absent_data_are_an_error_that_says_the_cure(name: str, tmp_path: Path):
    cure = "download: true" if DATASETS[name].downloads else "does not download"
    with pytest.raises(DatasetError, match=rf"(?s){name} .*{tmp_path}.*{cure}"):
        next(opened(name, tmp_path).entries())


def test_a_missing_root_is_not_made(tmp_path: Path):
    with pytest.raises(DatasetError, match="no such folder"):
        next(opened("Caltech101", tmp_path / "typo").entries())
    assert not (tmp_path / "typo").exists()


def test_a_failed_download_says_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As it is without a network."""
    from urllib.error import URLError

    def fail(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    module = importlib.import_module("torchvision.datasets.cifar")
    monkeypatch.setattr(module, "download_and_extract_archive", fail)
    expected = r"CIFAR10 .*Name or service not known.*download failed"
    with pytest.raises(DatasetError, match=expected):
        next(opened("CIFAR10", tmp_path, download=True).entries())


def test_present_data_are_not_downloaded(name: str, tmp_path: Path):
    COPIES[name][0](tmp_path, some_images(name))
    assert list(opened(name, tmp_path, download=True).entries())


def test_damaged_metadata_are_an_error_of_the_dataset(tmp_path: Path):
    COPIES["Food101"][0](tmp_path, some_images("Food101"))
    put(tmp_path / "food-101" / "meta" / "test.json", "{")
    with pytest.raises(DatasetError, match=r"Food101 \(test\).*JSONDecodeError"):
        list(opened("Food101", tmp_path).entries())

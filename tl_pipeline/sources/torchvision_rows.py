"""The classification datasets of ``torchvision.datasets``: one row each.

Left out: test classes that training lacks (LFWPeople, Omniglot), several labels of an
image (CelebA), videos, detection, INaturalist, LSUN (unpickles any cache it finds).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Find = str | Callable[[Any], Any]  # an attribute of the dataset, or how to work it out


@dataclass(frozen=True)
class Row:
    """How to construct the splits of one dataset, and where it keeps what.

    ``splits`` maps our names to torchvision's arguments; "all": there is no official
    one. Paths are in ``files``, else pixels in ``arrays``, else images are asked for
    one by one. Without ``targets`` those are pairs with the class index, whose name is
    in ``classes`` (else torchvision's "classes"); without names, the index is it.
    """

    name: str
    splits: Mapping[str, Mapping[str, Any]]
    files: Find | None = None
    targets: Find | None = None
    arrays: str | None = None
    classes: Find | None = None
    channels_first: bool = False
    downloads: bool = True
    group: Callable[[Path], str | None] | None = None
    boxes: bool = False


def _caltech(made: Any) -> list[tuple[Path, int]]:
    found = Path(made.root).glob("*_ObjectCategories/*/*.jpg")
    number = {name: n for n, name in enumerate(made.categories)}
    return [(f, number[f.parent.name]) for f in found if f.parent.name in number]


def _pcam_targets(made: Any) -> Any:
    # Asking image by image opens two files each, half a million times.
    file = made._base_folder / made._FILES[made._split]["targets"][0]  # noqa: SLF001
    with made.h5py.File(file) as data:
        return data["y"][:, 0, 0, 0]


def _sign_classes(made: Any) -> list[str]:
    # Class folders sort as their numbers do, and image_folder says the same. The index
    # counts the folders that are there: with one missing, train and test would differ.
    folders = sorted({Path(file).parent.name for file, _ in made._samples})  # noqa: SLF001
    return [f"{n:05d}" for n in range(43)] if folders == ["Images"] else folders


def _track(file: Path) -> str | None:
    """Class and track, some 30 frames of one physical sign; None for a test image."""
    track, frame, _ = file.stem.partition("_")
    return f"{file.parent.name}/{track}" if frame else None


WHOLE: dict[str, dict[str, Any]] = {"all": {}}
TWO = {"train": {"split": "train"}, "test": {"split": "test"}}
FLAG = {"train": {"train": True}, "test": {"train": False}}
BALANCED = {name: {"split": "balanced", **flag} for name, flag in FLAG.items()}
TRAINVAL = {"train": {"split": "trainval"}, "test": {"split": "test"}}
THREE = {**TWO, "validation": {"split": "val"}}
VALID = {**TWO, "validation": {"split": "valid"}}
# No test set, or one without labels: val is what others report as their test set.
VAL = {"train": {"split": "train"}, "test": {"split": "val"}}
PLACES = {"train": {"split": "train-standard"}, "test": {"split": "val"}}
_ROWS = (
    Row("CIFAR10", FLAG, None, "targets", "data"),
    Row("CIFAR100", FLAG, None, "targets", "data"),
    Row("CLEVRClassification", VAL, "_image_files", "_labels"),
    Row("Caltech101", WHOLE, _caltech, classes="categories"),
    Row("Caltech256", WHOLE, _caltech, classes="categories"),
    Row("Country211", VALID, "samples"),
    Row("DTD", THREE, "_image_files", "_labels"),  # the first of ten partitions
    Row("EMNIST", BALANCED, None, "targets", "data"),
    Row("EuroSAT", WHOLE, "samples"),
    Row("FER2013", TWO, arrays="_samples", downloads=False),
    Row("FGVCAircraft", THREE, "_image_files", "_labels"),
    Row("FashionMNIST", FLAG, None, "targets", "data"),
    Row("Flowers102", THREE, "_image_files", "_labels"),
    Row("Food101", TWO, "_image_files", "_labels"),
    Row("GTSRB", TWO, "_samples", classes=_sign_classes, group=_track, boxes=True),
    Row("ImageNet", VAL, "samples", downloads=False),
    Row("Imagenette", VAL, "_samples"),
    Row("KMNIST", FLAG, None, "targets", "data"),
    Row("MNIST", FLAG, None, "targets", "data"),
    Row("OxfordIIITPet", TRAINVAL, "_images", "_labels"),
    Row("PCAM", THREE, None, _pcam_targets),
    Row("Places365", PLACES, "imgs"),
    Row("QMNIST", FLAG, None, lambda made: made.targets[:, 0], "data"),
    Row("RenderedSST2", THREE, "_samples"),
    Row("SEMEION", WHOLE, None, "labels", "data"),
    Row("STL10", TWO, None, "labels", "data", channels_first=True),  # not "unlabeled"
    Row("SUN397", WHOLE, "_image_files", "_labels"),
    Row("SVHN", TWO, None, "labels", "data", channels_first=True),  # not "extra"
    Row("StanfordCars", TWO, "_samples", downloads=False),
    Row("USPS", FLAG, None, "targets", "data"),
)
DATASETS = {row.name: row for row in _ROWS}

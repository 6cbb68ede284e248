"""Datasets of ``torchvision.datasets`` by name, with their official splits."""

import contextlib
import csv
import importlib
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tl_pipeline.config.datasets import TorchvisionSpec
from tl_pipeline.errors import DatasetError, InvalidSpec, UnknownName
from tl_pipeline.inputs.images import RefusedImage, as_ppm, decode, probe
from tl_pipeline.sources.entry import Entry, Source
from tl_pipeline.sources.torchvision_rows import DATASETS, Find, Row
from tl_pipeline.storage import downloads

Part = tuple[list[str | None], list[Path], Callable[[int], np.ndarray] | None]


_ENDS = ("X1", "Y1", "X2", "Y2")
_OBJECTS = {
    "VOC": "voc_objects",
    "VOCDetection": "voc_objects",
    "COCO": "coco_objects",
    "CocoDetection": "coco_objects",
}


class TorchvisionDataset(Source):
    """The official splits of one dataset.

    Where torchvision keeps paths, an input is that file, unchanged; where it keeps
    arrays, ``Name:split:index``, given as PGM or PPM (see ``images.as_ppm``). A cut-out
    is ``path#box=x1,y1,x2,y2``, both ends inside. Raises ``UnknownName`` or, for a crop
    where there are no boxes, ``InvalidSpec``.
    """

    def __init__(self, spec: TorchvisionSpec) -> None:
        if spec.dataset in _OBJECTS:
            raise InvalidSpec(
                f"{spec.dataset} labels the objects of a photo, not the photo: use "
                f"'type: {_OBJECTS[spec.dataset]}'"
            )
        if spec.dataset not in DATASETS:
            raise UnknownName("torchvision dataset", spec.dataset, DATASETS)
        self._row = DATASETS[spec.dataset]
        if spec.crop and not self._row.boxes:
            boxed = ", ".join(row.name for row in DATASETS.values() if row.boxes)
            raise InvalidSpec(f"{spec.dataset} has no boxes to crop, only {boxed}")
        path = spec.path.expanduser().resolve()
        self._spec = spec.model_copy(update={"path": path})
        self._parts: dict[str, Part] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._spec,)

    def entries(self) -> Iterator[Entry]:
        """One entry per image: files sorted by path, arrays in torchvision's order.

        Raises:
            DatasetError: torchvision cannot construct it, or a box is missing.
        """
        for name in self._row.splits:
            split = None if name == "all" else name
            labels, files, pixels = self._part(name)
            boxes = _boxes(files) if self._spec.crop else ("" for _ in files)
            for file, label, box in zip(files, labels, boxes, strict=False):
                group = self._row.group(file) if self._row.group else None
                entry = Entry(f"{file}{box}", label, None, split, group)
                with contextlib.suppress(OSError):  # reading it will tell
                    at, size = (stat := file.stat()).st_mtime_ns, stat.st_size
                    entry = replace(entry, version=f"{size}:{at}", modified_ns=at)
                yield entry
            for index, label in enumerate(labels if pixels else []):
                yield Entry(f"{self._row.name}:{name}:{index}", label, split=split)

    def read(self, uri: str) -> bytes:
        """The bytes of a file, or pixels as PGM or PPM.

        Raises:
            OSError: there is no such image, or the box is not inside it.
            RefusedImage: the image to cut from cannot be decoded.
            DatasetError: torchvision cannot construct the dataset.
        """
        if self._row.files:
            cut = re.fullmatch(r"(.+)#box=(\d+),(\d+),(\d+),(\d+)", uri, re.DOTALL)
            if cut is None or not self._row.boxes:
                return Path(uri).read_bytes()
            return _cut(Path(cut[1]), *(int(end) for end in cut.groups()[1:]))
        asked = re.fullmatch(rf"{self._row.name}:(\w+):([0-9]+)", uri)
        if asked and asked[1] in self._row.splits:
            labels, _, pixels = self._part(asked[1])
            if pixels and int(asked[2]) < len(labels):
                return as_ppm(pixels(int(asked[2])))
        raise FileNotFoundError(f"{uri}: no such image in {self._row.name}")

    def _part(self, split: str) -> Part:
        with self._lock:
            if split not in self._parts:
                with downloads.watched():
                    self._parts[split] = _construct(self._row, split, self._spec)
            return self._parts[split]


def _construct(row: Row, split: str, spec: TorchvisionSpec) -> Part:
    fetch = spec.download and row.downloads
    options = {"download": fetch} if row.downloads else {}
    cure = "the download failed: try again" if fetch else "set 'download: true'"
    cure = f"{cure} or" if row.downloads else "torchvision does not download it:"
    try:
        if not fetch and not spec.path.is_dir():
            raise FileNotFoundError("no such folder")  # noqa: TRY301
        make = getattr(importlib.import_module("torchvision.datasets"), row.name)
        return _found(row, make(root=str(spec.path), **row.splits[split], **options))
    except Exception as error:  # noqa: BLE001 - each dataset raises what it pleases
        said = f"{row.name} ({split}) in {spec.path}: {type(error).__name__}: {error}"
        raise DatasetError(f"{said}; {cure} put its files there") from None


def _found(row: Row, made: Any) -> Part:
    """What ``row`` says where to find in the dataset that torchvision ``made``."""

    def find(how: Find | None) -> Any:
        return how(made) if callable(how) else getattr(made, how) if how else None

    values, targets = find(row.files or row.arrays), find(row.targets)
    if targets is None:
        values, targets = zip(*values, strict=True)
    known = find(row.classes) or getattr(made, "classes", ())
    # Of several names of one class (ImageNet) the first; two classes stay two.
    names = [n if isinstance(n, str) else n[0] for n in known]
    count = Counter(names)
    names = [f"{n} ({i})" if count[n] > 1 else n for i, n in enumerate(names)]
    targets = np.asarray(targets).tolist()
    labels = [t if t is None else names[t] if names else str(t) for t in targets]
    if row.files:
        order = sorted(range(len(labels)), key=lambda i: str(values[i]))
        return [labels[i] for i in order], [Path(values[i]) for i in order], None

    def pixels(index: int) -> np.ndarray:
        array = np.asarray(made[index][0] if values is None else values[index])
        return np.moveaxis(array, 0, -1) if row.channels_first else array

    return labels, [], pixels


def _boxes(files: list[Path]) -> Iterator[str]:
    """What a uri says of GTSRB's box, for every file."""
    tables: dict[Path, dict[str, dict[str, str]]] = {}
    for file in files:
        table = file.with_name(f"GT-{file.parent.name}.csv")
        if file.parent.name == "Images":  # of the test: gtsrb/GTSRB/Final_Test/Images
            table = file.parents[3] / "GT-final_test.csv"
        try:
            if table not in tables:
                with table.open(newline="") as lines:
                    rows = csv.DictReader(lines, delimiter=";")
                    tables[table] = {row["Filename"]: row for row in rows}
                _check_size(file, tables[table][file.name])
            row = tables[table][file.name]
            yield "#box=" + ",".join(str(int(row[f"Roi.{end}"])) for end in _ENDS)
        except (OSError, KeyError, TypeError, ValueError) as error:
            said = f"{table}: no box for {file.name} ({type(error).__name__}: {error})"
            raise DatasetError(f"{said}; mend it, or leave out 'crop'") from None


def _check_size(file: Path, row: dict[str, str]) -> None:
    # Copies of GTSRB with all images resized go round: its boxes do not fit them.
    with contextlib.suppress(OSError, RefusedImage):  # reading it will tell
        width, height = probe(file.read_bytes())
        if (str(width), str(height)) != (row["Width"], row["Height"]):
            said = f"{row['Width']}x{row['Height']} pixels, not {width}x{height}"
            raise ValueError(f"the box is for {said}: the images were resized")


def _cut(file: Path, left: int, top: int, right: int, bottom: int) -> bytes:
    image = decode(file.read_bytes())
    if not (left <= right < image.width and top <= bottom < image.height):
        raise OSError(f"{file}: the box is not inside {image.width}x{image.height}")
    return as_ppm(np.asarray(image.crop((left, top, right + 1, bottom + 1))))

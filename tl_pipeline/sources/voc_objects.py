"""The annotated objects of Pascal VOC (Everingham et al., IJCV 2010), cut out."""

import importlib
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from xml.parsers import expat

from tl_pipeline.config.datasets import VocObjectsSpec
from tl_pipeline.errors import DatasetError
from tl_pipeline.sources.crops import (
    Labelled,
    Photos,
    inside,
    labelled,
)
from tl_pipeline.sources.entry import Entry, Source, refused
from tl_pipeline.storage import downloads

_ENDS = ("xmin", "ymin", "xmax", "ymax")
_LARGEST = 1 << 24  # bytes of an annotation; VOC's own have 2 kB


class VocObjects(Source):
    """Every object of every photo is an input: the pixels of its box.

    torchvision's layout: ``VOCdevkit/VOC2012`` (2011: ``TrainVal/VOCdevkit/VOC2011``)
    with ``ImageSets/Main/train.txt``, ``Annotations/*.xml``, ``JPEGImages/*.jpg``. The
    official train, val and test of 2007 are kept; the tests of the later years have no
    public annotations, so their val is the test split and validation is drawn from
    train. The photo is the group. Boxes are pixels counted from 1, both ends inside;
    fractions, which VOC2012 has a few of, are cut off. An annotation that is missing or
    damaged is one input, to be refused with that reason. ``difficult`` objects are left
    out as in VOC's own evaluation, unless the spec asks for them.
    """

    def __init__(self, spec: VocObjectsSpec) -> None:
        self._spec = spec
        early = "TrainVal/" if spec.year == 2011 else ""
        root = spec.path.expanduser().resolve()
        self._base = root / f"{early}VOCdevkit/VOC{spec.year}"
        self._folder = inside(str(self._base), "JPEGImages")
        self._photos = Photos([self._folder], spec)
        # Our names of the splits to VOC's.
        self._splits = {"train": "train", "test": "val"}
        if spec.year == 2007:
            self._splits = {"train": "train", "validation": "val", "test": "test"}

    def __reduce__(self) -> tuple[type["VocObjects"], tuple[VocObjectsSpec]]:
        return VocObjects, (self._spec,)  # decoded photos stay at home

    def entries(self) -> Iterator[Entry]:
        """One entry per object: split by split, photos by name, objects as written.

        Raises:
            DatasetError: the files of a split are missing, the download failed, a photo
                is listed twice, or there are no objects at all.
        """
        listing: dict[str, str] = {}
        number = 0
        for split, official in self._splits.items():
            for name in self._names(official):
                if name in listing:
                    raise DatasetError(
                        f"{self._base}/ImageSets/Main lists the photo {name!r} in "
                        f"{listing[name]}.txt and again in {official}.txt; keep one, "
                        "or its objects may be learned from and tested on"
                    )
                listing[name] = official
                for entry in self._objects(name, split):
                    number += 1
                    yield entry
        if not number:
            raise DatasetError(
                f"{self._base}: none of {len(listing)} photos has an object"
            )

    def read(self, uri: str) -> bytes:
        """The pixels of one object; raises as ``crops.Photos.read``."""
        return self._photos.read(uri)

    def notes(self) -> list[str]:
        """What is to be said of the photos."""
        return self._photos.notes()

    def _names(self, official: str) -> list[str]:
        file = self._base / "ImageSets" / "Main" / f"{official}.txt"
        if not file.is_file() and self._spec.download:
            with downloads.watched():
                self._fetch(official)
        try:
            lines = file.read_text("utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise DatasetError(
                f"VOC{self._spec.year} ({official}): {file}: {error}; set "
                "'download: true' or put its files there"
            ) from None
        return sorted(filter(None, map(str.strip, lines)))

    def _fetch(self, official: str) -> None:
        """Download and unpack what holds this split, checked by torchvision's md5."""
        voc = importlib.import_module("torchvision.datasets").VOCDetection
        root = str(self._spec.path.expanduser())
        try:
            voc(root, year=str(self._spec.year), image_set=official, download=True)
        except Exception as error:  # noqa: BLE001 - as torchvision_dataset
            said = f"VOC{self._spec.year} ({official}) in {root}"
            raise DatasetError(
                f"{said}: {type(error).__name__}: {error}; the download failed: try "
                "again or put its files there"
            ) from None

    def _objects(self, name: str, split: str) -> Iterator[Entry]:
        photo = inside(self._folder, f"{name}.jpg")
        file = inside(str(self._base / "Annotations"), f"{name}.xml")
        try:
            if not file.startswith(f"{self._base}/Annotations/"):
                raise ValueError("its name leads out of the folder")  # noqa: TRY301
            root = _parse(Path(file))
        except (OSError, ValueError, LookupError, expat.ExpatError) as error:
            why = f"{type(error).__name__}: {error}"
            yield Entry(refused(file, why), None, None, split, name)
            return
        found = [
            _labelled(node)
            for node in root.iterfind("object")
            if self._spec.difficult or node.findtext("difficult", "").strip() != "1"
        ]
        sides = [root.findtext(f"size/{side}", "").strip() for side in _SIDES]
        size = (
            (int(sides[0]), int(sides[1]))
            if all(map(_WHOLE.fullmatch, sides))
            else None
        )
        yield from self._photos.entries(photo, file, found, split, name, size)


_SIDES = ("width", "height")
_WHOLE = re.compile(r"[1-9][0-9]{0,8}")  # labelling tools write 0 for "not known"


def _labelled(node: ET.Element) -> Labelled:
    label = node.findtext("name", "").strip() or None
    texts = [node.findtext(f"bndbox/{end}", "").strip() for end in _ENDS]
    try:
        left, top, right, bottom = (int(float(text)) for text in texts)
    except (ValueError, OverflowError):
        return labelled(label, *texts)  # it says what is wrong with them
    return labelled(label, left - 1, top - 1, right - left + 1, bottom - top + 1)


def _parse(file: Path) -> ET.Element:
    """The tree of an annotation, without ever expanding an entity.

    Raises:
        ValueError: it is too large, or has a document type, without which there are no
            entities that could swell it or name other files.
        ExpatError: it is not well-formed.
    """
    if not file.is_file():
        raise FileNotFoundError("no such annotation")
    if file.stat().st_size > _LARGEST:
        raise ValueError(f"an annotation of more than {_LARGEST} bytes")
    builder, parser = ET.TreeBuilder(), expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse
    parser.Parse(file.read_bytes(), True)
    return builder.close()


def _refuse(*_: Any) -> NoReturn:
    raise ValueError("it declares a document type, which could hold entities")

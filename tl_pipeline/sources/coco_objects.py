"""The annotated objects of COCO's JSON files (Lin et al., ECCV 2014), cut out."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tl_pipeline.config.datasets import CocoObjectsSpec
from tl_pipeline.errors import DatasetError
from tl_pipeline.sources.crops import (
    Labelled,
    Photos,
    inside,
    labelled,
)
from tl_pipeline.sources.entry import Entry, Source, printable, refused

_OFFICIAL = re.compile(r"instances_(.+)\.json")


class _Annotation(NamedTuple):
    image: Any
    category: Any
    box: Any
    crowd: Any


class _Photo(NamedTuple):
    id: Any
    name: str
    size: Any  # (width, height) in pixels, None where it is unknown


class _Instances(NamedTuple):
    """What a file says: photos by name, annotations with their number by photo's id."""

    photos: list[_Photo]
    annotations: dict[Any, list[tuple[int, _Annotation]]]
    labels: dict[Any, str]


class CocoObjects(Source):
    """Every annotated object is an input: the pixels of its box.

    Where only train is given no split is declared. The photo is the group. A box is
    x, y, width, height in fractions of pixels from the corner; it is rounded as PIL's
    ``crop`` rounds. An annotation without a box, class or photo is an input to be
    refused for that. Objects with ``iscrowd`` are left out unless the spec asks for
    them. Listing loads one JSON file at a time as a whole (its outlines are dropped
    while it is parsed); reading needs none. pycocotools is not needed.
    """

    def __init__(self, spec: CocoObjectsSpec) -> None:
        self._spec = spec
        files = {
            "train": spec.train,
            "validation": spec.validation,
            "test": spec.test,
        }
        # Of every field that is given: the file and its folder of photos.
        self._files = {
            split: (path.expanduser().resolve(), self._images(path))
            for split, path in files.items()
            if path
        }
        folders = [folder for _, folder in self._files.values()]
        self._photos = Photos(folders, spec)

    def __reduce__(self) -> tuple[type["CocoObjects"], tuple[CocoObjectsSpec]]:
        return CocoObjects, (self._spec,)  # decoded photos stay at home

    def entries(self) -> Iterator[Entry]:
        """One entry per object: file by file, photos by name, objects as written.

        Raises:
            DatasetError: a file is missing, damaged or without objects, its folder of
                photos is missing, or a photo is listed twice.
        """
        seen: dict[str, Path] = {}
        for field, (file, folder) in self._files.items():
            found = _load(file)
            split = field if len(self._files) > 1 else None
            if not Path(folder).is_dir():
                raise DatasetError(
                    f"{file}: its photos are not in {folder}; say where in 'images'"
                )
            for photo in found.photos:
                path = inside(folder, photo.name)
                if path in seen:
                    raise DatasetError(
                        f"the photo {path} is listed in {seen[path]} and again in "
                        f"{file}; keep one, or its objects may be learned from and "
                        "tested on"
                    )
                seen[path] = file
                numbered = found.annotations.pop(photo.id, [])
                objects = [
                    _labelled(annotation, found.labels)
                    for _, annotation in numbered
                    if self._spec.crowd or not annotation.crowd
                ]
                group = f"{field}/{printable(photo.name)}"
                about = path, str(file), objects, split, group, photo.size
                yield from self._photos.entries(*about)
            # What is left belongs to no photo.
            for photo_id, numbered in found.annotations.items():
                for number, _ in numbered:
                    why = f"annotation {number}: no image has the id {photo_id!r}"
                    yield Entry(refused(str(file), why[:200]), None, None, split)

    def read(self, uri: str) -> bytes:
        """The pixels of one object; raises as ``crops.Photos.read``."""
        return self._photos.read(uri)

    def notes(self) -> list[str]:
        """What is to be said of the photos."""
        return self._photos.notes()

    def _images(self, path: Path) -> str:
        file = path.expanduser().resolve()
        official = _OFFICIAL.fullmatch(file.name)
        if self._spec.images:
            return str(self._spec.images.expanduser().resolve())
        if official and file.parent.name == "annotations":
            return str(file.parents[1] / official[1])
        return str(file.parent)


def _labelled(annotation: _Annotation, labels: dict[Any, str]) -> Labelled:
    known = isinstance(annotation.category, int | str)
    if not known or annotation.category not in labels:
        said = f"no category has the id {annotation.category!r}"
        return Labelled(None, fault=said[:200])
    label = labels[annotation.category]
    if not isinstance(annotation.box, list) or len(annotation.box) != 4:
        said = f"its bbox is not four numbers: {annotation.box!r}"
        return Labelled(label, fault=said[:200])
    return labelled(label, *annotation.box)


def _load(file: Path) -> _Instances:
    try:
        with file.open(encoding="utf-8") as text:
            document = json.load(text, object_hook=_slim)
        photos = sorted(document["images"], key=lambda photo: photo.name)
        if len({photo.id for photo in photos}) < len(photos):
            raise ValueError("two of 'images' have one id")  # noqa: TRY301
        categories = document["categories"]
        names = Counter(str(category["name"]) for category in categories)
        labels: dict[Any, str] = {}
        for category in categories:
            name = str(category["name"])
            # Two classes of one name stay two. What is no UTF-8 fits no table.
            label = f"{name} ({category['id']})" if names[name] > 1 else name
            labels[category["id"]] = printable(label)
        annotations: dict[Any, list[tuple[int, _Annotation]]] = defaultdict(list)
        for number, annotation in enumerate(document["annotations"]):
            annotations[annotation.image].append((number, annotation))
    except OSError as error:
        raise DatasetError(f"{file} cannot be read: {error}") from None
    # Whoever wrote something else than COCO's format: each way has its own exception.
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise DatasetError(
            f"{file} is not in COCO's format: {type(error).__name__}: {error}; "
            "expected 'images' (id, file_name), 'categories' (id, name) and "
            "'annotations' (image_id, category_id, bbox)"
        ) from None
    if not annotations:
        raise DatasetError(f"{file} holds no objects: 'annotations' is empty")
    return _Instances(photos, annotations, labels)


def _slim(found: dict[str, Any]) -> Any:
    """What is needed of one object of the JSON: outlines take nine tenths of it."""
    if "image_id" in found:
        box, crowd = found.get("bbox"), found.get("iscrowd", 0)
        return _Annotation(found["image_id"], found.get("category_id"), box, crowd)
    if "file_name" in found:
        name, size = found["file_name"], (found.get("width"), found.get("height"))
        known = all(type(side) is int and side > 0 for side in size)
        return _Photo(found["id"], str(name), size if known else None)
    return found

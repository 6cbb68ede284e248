"""Where images (or texts, or vectors) come from: one small module per kind of source.

A source lists its inputs cheaply (``entries``) and hands out the bytes of one of them
on demand (``read``). It filters nothing: what is not an image is refused later, with a
reason, by whoever looks at the bytes.

To add one: a spec in ``config/datasets.py``, a module here, a row in ``SOURCES``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
from tl_pipeline.sources.archive import Archive
from tl_pipeline.sources.coco_objects import CocoObjects
from tl_pipeline.sources.digits import Digits
from tl_pipeline.sources.entry import Entry, Source
from tl_pipeline.sources.features import Features
from tl_pipeline.sources.huggingface import HuggingFace
from tl_pipeline.sources.image_folder import ImageFolder
from tl_pipeline.sources.pickled import Pickled
from tl_pipeline.sources.table import Table
from tl_pipeline.sources.torchvision_dataset import TorchvisionDataset
from tl_pipeline.sources.voc_objects import VocObjects
from tl_pipeline.sources.webdataset import WebDataset

__all__ = ["SOURCES", "Entry", "Source", "SourceRow", "entry", "open_source"]


@dataclass(frozen=True)
class SourceRow:
    """One kind of source: its ``type`` in the catalogue, its spec, its class."""

    kind: str
    spec: type[Any]
    open: Callable[[Any], Source]
    summary: str


SOURCES = (
    SourceRow("image_folder", ImageFolderSpec, ImageFolder, "root/[split/]class/image"),
    SourceRow("digits", DigitsSpec, Digits, "scikit-learn's 1,797 handwritten digits"),
    SourceRow("table", TableSpec, Table, "CSV, TSV or Parquet: paths, bytes, texts"),
    SourceRow("archive", ArchiveSpec, Archive, "zip or tar of an image folder"),
    SourceRow("webdataset", WebDatasetSpec, WebDataset, "tar shards of samples"),
    SourceRow(
        "torchvision", TorchvisionSpec, TorchvisionDataset, "by name: GTSRB, ..."
    ),
    SourceRow("pickle", PickleSpec, Pickled, "train.p: features and labels"),
    SourceRow("features", FeaturesSpec, Features, "vectors: npy, npz, Parquet, pickle"),
    SourceRow("voc_objects", VocObjectsSpec, VocObjects, "Pascal VOC, box by box"),
    SourceRow("coco_objects", CocoObjectsSpec, CocoObjects, "COCO, box by box"),
    SourceRow("huggingface", HuggingFaceSpec, HuggingFace, "save_to_disk, or the hub"),
)


def open_source(spec: DatasetSpec) -> Source:
    """The source that ``spec`` describes; nothing is read yet."""
    row = next(row for row in SOURCES if row.spec is type(spec))
    return row.open(spec)

"""The dataset entries of the catalogue as frozen values: one class a kind of source."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tl_pipeline.config.dataset_entry import (
    DatasetEntry,
    Modality,
    NamedSplitsEntry,
    Names,
    RemoteEntry,
    TextEncoding,
)
from tl_pipeline.config.locations import LocalPath, Location, UrlPrefix, is_url, on_web


class _Downloaded(DatasetEntry):
    """What sources may say that a library can download."""

    download: bool = False

    def offline(self) -> Self:
        """The same dataset as it is on disk."""
        return self.model_copy(update={"download": False})


class DigitsSpec(DatasetEntry):
    """The 1,797 handwritten digits that scikit-learn ships, 8x8 grey."""

    type: Literal["digits"]


class ImageFolderSpec(NamedSplitsEntry, RemoteEntry):
    """``root/class/*`` or ``root/{train,val,test}/class/*``."""

    type: Literal["image_folder"] = "image_folder"
    path: Location

    @model_validator(mode="after")
    def _can_be_listed(self) -> Self:
        if is_url(self.path) and on_web(self.path):
            raise ValueError(
                "https has no folders to list; use type archive, webdataset or table"
            )
        return self


class TableSpec(NamedSplitsEntry, RemoteEntry):
    """A CSV, TSV or Parquet file with one row per image, or per text.

    ``image_column`` holds a path (relative to ``root``, by default the table's own
    folder), or the encoded bytes, or a struct of ``bytes`` and ``path``. ``path`` may
    hold wildcards where several files make one table. A row may hold a URL if it lies
    below ``root`` or begins as one of ``allowed_urls`` (``https://`` allows every
    host). ``separator`` is that of text files, by default a comma in .csv, else a tab.
    ``encoding`` is that of text files, by default UTF-8 or what a byte order mark says.
    ``weight_column`` holds how much an image counts while training, a number >= 0.

    With ``text_column`` the cells of that column are the inputs, and not images.
    """

    type: Literal["table"]
    path: Location
    root: Location | None = None
    allowed_urls: tuple[UrlPrefix, ...] = ()
    image_column: str = "image"
    text_column: str | None = None
    label_column: str = "label"
    group_column: str | None = None
    split_column: str | None = None
    weight_column: str | None = None
    separator: str | None = Field(default=None, pattern=r"^[^\r\n\x00\x22]$")
    encoding: TextEncoding | None = None

    @model_validator(mode="after")
    def _texts_or_images(self) -> Self:
        of_images = {"image_column", "root", "allowed_urls"} & self.model_fields_set
        if self.text_column is not None and of_images:
            raise ValueError(
                f"{', '.join(sorted(of_images))}: of images, but 'text_column' makes "
                "the cells themselves the inputs; leave one out"
            )
        if self.splits is not None and not (self.split_column and self.splits):
            raise ValueError("splits: says which cells of 'split_column' are which")
        return self

    @property
    def modality(self) -> Modality:
        """Text where a column of texts is named."""
        return "image" if self.text_column is None else "text"

    @property
    def grouped(self) -> bool:
        """Whether a column of groups is named."""
        return self.group_column is not None


class ArchiveSpec(NamedSplitsEntry, RemoteEntry):
    """A zip or tar file of a folder laid out as for ``image_folder``.

    ``encoding`` is that of names which the archive does not mark as UTF-8, such as
    ``shift_jis``.
    """

    type: Literal["archive"]
    path: Location
    encoding: TextEncoding | None = None


class WebDatasetSpec(RemoteEntry):
    """Tar shards in WebDataset's convention: files of one key are one sample.

    ``path`` may hold wildcards and ``{000..015}``. ``image`` lists the endings an image
    may have, all that stands behind the key (``left.jpg``); the first that a sample has
    is its image. ``label`` is the ending of the label's file, ``cls`` (text), or
    ``json:field`` for a field of a JSON file.
    """

    type: Literal["webdataset"]
    path: Location
    image: Names = (
        *("jpg", "jpeg", "png", "webp", "ppm", "pgm", "bmp", "tif", "tiff"),
        *("gif", "avif"),
    )
    label: str = "cls"


class TorchvisionSpec(_Downloaded):
    """A classification dataset of ``torchvision.datasets`` by its class name.

    ``path`` is torchvision's ``root``. Official splits are kept. With ``crop`` the box
    that the dataset gives (GTSRB's sign) is cut out.
    """

    type: Literal["torchvision"]
    dataset: str
    path: LocalPath
    crop: bool = False

    @property
    def grouped(self) -> bool:
        """GTSRB's frames belong to tracks."""
        return self.dataset == "GTSRB"


class PickleSpec(DatasetEntry):
    """Pickled dictionaries of arrays: ``features`` (n, height, width, 3), ``labels``.

    As the notebooks on traffic signs keep them: ``train.p``, ``valid.p``, ``test.p``.
    Nothing but numpy arrays and plain values is unpickled.
    """

    type: Literal["pickle"]
    train: LocalPath
    validation: LocalPath | None = None
    test: LocalPath | None = None
    features: str = "features"
    labels: str = "labels"


class FeaturesSpec(DatasetEntry):
    """Vectors that were computed elsewhere: .npy, .npz, .parquet, or a pickle.

    ``features`` and ``labels`` are the names of two arrays of an .npz file or a pickle
    (the notebooks' bottleneck features), or of two columns of a Parquet file, that of
    the features a list of numbers in each row. An .npy file has no names: its labels
    are another file, ``train_labels``. Whatever the axes of an array, its first counts
    the rows, and the rest is laid out to one vector. Splits are declared as for
    ``pickle``.
    """

    type: Literal["features"]
    train: LocalPath
    validation: LocalPath | None = None
    test: LocalPath | None = None
    train_labels: LocalPath | None = None
    validation_labels: LocalPath | None = None
    test_labels: LocalPath | None = None
    features: str = "features"
    labels: str = "labels"

    @model_validator(mode="after")
    def _labels_beside(self) -> Self:
        for split in ("train", "validation", "test"):
            file = getattr(self, split)
            beside = getattr(self, f"{split}_labels")
            bare = file is not None and file.suffix.lower() == ".npy"
            if bare != (beside is not None):
                raise ValueError(
                    f"{split}_labels: an .npy file needs one, and nothing else does"
                )
        return self

    @property
    def modality(self) -> Modality:
        """Vectors."""
        return "vector"


class BoxedEntry(DatasetEntry):
    """What sources of annotated objects may say.

    ``margin`` enlarges a box on each side by this fraction of its width and height, as
    far as the photo reaches. A box that is not inside its photo is refused, or with
    ``boxes: clip`` cut to what is.
    """

    margin: float = Field(default=0.0, ge=0, le=1)
    boxes: Literal["refuse", "clip"] = "refuse"

    @property
    def grouped(self) -> bool:
        """The objects of a photo belong together."""
        return True


class VocObjectsSpec(BoxedEntry, _Downloaded):
    """The objects of Pascal VOC, each cut out of its photo by its box.

    ``path`` is torchvision's ``root``, with ``VOCdevkit/VOC2012`` in it. The objects
    that VOC marks as difficult are left out, as in its own evaluation, unless
    ``difficult`` is true.
    """

    type: Literal["voc_objects"]
    path: Path
    year: Literal[2007, 2008, 2009, 2010, 2011, 2012] = 2012
    difficult: bool = False


class CocoObjectsSpec(BoxedEntry):
    """The objects of COCO's ``instances_*.json``, each cut out of its photo by its box.

    ``images`` is the folder of the photos; by default that beside ``annotations`` which
    the file is named after (``train2017``), else the file's own folder. A box of a
    crowd (``iscrowd``) holds many objects: it is left out unless ``crowd`` is true.
    """

    type: Literal["coco_objects"]
    train: Path
    validation: Path | None = None
    test: Path | None = None
    images: Path | None = None
    crowd: bool = False


class HuggingFaceSpec(NamedSplitsEntry, _Downloaded):
    """A dataset of the library ``datasets``, by ``path`` or by ``dataset``.

    ``path`` is a folder written by ``save_to_disk``, ``dataset`` a name on the hub such
    as ``ylecun/mnist``, with its ``config`` and the full hash of a commit as
    ``revision``; without ``download`` it is read from the library's own cache.
    """

    type: Literal["huggingface"]
    path: Path | None = None
    dataset: str | None = Field(default=None, pattern=r"^\w[\w.-]*/\w[\w.-]*$")
    config: str | None = None
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    image_column: str = "image"
    label_column: str = "label"
    group_column: str | None = None

    @model_validator(mode="after")
    def _name_one_place(self) -> Self:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give either 'path' (a folder) or 'dataset' (a hub name)")
        if self.path and (self.config or self.revision or self.download):
            raise ValueError("'config', 'revision' and 'download' go with 'dataset'")
        return self

    @property
    def grouped(self) -> bool:
        """Whether a column of groups is named."""
        return self.group_column is not None


DatasetSpec = Annotated[
    DigitsSpec
    | ImageFolderSpec
    | TableSpec
    | ArchiveSpec
    | WebDatasetSpec
    | TorchvisionSpec
    | PickleSpec
    | FeaturesSpec
    | VocObjectsSpec
    | CocoObjectsSpec
    | HuggingFaceSpec,
    Field(discriminator="type"),
]

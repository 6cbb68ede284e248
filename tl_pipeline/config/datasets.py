"""The entries of the data catalogue as frozen values, one class per kind of source."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tl_pipeline.config.catalog_entry import CatalogEntry, Modality, StoredEntry
from tl_pipeline.config.locations import LocalPath, Location, UrlPrefix, is_url, on_web


class DigitsSpec(CatalogEntry):
    """The 1,797 handwritten digits that scikit-learn ships, 8x8 grey."""

    type: Literal["digits"]


class ImageFolderSpec(StoredEntry):
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


class TableSpec(StoredEntry):
    """A CSV, TSV or Parquet file with one row per image, or per text.

    ``image_column`` holds a path (relative to ``root``, by default the table's own
    folder), or the encoded bytes, or a struct of ``bytes`` and ``path``. ``path`` may
    hold wildcards where several files make one table. A row may hold a URL if it lies
    below ``root`` or begins as one of ``allowed_urls`` (``https://`` allows every
    host). ``separator`` is that of text files, by default a comma in .csv, else a tab.
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

    @model_validator(mode="after")
    def _texts_or_images(self) -> Self:
        of_images = {"image_column", "root", "allowed_urls"} & self.model_fields_set
        if self.text_column is not None and of_images:
            raise ValueError(
                f"{', '.join(sorted(of_images))}: of images, but 'text_column' makes "
                "the cells themselves the inputs; leave one out"
            )
        return self

    @property
    def modality(self) -> Modality:
        """Text where a column of texts is named."""
        return "image" if self.text_column is None else "text"

    @property
    def grouped(self) -> bool:
        """Whether a column of groups is named."""
        return self.group_column is not None


class ArchiveSpec(StoredEntry):
    """A zip, tar or tar.gz file of a folder laid out as for ``image_folder``."""

    type: Literal["archive"]
    path: Location


class WebDatasetSpec(StoredEntry):
    """Tar shards in WebDataset's convention: files of one stem are one sample.

    ``path`` may hold wildcards and ``{000..015}``. ``image`` lists the endings an image
    may have; ``label`` is the ending of the label's file, ``cls`` (text), or
    ``json:field`` for a field of a JSON file.
    """

    type: Literal["webdataset"]
    path: Location
    image: tuple[str, ...] = ("jpg", "jpeg", "png", "webp", "ppm", "bmp", "tif", "tiff")
    label: str = "cls"


class TorchvisionSpec(CatalogEntry):
    """A classification dataset of ``torchvision.datasets`` by its class name.

    ``path`` is torchvision's ``root``. Official splits are kept. With ``crop`` the box
    that the dataset gives (GTSRB's sign) is cut out.
    """

    type: Literal["torchvision"]
    dataset: str
    path: LocalPath
    download: bool = False
    crop: bool = False

    @property
    def grouped(self) -> bool:
        """GTSRB's frames belong to tracks."""
        return self.dataset == "GTSRB"

    def offline(self) -> Self:
        """The same dataset as it is on disk."""
        return self.model_copy(update={"download": False})


class PickleSpec(CatalogEntry):
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


class FeaturesSpec(CatalogEntry):
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


class _Boxed(CatalogEntry):
    """What sources of annotated objects may say.

    ``margin`` enlarges a box on each side by this fraction of its width and height, as
    far as the photo reaches.
    """

    margin: float = Field(default=0.0, ge=0, le=1)

    @property
    def grouped(self) -> bool:
        """The objects of a photo belong together."""
        return True


class VocObjectsSpec(_Boxed):
    """The objects of Pascal VOC, each cut out of its photo by its box.

    ``path`` is torchvision's ``root``, with ``VOCdevkit/VOC2012`` in it. The objects
    that VOC marks as difficult are left out, as in its own evaluation, unless
    ``difficult`` is true.
    """

    type: Literal["voc_objects"]
    path: Path
    year: Literal[2007, 2008, 2009, 2010, 2011, 2012] = 2012
    download: bool = False
    difficult: bool = False

    def offline(self) -> Self:
        """The same dataset as it is on disk."""
        return self.model_copy(update={"download": False})


class CocoObjectsSpec(_Boxed):
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


class HuggingFaceSpec(CatalogEntry):
    """A dataset of the library ``datasets``, by ``path`` or by ``dataset``.

    ``path`` is a folder written by ``save_to_disk``, ``dataset`` a name on the hub such
    as ``ylecun/mnist``, with its ``config`` and the full hash of a commit as
    ``revision``; without ``download`` it is read from the library's own cache.
    ``splits`` maps their names of splits to ours and leaves the others out.
    """

    type: Literal["huggingface"]
    path: Path | None = None
    dataset: str | None = Field(default=None, pattern=r"^\w[\w.-]*/\w[\w.-]*$")
    config: str | None = None
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    download: bool = False
    image_column: str = "image"
    label_column: str = "label"
    group_column: str | None = None
    splits: dict[str, Literal["train", "validation", "test"]] | None = None

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

    def offline(self) -> Self:
        """The same dataset as it is on disk."""
        return self.model_copy(update={"download": False})


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

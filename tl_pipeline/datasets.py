"""The entries of the data catalogue as frozen values, one class per kind of source."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from tl_pipeline.locations import (
    LocalPath,
    Location,
    StorageSpec,
    UrlPrefix,
    is_url,
    on_web,
)
from tl_pipeline.specs import Spec

Modality = Literal["image", "text", "vector"]


class SplitSpec(Spec):
    """Which images are learned from, chosen on, and looked at once.

    - ``auto``: keep the splits that the source declares and draw the missing ones;
      where the source gives groups, whole groups are drawn.
    - ``group``: the same, but the source must give groups.
    - ``predefined``: the source must declare splits; what is missing is drawn image by
      image, whatever the groups.
    - ``stable``: ignore declarations and groups, draw every image by its own hash.
    - ``stratified``: like ``stable``, but with the exact shares in every class. The
      price is that new images may move old ones to another side.

    Shares are fractions of all images; of the training images where a test split is
    declared. But for ``stratified`` they are expectations: an image (or its group) is
    drawn by a hash of its content (or name), so that new images never move old ones.

    A class may be too small for all three splits. No image is moved for its sake:
    what a hash drew stays, and ingest names the classes and the splits where they have
    no image. Without a training image a class cannot be learned, and its validation
    and test images count as errors, because no head can name it. Without validation or
    test images it is learned, and has no part in the scores of that split. Only
    ``stratified`` gives a class its first image to train on, the second to test on,
    the third to validate on: choose it where classes are tiny.
    """

    strategy: Literal["auto", "predefined", "group", "stable", "stratified"] = "auto"
    validation: float = Field(default=0.2, gt=0, lt=1)
    test: float = Field(default=0.2, gt=0, lt=1)
    seed: int = 0

    @model_validator(mode="after")
    def _leave_something_to_train_on(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation ({self.validation}) and test ({self.test}) leave nothing "
                "to train on: their sum must be below 1"
            )
        return self


Action = Literal["report", "keep_together", "ignore"]


class NearDuplicatesSpec(Spec):
    """What is done about images that are almost the same as another.

    - ``report``: they are found, and those on two sides are reported as leakage.
    - ``keep_together``: a cluster of them is drawn as one group. Images that resemble
      a declared test or validation image, but are not declared to be with it, are
      ``excluded``: on no side, so that an official split keeps its images.
    - ``ignore``: they are not looked for.

    They are looked for in the embeddings of ``backbone``, by default the first one of
    the run; name it where splits must not change when other networks are compared. A
    ``ratio`` (see ``near_duplicates.find``) replaces the calibrated one. New images may
    join two clusters, and so move old ones.
    """

    action: Action = "report"
    backbone: str | None = None
    ratio: float | None = Field(default=None, gt=0, lt=1)
    most_images: int = Field(
        default=100_000,
        ge=1,
        description="all pairs are compared; with more images than this, none",
    )


def _near_duplicates(value: Any) -> Any:
    return {"action": value} if isinstance(value, str) else value


class Expected(Spec):
    """What a dataset is known to hold; a mismatch stops the run with both numbers."""

    images: int | None = Field(default=None, ge=1)
    classes: int | None = Field(default=None, ge=2)


class _Dataset(Spec):
    """What every entry of the catalogue may say, whatever its type."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="the entry's own key"
    )
    description: str = ""
    licence: str = ""
    split: SplitSpec = SplitSpec()
    near_duplicates: Annotated[
        NearDuplicatesSpec,
        BeforeValidator(
            _near_duplicates, json_schema_input_type=NearDuplicatesSpec | Action
        ),
    ] = NearDuplicatesSpec()
    expect: Expected = Expected()
    max_quarantined: float = Field(
        default=0.05, ge=0, le=1, description="fraction of inputs that may be refused"
    )

    @model_validator(mode="after")
    def _draw_whole_clusters(self) -> Self:
        together = self.near_duplicates.action == "keep_together"
        if together and self.split.strategy == "stratified":
            raise ValueError(
                "near_duplicates: keep_together draws whole clusters, and "
                "split.strategy: stratified single images; choose another strategy"
            )
        return self

    @property
    def modality(self) -> Modality:
        """What the inputs are; an encoder must take the same."""
        return "image"

    @property
    def grouped(self) -> bool:
        """Whether the source gives groups, as far as the entry alone can tell."""
        return False

    @property
    def drawn_together(self) -> bool:
        """Whether images are drawn in groups or clusters, and not one by one."""
        by_group = self.split.strategy == "auto" and self.grouped
        together = self.near_duplicates.action == "keep_together"
        return by_group or together or self.split.strategy == "group"

    def offline(self) -> Self:
        """The same entry, but nothing is downloaded for it."""
        return self

    def rooted(self, folder: Path) -> Self:
        """The same entry with relative paths starting at ``folder``."""
        relative = {
            name: folder / value.expanduser()
            for name, value in self
            if isinstance(value, Path)
        }
        return self.model_copy(update=relative)


class _Stored(_Dataset):
    """What an entry may say besides where its data may be behind a URL."""

    # A fault must not print what may be a secret in the wrong place.
    model_config = ConfigDict(hide_input_in_errors=True)

    storage: StorageSpec = StorageSpec()

    @model_validator(mode="after")
    def _storage_fits(self) -> Self:
        self.storage.check(value for _, value in self)
        return self


class DigitsSpec(_Dataset):
    """The 1,797 handwritten digits that scikit-learn ships, 8x8 grey."""

    type: Literal["digits"]


class ImageFolderSpec(_Stored):
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


class TableSpec(_Stored):
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


class ArchiveSpec(_Stored):
    """A zip, tar or tar.gz file of a folder laid out as for ``image_folder``."""

    type: Literal["archive"]
    path: Location


class WebDatasetSpec(_Stored):
    """Tar shards in WebDataset's convention: files of one stem are one sample.

    ``path`` may hold wildcards and ``{000..015}``. ``image`` lists the endings an image
    may have; ``label`` is the ending of the label's file, ``cls`` (text), or
    ``json:field`` for a field of a JSON file.
    """

    type: Literal["webdataset"]
    path: Location
    image: tuple[str, ...] = ("jpg", "jpeg", "png", "webp", "ppm", "bmp", "tif", "tiff")
    label: str = "cls"


class TorchvisionSpec(_Dataset):
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


class PickleSpec(_Dataset):
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


class FeaturesSpec(_Dataset):
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


class _Boxed(_Dataset):
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


class HuggingFaceSpec(_Dataset):
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

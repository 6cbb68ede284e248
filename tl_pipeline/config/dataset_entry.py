"""What a dataset entry of the catalogue may say, whatever kind of source it names."""

import codecs
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from tl_pipeline.config.locations import StorageSpec
from tl_pipeline.config.specs import GateSpec, Spec
from tl_pipeline.config.split_specs import Action, NearDuplicatesSpec, SplitSpec

Modality = Literal["image", "text", "vector"]
Band = Annotated[int, Field(ge=1)]
SplitName = Literal["train", "validation", "test"]


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _text_encoding(value: str) -> str:
    try:
        "".encode(value)
        return codecs.lookup(value).name
    except LookupError:
        raise ValueError(
            "must name a text encoding that Python knows, such as cp1252, utf-16, "
            "shift_jis or gb18030"
        ) from None


def _no_price_of_right(
    costs: dict[str, dict[str, float]],
) -> dict[str, dict[str, float]]:
    for label, said in costs.items():
        if label in said:
            raise ValueError(f"{label} taken for {label} is no error: leave it out")
    return costs


Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Names = Annotated[
    tuple[str, ...],
    BeforeValidator(_one_or_more, json_schema_input_type=str | list[str]),
    Field(min_length=1),
]
TextEncoding = Annotated[str, AfterValidator(_text_encoding)]


def _near_duplicates(value: Any) -> Any:
    return {"action": value} if isinstance(value, str) else value


def _drift(value: Any) -> Any:
    return {"action": value} if isinstance(value, str) else value


OnDrift = Literal["report", "fail", "ignore"]


class DriftSpec(Spec):
    """What is done where a batch of predictions is unlike the images of a model's test.

    - ``report``: the console, the log and an event tell of it.
    - ``fail``: the run of the flow fails besides, once its predictions are stored.
    - ``ignore``: it is not looked for.
    """

    action: OnDrift = "report"
    error: float = Field(
        default=0.01,
        ge=0.001,
        lt=1,
        description="how often a batch that is like them may be called unlike",
    )


class Expected(Spec):
    """What a dataset is known to hold; a mismatch stops the run with both numbers."""

    images: int | None = Field(default=None, ge=1)
    classes: int | None = Field(default=None, ge=2)


class PixelSpec(Spec):
    """How images are read where their files do not say it, or are cut.

    - ``range``: the samples that are black and white, of more than 8 bits or with a
      sign. It goes before what a file says itself.
    - ``channels``: the bands, counted from 1, that are red, green and blue, or the one
      that is shown in grey; of files that do not name their bands.
    - ``page``: the one that is the image, counted from 1, of TIFFs that have several.
    - ``truncated``: ``accept`` takes what there is of a file whose end is missing.

    What is set stands in the keys of encoders, so images are embedded anew.
    """

    range: tuple[float, float] | None = None
    channels: tuple[Band] | tuple[Band, Band, Band] | None = None
    page: int | None = Field(default=None, ge=1)
    truncated: Literal["refuse", "accept"] = "refuse"

    @field_validator("range")
    @classmethod
    def _differ(cls, found: tuple[float, float] | None) -> tuple[float, float] | None:
        if found and not (isfinite(sum(found)) and found[0] != found[1]):
            raise ValueError("black and white must be two different numbers")
        return found


class DatasetEntry(PixelSpec):
    """What every dataset entry may say, whatever its type."""

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
    drift: Annotated[
        DriftSpec,
        BeforeValidator(_drift, json_schema_input_type=DriftSpec | OnDrift),
    ] = DriftSpec()
    expect: Expected = Expected()
    mirror: bool | None = Field(
        default=None,
        description="whether an image may be mirrored left to right and still be of its"
        " class, for augmentation; measured where this is left out",
    )
    class_names: dict[str, str] = Field(
        default={}, description="names in place of the source's labels"
    )
    relabel: Path | None = Field(
        default=None,
        description="a CSV file of labels that count, by image_id or uri",
    )
    costs: Annotated[
        dict[str, dict[str, Price]], AfterValidator(_no_price_of_right)
    ] = Field(
        default={},
        description="what an error costs: label, prediction (`default`: any other), "
        "number; 1 where nothing is said",
    )
    gate: GateSpec = Field(
        default=GateSpec(), description="what a new model must keep to become champion"
    )
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

    @model_validator(mode="after")
    def _pixels_are_of_images(self) -> Self:
        of_images = {*PixelSpec.model_fields, "mirror"}
        wanted = self.model_fields_set & of_images
        if wanted and self.modality != "image":
            raise ValueError(
                f"{', '.join(sorted(wanted))}: of images, not {self.modality}s"
            )
        return self

    @property
    def modality(self) -> Modality:
        """What the inputs are; an encoder must take the same."""
        return "image"

    @property
    def labelled(self) -> bool:
        """Whether images have labels to learn from; else they can be predicted."""
        return True

    @property
    def pixels(self) -> PixelSpec:
        """How images are read."""
        return PixelSpec(
            **{name: getattr(self, name) for name in PixelSpec.model_fields}
        )

    @property
    def names_splits(self) -> bool:
        """Whether the entry itself says which names are which splits."""
        return False

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


class NamedSplitsEntry(DatasetEntry):
    """What an entry may say besides where folders or cells have the names of splits.

    ``splits`` maps our splits to the names in the data; what it does not name is left
    out, and ``{}`` says that no name is that of a split. Without it the usual names
    (training, val, dev, testing, seg_test ...) are known in any case.
    """

    splits: dict[SplitName, Names] | None = None

    @model_validator(mode="after")
    def _splits_fit(self) -> Self:
        if not self.splits:
            return self
        names = [name for several in self.splits.values() for name in several]
        if "train" not in self.splits or len(set(names)) < len(names):
            raise ValueError(
                "splits: must say which is train, and no name twice; {} where no name "
                "is that of a split"
            )
        return self

    @property
    def names_splits(self) -> bool:
        """Whether the entry itself says which names are which splits."""
        return self.splits is not None


class RemoteEntry(DatasetEntry):
    """What an entry may say besides where its data may be behind a URL.

    ``labels: none`` is of images that are to be predicted: no folder, cell or file is
    read as a label, a split or a weight.
    """

    # A fault must not print what may be a secret in the wrong place.
    model_config = ConfigDict(hide_input_in_errors=True)

    storage: StorageSpec = StorageSpec()
    labels: Literal["none"] | None = None

    @model_validator(mode="after")
    def _nothing_is_learned(self) -> Self:
        learned = {"label", "label_column", "split_column", "splits", "weight_column"}
        learned |= {"class_names", "relabel", "split", "costs"}
        wanted = self.model_fields_set & learned
        if not self.labelled and (wanted or self.expect.classes):
            names = sorted(wanted) + ["expect.classes"] * bool(self.expect.classes)
            raise ValueError(
                f"{', '.join(names)}: of images with labels, but here is labels: none; "
                "leave one out"
            )
        return self

    @property
    def labelled(self) -> bool:
        """Whether the entry does not say ``labels: none``."""
        return self.labels is None

    @model_validator(mode="after")
    def _storage_fits(self) -> Self:
        self.storage.check(value for _, value in self)
        return self

"""What an entry of the data catalogue may say, whatever kind of source it names."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from tl_pipeline.config.locations import StorageSpec
from tl_pipeline.config.specs import Spec
from tl_pipeline.config.split_specs import Action, NearDuplicatesSpec, SplitSpec

Modality = Literal["image", "text", "vector"]


def _near_duplicates(value: Any) -> Any:
    return {"action": value} if isinstance(value, str) else value


class Expected(Spec):
    """What a dataset is known to hold; a mismatch stops the run with both numbers."""

    images: int | None = Field(default=None, ge=1)
    classes: int | None = Field(default=None, ge=2)


class CatalogEntry(Spec):
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


class StoredEntry(CatalogEntry):
    """What an entry may say besides where its data may be behind a URL."""

    # A fault must not print what may be a secret in the wrong place.
    model_config = ConfigDict(hide_input_in_errors=True)

    storage: StorageSpec = StorageSpec()

    @model_validator(mode="after")
    def _storage_fits(self) -> Self:
        self.storage.check(value for _, value in self)
        return self

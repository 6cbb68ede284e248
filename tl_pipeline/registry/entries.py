"""What the registry says of the models of one dataset, as plain values.

MLflow keeps them: versions with tags, a run with parameters and metrics behind each,
aliases, and one tag of the registered model, ``champions``, for what MLflow has no
place for: who was champion before, and whether a person or a run chose it.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

CHAMPION = "champion"
HISTORY = "champions"  # the tag of a registered model
EVALUATIONS = "evaluations"  # the tag of a run that tells which ones it logged
# MLflow allows 5,000 characters for a tag.
_KEPT, _REASON = 15, 240


class Version(BaseModel):
    """One version of a registered model.

    ``model`` is the key of its folder, ``content`` a digest of what predicts in it, and
    ``evaluation`` the key of the latest evaluation of that content. ``images`` is the
    number of images that train and validation had then. What others registered under
    the name has none of these; models of older versions lack the last three.
    """

    model_config = ConfigDict(frozen=True)

    number: int
    model: str | None = None
    content: str | None = None
    evaluation: str | None = None
    images: int | None = None
    encoder: str | None = None
    head: str | None = None
    metrics: dict[str, float] = {}

    @classmethod
    def of(
        cls,
        number: int,
        tags: Mapping[str, str],
        params: Mapping[str, str],
        metrics: Mapping[str, float],
    ) -> Self:
        """The version with these tags, and the parameters and metrics of its run."""
        images = tags.get("images", "")
        return cls(
            number=number,
            model=tags.get("model"),
            content=tags.get("content"),
            evaluation=tags.get("evaluation"),
            images=int(images) if images.isdigit() else None,
            encoder=params.get("encoder"),
            head=params.get("head"),
            metrics=dict(metrics),
        )

    @property
    def tags(self) -> dict[str, str]:
        """Its tags in MLflow."""
        fields = self.model_dump(include={"model", "content", "evaluation", "images"})
        return {name: str(value) for name, value in fields.items() if value is not None}


class Promotion(BaseModel):
    """``version`` became champion; ``latest`` was the newest version at that time."""

    model_config = ConfigDict(frozen=True)

    version: int
    by: Literal["run", "hand"]
    at: datetime
    latest: int
    reason: str


_PROMOTIONS = TypeAdapter(tuple[Promotion, ...])


class RegisteredModel(BaseModel):
    """All versions of one name, oldest first, and where the aliases point."""

    model_config = ConfigDict(frozen=True)

    name: str
    versions: tuple[Version, ...] = ()
    aliases: dict[str, int] = {}
    history: tuple[Promotion, ...] = ()

    @property
    def champion(self) -> Version | None:
        """The version that the alias ``champion`` points to."""
        return self.version(self.aliases.get(CHAMPION))

    @property
    def latest(self) -> int:
        """The highest number of a version; 0 where there is none."""
        return max((version.number for version in self.versions), default=0)

    def version(self, number: int | None) -> Version | None:
        """The version of that number, if it is there."""
        return next((v for v in self.versions if v.number == number), None)

    def aliases_of(self, version: Version) -> list[str]:
        """The aliases that point to ``version``."""
        return sorted(
            a for a, number in self.aliases.items() if number == version.number
        )

    def noticed(self) -> "RegisteredModel":
        """The same, after the history was told of an alias that others have moved.

        Models of older versions have no history: a run had chosen their champion.
        """
        number = self.aliases.get(CHAMPION)
        if number is None or not self.history or self.history[-1].version == number:
            return self
        return self.promoted(number, "hand", "the alias was set in MLflow")

    def promoted(
        self, number: int, by: Literal["run", "hand"], reason: str
    ) -> "RegisteredModel":
        """The same, with version ``number`` as champion from now on."""
        made = Promotion(
            version=number,
            by=by,
            at=datetime.now(UTC).replace(microsecond=0),
            latest=self.latest,
            reason=reason if len(reason) <= _REASON else f"{reason[: _REASON - 3]}...",
        )
        return self.model_copy(
            update={
                "aliases": {**self.aliases, CHAMPION: number},
                "history": (*self.history, made)[-_KEPT:],
            }
        )

    def having(self, version: Version) -> "RegisteredModel":
        """The same, with ``version`` in place of the one of its number, or as new."""
        others = [one for one in self.versions if one.number != version.number]
        versions = sorted([*others, version], key=lambda one: one.number)
        return self.model_copy(update={"versions": tuple(versions)})

    def rolled_back(self, reason: str) -> "RegisteredModel | None":
        """The same, with the champion before this one; None if none is known."""
        number = self.aliases.get(CHAMPION)
        for place in range(len(self.history) - 1, -1, -1):
            before = self.history[place].version
            if before != number and self.version(before):
                rest = self.model_copy(update={"history": self.history[:place]})
                words = f"rolled back from version {number}"
                told = f"{words}: {reason}" if reason else words
                return rest.promoted(before, "hand", told)
        return None


def history_text(history: Iterable[Promotion]) -> str:
    """``history`` as the tag holds it."""
    return _PROMOTIONS.dump_json(tuple(history)).decode()


def history_of(text: str | None) -> tuple[Promotion, ...]:
    """What the tag holds; nothing where it is absent, or was edited to nonsense."""
    try:
        return _PROMOTIONS.validate_json(text) if text else ()
    except ValidationError:
        return ()

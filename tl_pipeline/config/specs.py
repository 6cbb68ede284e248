"""What is wanted, as frozen values: heads, how they are searched, a whole run.

Pure: nothing here reads a file or knows which heads exist. Encoders stand in
``encoder_specs``.
"""

import itertools
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from tl_pipeline.config.encoder_specs import (
    SIDES,
    BackboneField,
    EncoderSpec,
    Fit,
    Pool,
)
from tl_pipeline.config.finetune_specs import FinetuneSpec
from tl_pipeline.config.short_forms import (
    Scalar,
    Spec,
    checked,
    number_or_text,
    parse_short,
    parsed,
    short_form,
    text_of,
)
from tl_pipeline.errors import InvalidSpec, UnknownName

# How the probabilities of several heads become one candidate, see ``averaging``.
Ensemble = Literal["average", "greedy"]


def _sides(value: Any) -> Any:
    """``96/128`` as numbers.

    Raises:
        ValueError: one is no side.
    """
    parts = value.split("/") if isinstance(value, str) else value
    parts = [parts] if isinstance(parts, int) else parts
    for part in parts:
        text = str(part).strip()
        if not (text.isdecimal() and int(text) in SIDES):
            raise ValueError(
                f"{text} is no side from {SIDES.start} to {SIDES.stop - 1} pixels; "
                "write 96/128/160"
            )
    return parts


def _names(value: Any, info: ValidationInfo) -> Any:
    """``gap/grid2`` as names of a field.

    Raises:
        ValueError: one is not there.
    """
    choices = {"pool": get_args(Pool), "fit": get_args(Fit)}[info.field_name or ""]
    parts = value.split("/") if isinstance(value, str) else value
    for part in parts:
        if part not in choices:
            raise ValueError(
                str(UnknownName(info.field_name or "", str(part), choices))
            )
    return parts


class HeadConfig(Spec):
    """One head with one value for every parameter: one thing to train."""

    name: str
    params: dict[str, Scalar] = Field(default={})


class HeadSpec(Spec):
    """A head and its grid: a list of values for a parameter is searched."""

    name: str
    params: dict[str, Scalar | Annotated[list[Scalar], Field(min_length=1)]] = Field(
        default={}
    )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``logistic`` or ``logistic:C=0.01/0.1``, a slash between grid values.

        Raises:
            InvalidSpec: the text has another form.
        """
        name, params = parse_short(text)
        values = {
            key: [number_or_text(part) for part in value.split("/")]
            if "/" in value
            else number_or_text(value)
            for key, value in params.items()
        }
        return checked(cls, {"name": name, "params": values}, text)

    def short(self) -> str:
        """The text that ``parse`` reads back to this."""
        shown = {
            name: "/".join(map(text_of, value if isinstance(value, list) else [value]))
            for name, value in self.params.items()
        }
        return short_form(self.name, shown)

    def grid(self) -> Iterator[HeadConfig]:
        """Every combination of the listed values, in the order they were given."""
        lists = [v if isinstance(v, list) else [v] for v in self.params.values()]
        for values in itertools.product(*lists):
            params = dict(zip(self.params, values, strict=True))
            yield HeadConfig(name=self.name, params=params)


class SearchSpec(Spec):
    """How one configuration of a head is chosen from its grid, and heads compared.

    ``select``: by cross-validation on the training and validation images together with
    ``folds`` parts (whole groups, where there are some; None: see ``folds.divided``),
    or by the validation images alone. ``strategy``: the whole grid; ``random``:
    ``configurations`` of it by chance, where ``low..high`` stands for all numbers
    between; ``halving``: all begin with few images, and a third goes on with three
    times as many. The chosen one learns from training and validation images before it
    meets test; without ``refit``, which is for ``validation``, from training alone.
    """

    select: Literal["cross_validation", "validation"] = "cross_validation"
    strategy: Literal["grid", "random", "halving"] = "grid"
    folds: int | None = Field(default=None, ge=2, le=100)
    configurations: int = Field(default=20, ge=1, le=100_000)
    refit: bool = True

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``cross_validation`` or ``validation:strategy=random,refit=true``.

        Raises:
            InvalidSpec: the text has another form, or an unknown parameter.
        """
        select, params = parse_short(text)
        return checked(cls, {"select": select, **params}, text)

    def short(self) -> str:
        """The text that ``parse`` reads back to this."""
        given = self.model_dump(exclude={"select"}, exclude_defaults=True)
        return short_form(self.select, {name: text_of(v) for name, v in given.items()})


def _search(value: Any) -> Any:
    return parsed(SearchSpec.parse, value)


def _head(value: Any) -> Any:
    return parsed(HeadSpec.parse, value)


def _finetune(value: Any) -> Any:
    return parsed(FinetuneSpec.parse, value)


def _minutes(value: float | None) -> float | None:
    """A budget.

    Raises:
        ValueError: nothing fits into it.
    """
    if value is not None and not value > 0:
        raise ValueError(
            f"{value:g} is no budget: give more than 0, or none to try everything"
        )
    return value


class TuneSpec(Spec):
    """What is compared before a run, and at what cost: encoders, on a sample.

    Each side with each pool and fit, on ``images`` of the training images. Without
    ``side`` some up to the network's own are compared, without ``pool`` that of the
    layer and those that tell where things are, without ``fit`` what the encoder names,
    or its own and ``squash``. What does not fit into ``minutes`` is left out.
    """

    side: Annotated[tuple[int, ...], BeforeValidator(_sides)] = Field(
        default=(), description="of the input in pixels; up to the network's own"
    )
    pool: Annotated[tuple[Pool, ...], BeforeValidator(_names)] = Field(
        default=(), description="of a map; the layer's own and the last three"
    )
    fit: Annotated[tuple[Fit, ...], BeforeValidator(_names)] = Field(
        default=(), description="of an image into the square; its own and squash"
    )
    images: int = Field(default=2000, ge=1, description="of the sample")
    minutes: Annotated[float | None, AfterValidator(_minutes)] = Field(
        default=None, description="a budget; what does not fit is left out and named"
    )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``true`` or what differs: ``side=96/128,pool=gap/grid2,minutes=5``.

        Raises:
            InvalidSpec: the text has another form, or an unknown parameter.
        """
        if text == "true":
            return cls()
        if "=" not in text:
            raise InvalidSpec(
                f"--tune {text!r}: write true, or what differs: "
                f"{', '.join(f'{name}=' for name in cls.model_fields)}"
            )
        return checked(cls, parse_short(f"-:{text}")[1], f"--tune {text}")

    def short(self) -> str:
        """The text that ``parse`` reads back to this."""
        given = self.model_dump(exclude_defaults=True)
        if not given:
            return "true"
        return short_form("", EncoderSpec.texts(given)).removeprefix(":")


def _tune(value: Any) -> Any:
    if isinstance(value, bool):
        return TuneSpec() if value else None
    return parsed(TuneSpec.parse, value)


Method = Literal["none", "temperature"]
# Of candidates that cannot be told apart, the cheaper or still the best.
Choose = Literal["cheaper", "best"]
ChooseBy = Literal[
    "accuracy",
    "balanced_accuracy",
    "macro_precision",
    "macro_recall",
    "macro_f1",
    "weighted_precision",
    "weighted_f1",
    "mcc",
    "kappa",
    "cost",
]
ErrorRate = Annotated[float, Field(gt=0, lt=1)]


class GateSpec(Spec):
    """What a new model must keep to become champion, on images that both scored.

    Whatever these say, a model of a dataset that shrank, or that lost a class, or that
    too few images compare with the champion, does not become one by itself.
    """

    margin: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="how much lower the accuracy (or what choose_by names) may be at "
        "the lower end of the paired interval; without it it must be as high",
    )
    classes: bool = Field(
        default=True,
        description="refuse where the recall of a class is known to be lower",
    )
    class_drop: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="how much lower the recall of any class may be, known or not",
    )
    ece: float | None = Field(
        default=0.05,
        ge=0,
        le=1,
        description="how much higher the calibration error may be",
    )


class RunSpec(Spec):
    """One run of the pipeline: a dataset, the encoders and heads to compare.

    With ``controls`` every backbone is also run with random weights and a majority
    head is scored: without them a number says nothing about transfer.

    ``calibration`` is learned from what heads say of images that they did not learn
    from; so are the thresholds at which prediction sets leave out the right label, and
    accepted predictions are wrong, at most at the rate ``error``.
    """

    dataset: str
    backbones: tuple[BackboneField, ...] = Field(
        default=(EncoderSpec(backbone="lenet5"),), min_length=1
    )
    heads: tuple[Annotated[HeadSpec, BeforeValidator(_head)], ...] = Field(
        default=(HeadSpec(name="logistic"), HeadSpec(name="mlp")), min_length=1
    )
    search: Annotated[SearchSpec, BeforeValidator(_search)] = SearchSpec()
    tune: Annotated[TuneSpec | None, BeforeValidator(_tune)] = Field(
        default=None,
        description="compare sides and pools first, and go on with the best",
    )
    finetune: tuple[Annotated[FinetuneSpec, BeforeValidator(_finetune)], ...] = Field(
        default=(), description="each backbone is also fine-tuned in each of these ways"
    )
    ensemble: Ensemble | None = Field(
        default=None, description="one candidate more, of the heads together"
    )
    calibration: Method = "temperature"
    error: ErrorRate = 0.05
    choose: Choose = Field(
        default="cheaper", description="of candidates that cannot be told apart"
    )
    choose_by: ChooseBy = Field(
        default="accuracy", description="the metric that compares candidates"
    )
    controls: bool = True
    seed: int = 0
    part_rows: int = Field(
        default=512, ge=1, description="images per embedding part file"
    )

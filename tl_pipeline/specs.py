"""What is wanted, as frozen values: encoders, heads, a whole run.

Pure: nothing here reads a file or knows which networks exist. The short form
``NAME:param=value,param=value`` of the command line is parsed here too.
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)

from tl_pipeline.errors import InvalidSpec

Scalar = bool | int | float | str


class Spec(BaseModel):
    """A frozen value; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


_SpecT = TypeVar("_SpecT", bound=Spec)


def _number_or_text(text: str) -> Scalar:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return value if isinstance(value, bool | int | float) else text


def _text(value: Scalar) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _parse_short(text: str) -> tuple[str, dict[str, str]]:
    """Split ``NAME:a=1,b=2`` into the name and its parameters."""
    name, colon, rest = text.partition(":")
    pairs = [part.partition("=") for part in rest.split(",")] if colon else []
    params = {key.strip(): value.strip() for key, _, value in pairs}
    wrong = not name or any(not key or not equals for key, equals, _ in pairs)
    if wrong or len(params) < len(pairs):
        raise InvalidSpec(
            f"{text!r} is not of the form NAME or NAME:param=value,param=value, "
            "each parameter once"
        )
    return name, params


# Kinds of networks whose names hold colons and more.
_PREFIXED = re.compile(
    r"(?P<name>(?:timm|python|onnx|export|text):.+?)(?::(?P<params>[a-z_]+=.*))?"
)


def _parse_encoder(text: str) -> tuple[str, dict[str, str]]:
    """As ``_parse_short``; a prefixed name ends where ``:param=`` begins."""
    found = _PREFIXED.fullmatch(text)
    if found is None:
        return _parse_short(text)
    params = _parse_short(f"-:{found['params']}")[1] if found["params"] else {}
    return found["name"], params


def _short(name: str, params: dict[str, Any]) -> str:
    for key, value in params.items():
        if "," in str(value):
            raise InvalidSpec(f"{name}: {key} must not hold a comma: {value!r}")
    shown = ",".join(f"{key}={value}" for key, value in params.items())
    return f"{name}:{shown}" if shown else name


def _numbers(value: Any) -> Any:
    return value.split("/") if isinstance(value, str) else value


_Side = Annotated[int, Field(ge=8, le=2048)]
_Channels = Field(min_length=1, max_length=4)
_Means = Annotated[
    tuple[Annotated[float, Field(ge=0, le=1)], ...],
    BeforeValidator(_numbers),
    _Channels,
]
_Deviations = Annotated[
    tuple[Annotated[float, Field(gt=0, le=10)], ...],
    BeforeValidator(_numbers),
    _Channels,
]


class EncoderSpec(Spec):
    """Which embedding is wanted: backbone, layer, pooling, weights, input, precision.

    ``layer`` is a name that the backbone lists or any node of its graph (``node:NAME``
    where a listed name would be taken for it), ``pool`` how a spatial one becomes a
    vector. A backbone with a prefix (``timm:NAME``, ``onnx:FILE``) is of another kind.
    ``weights`` is a named member of torchvision's enum (``IMAGENET1K_V1``), the
    path of a file, or ``random:SEED``. ``resize`` and ``crop`` are pixels, ``mean`` and
    ``std`` of values in [0, 1], one per channel. ``precision`` is that of the network's
    computing: ``auto`` chooses fp32 or bf16 (``precision.choose``), int8 must be asked
    for and is for processors. What is left out takes the default of the backbone, layer
    or weights.
    """

    backbone: str
    layer: str | None = None
    pool: Literal["gap", "gem", "flatten", "cls", "cls+mean"] | None = None
    weights: str | None = None
    resize: _Side | None = None
    crop: _Side | None = None
    interpolation: Literal["bilinear", "bicubic", "nearest"] | None = None
    mean: _Means | None = None
    std: _Deviations | None = None
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``squeezenet1_0``, ``vgg16:layer=fc7,weights=vgg16.pth``, ``onnx:FILE``.

        Raises:
            InvalidSpec: the text has another form or an unknown parameter.
        """
        name, params = _parse_encoder(text)
        return _checked(cls, {"backbone": name, **params}, text)

    def short(self) -> str:
        """The text that ``parse`` reads back to this."""
        given = self.model_dump(exclude={"backbone"}, exclude_defaults=True)
        return _short(self.backbone, self.texts(given))

    @staticmethod
    def texts(fields: Mapping[str, Any]) -> dict[str, str]:
        """The values of ``fields`` as ``parse`` reads them: 0.5/0.5/0.5."""
        return {
            name: "/".join(map(str, value)) if isinstance(value, tuple) else str(value)
            for name, value in fields.items()
        }


class HeadConfig(Spec):
    """One head with one value for every parameter: one thing to train."""

    name: str
    params: dict[str, Scalar] = {}


class HeadSpec(Spec):
    """A head and its grid: a list of values for a parameter is searched."""

    name: str
    params: dict[str, Scalar | Annotated[list[Scalar], Field(min_length=1)]] = {}

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``logistic`` or ``logistic:C=0.01/0.1``, a slash between grid values.

        Raises:
            InvalidSpec: the text has another form.
        """
        name, params = _parse_short(text)
        values = {
            key: [_number_or_text(part) for part in value.split("/")]
            if "/" in value
            else _number_or_text(value)
            for key, value in params.items()
        }
        return _checked(cls, {"name": name, "params": values}, text)

    def short(self) -> str:
        """The text that ``parse`` reads back to this."""
        shown = {
            name: "/".join(map(_text, value if isinstance(value, list) else [value]))
            for name, value in self.params.items()
        }
        return _short(self.name, shown)

    def grid(self) -> Iterator[HeadConfig]:
        """Every combination of the listed values, in the order they were given."""
        lists = [v if isinstance(v, list) else [v] for v in self.params.values()]
        for values in itertools.product(*lists):
            params = dict(zip(self.params, values, strict=True))
            yield HeadConfig(name=self.name, params=params)


def _encoder(value: Any) -> Any:
    return _parsed(EncoderSpec, value)


def _head(value: Any) -> Any:
    return _parsed(HeadSpec, value)


def _parsed(cls: type[EncoderSpec | HeadSpec], value: Any) -> Any:
    try:
        return cls.parse(value) if isinstance(value, str) else value
    except InvalidSpec as fault:
        raise ValueError(str(fault)) from None  # for pydantic, which adds the place


class RunSpec(Spec):
    """One run of the pipeline: a dataset, the encoders and heads to compare.

    With ``controls`` every backbone is also run with random weights and a majority
    head is scored: without them a number says nothing about transfer.
    """

    dataset: str
    backbones: tuple[Annotated[EncoderSpec, BeforeValidator(_encoder)], ...] = Field(
        default=(EncoderSpec(backbone="lenet5"),), min_length=1
    )
    heads: tuple[Annotated[HeadSpec, BeforeValidator(_head)], ...] = Field(
        default=(HeadSpec(name="logistic"), HeadSpec(name="mlp")), min_length=1
    )
    controls: bool = True
    seed: int = 0
    part_rows: int = Field(
        default=512, ge=1, description="images per embedding part file"
    )


def _checked(cls: type[_SpecT], fields: dict[str, Any], text: str) -> _SpecT:
    try:
        return TypeAdapter(cls).validate_python(fields)
    except ValidationError as fault:
        known = ", ".join(cls.model_fields)
        first = fault.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        raise InvalidSpec(
            f"{text!r}: {where}: {said}. Known parameters: {known}"
        ) from None

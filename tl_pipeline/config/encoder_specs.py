"""Which embeddings are wanted: an encoder, or several concatenated.

Pure: nothing here reads a file or knows which networks exist.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from tl_pipeline.config.short_forms import (
    Spec,
    checked,
    parse_short,
    parsed,
    short_form,
)
from tl_pipeline.errors import InvalidSpec

# Kinds of networks whose names hold colons and more.
_PREFIXED = re.compile(
    r"(?P<name>(?:timm|python|onnx|export|text):.+?)(?::(?P<params>[a-z_]+=.*))?"
)


def _parse_encoder(text: str) -> tuple[str, dict[str, str]]:
    """As ``parse_short``; a prefixed name ends where ``:param=`` begins."""
    found = _PREFIXED.fullmatch(text)
    if found is None:
        return parse_short(text)
    params = parse_short(f"-:{found['params']}")[1] if found["params"] else {}
    return found["name"], params


def _numbers(value: Any) -> Any:
    return value.split("/") if isinstance(value, str) else value


Pool = Literal[
    "gap",
    "avg+max",
    "grid2",
    "grid3",
    "gem",
    "flatten",
    "cls",
    "cls+mean",
    "tokens",
]
Fit = Literal["crop", "squash", "pad"]
SIDES = range(8, 2049)  # of an input, in pixels
_Side = Annotated[int, Field(ge=SIDES[0], le=SIDES[-1])]
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
    where a listed name would be taken for it). ``pool`` is how a map or tokens become a
    vector: by the mean over places (``gap``), by that and the maximum (``avg+max``), by
    the means of 2 x 2 or 3 x 3 cells (``grid2``, ``grid3``), which tell where things
    are; ``tokens`` keeps every place of a map and every token but registers, for the
    head ``attentive``. A backbone with a prefix (``timm:NAME``, ``onnx:FILE``) is of
    another kind. ``weights`` is a named member of torchvision's enum
    (``IMAGENET1K_V1``), the path of a file, or ``random:SEED``. ``resize`` and ``crop``
    are pixels, ``mean`` and ``std`` of values in [0, 1], one per channel. ``side`` is
    short for resize and crop:
    the crop is ``side``, resize as much larger as the weights have it (of 256/224, 128
    makes 146), so that a network sees as much of an image as it was trained to see.
    ``fit`` is how an image fills the square: ``crop`` cuts its centre out, ``squash``
    and ``pad`` show all of it, in another aspect or with a margin in the colour of
    ``mean``. ``precision`` is that of the network's computing: ``auto`` chooses fp32 or
    bf16 (``precision.choose``). ``store`` is how a value is kept: in half the
    bytes as ``float16``, with three digits and none beyond 65,504. What is left out
    takes the default of the backbone, layer or weights.
    """

    backbone: str
    layer: str | None = None
    pool: Pool | None = None
    weights: str | None = None
    side: _Side | None = None
    fit: Fit | None = None
    resize: _Side | None = None
    crop: _Side | None = None
    interpolation: Literal["bilinear", "bicubic", "nearest"] | None = None
    mean: _Means | None = None
    std: _Deviations | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    store: Literal["float32", "float16"] = "float32"

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        sized = self.resize is not None or self.crop is not None
        if sized and self.side is not None:
            raise ValueError(
                f"side={self.side} sets resize and crop; give it or them, not both"
            )
        if sized and self.fit in {"squash", "pad"}:
            raise ValueError(
                f"fit={self.fit} shows the whole image, so that nothing is cropped; "
                "give side in place of resize and crop"
            )
        return self

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``squeezenet1_0``, ``vgg16:layer=fc7,weights=vgg16.pth``, ``onnx:FILE``.

        Raises:
            InvalidSpec: the text has another form or an unknown parameter.
        """
        name, params = _parse_encoder(text)
        return checked(cls, {"backbone": name, **params}, text)

    def short(self) -> str:
        """The text that ``parse`` reads back to this."""
        given = self.model_dump(exclude={"backbone"}, exclude_defaults=True)
        return short_form(self.backbone, self.texts(given))

    @staticmethod
    def texts(fields: Mapping[str, Any]) -> dict[str, str]:
        """The values of ``fields`` as ``parse`` reads them: 0.5/0.5/0.5."""
        return {
            name: "/".join(map(str, value)) if isinstance(value, tuple) else str(value)
            for name, value in fields.items()
        }


def _encoder(value: Any) -> Any:
    return parsed(EncoderSpec.parse, value)


class ConcatSpec(Spec):
    """Several encoders as one: their embeddings side by side, in this order."""

    members: tuple[Annotated[EncoderSpec, BeforeValidator(_encoder)], ...] = Field(
        min_length=2
    )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``lenet5,vgg16:layer=fc7,weights=vgg16.pth``.

        After a comma stands another encoder, or a parameter of the last one.

        Raises:
            InvalidSpec: it is only one encoder, or see ``EncoderSpec.parse``.
        """
        members = list[str]()
        for piece in text.split(","):
            parameter = piece.partition("=")[0].strip() in EncoderSpec.model_fields
            if parameter and members:
                members[-1] += f",{piece}"
            else:
                members.append(piece.strip())
        if len(members) < 2:
            raise InvalidSpec(
                f"{text!r} is one encoder; name two or more with commas between: A,B"
            )
        return cls(members=tuple(map(EncoderSpec.parse, members)))

    def short(self) -> str:
        """The members as ``parse`` reads them."""
        return ",".join(member.short() for member in self.members)


BackboneSpec = EncoderSpec | ConcatSpec


def members(spec: BackboneSpec) -> tuple[EncoderSpec, ...]:
    """The encoders that ``spec`` concatenates, or the one that it is."""
    return spec.members if isinstance(spec, ConcatSpec) else (spec,)


def parse_backbones(
    encoders: Iterable[str], concats: Iterable[str]
) -> tuple[BackboneSpec, ...]:
    """What ``--backbone`` and ``--concat`` name, in this order.

    Raises:
        InvalidSpec: see ``EncoderSpec.parse`` and ``ConcatSpec.parse``.
    """
    return *map(EncoderSpec.parse, encoders), *map(ConcatSpec.parse, concats)


def backbone_of(value: str | Sequence[str]) -> BackboneSpec:
    """An encoder's text, or the texts of several that are concatenated.

    Raises:
        InvalidSpec: see ``EncoderSpec.parse``.
    """
    if isinstance(value, str):
        return EncoderSpec.parse(value)
    return ConcatSpec(members=tuple(map(EncoderSpec.parse, value)))


def texts_of(spec: BackboneSpec) -> str | list[str]:
    """What ``backbone_of`` reads back to ``spec``."""
    if isinstance(spec, EncoderSpec):
        return spec.short()
    return [member.short() for member in spec.members]


def _backbone(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return {"members": value}
    return parsed(EncoderSpec.parse, value)


def _tag(value: Any) -> str:
    concat = isinstance(value, ConcatSpec) or (
        isinstance(value, Mapping) and "members" in value
    )
    return BACKBONE_TAGS[concat]


# What pydantic puts into the place of an error, and is nothing of the user's.
BACKBONE_TAGS = ("one encoder", "concatenated encoders")
BackboneField = Annotated[
    Annotated[EncoderSpec, Tag(BACKBONE_TAGS[0])]
    | Annotated[ConcatSpec, Tag(BACKBONE_TAGS[1])],
    Discriminator(_tag),
    BeforeValidator(_backbone),
]

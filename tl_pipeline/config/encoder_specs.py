"""Which embeddings are wanted: an encoder, or several joined.

Pure: nothing here reads a file or knows which networks exist.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag

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


# A plus between two encoders: what follows it begins with a name. That of a file
# (``a+b.pth``) is none, nor is the second half of the pooling ``cls+mean``.
_PLUS = re.compile(
    r"\s*(?:(?<!=cls)\+|\+(?!mean(?:[,+\s]|$)))\s*"
    r"(?=(?:timm|python|onnx|export|text):|[a-zA-Z]\w*\s*(?::\s*[a-z_]+\s*=|\+|$))"
)


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
    computing: ``auto`` chooses fp32 or bf16 (``precision.choose``). What is left out
    takes the default of the backbone, layer or weights.
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
    precision: Literal["auto", "fp32", "bf16"] = "auto"

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
        text = short_form(self.backbone, self.texts(given))
        if _PLUS.search(text):
            raise InvalidSpec(
                f"{text!r}: what stands after the plus would be taken for another "
                "encoder; give the file a name without a plus"
            )
        return text

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
    """Several encoders as one: an embedding is theirs side by side, in this order."""

    members: tuple[Annotated[EncoderSpec, BeforeValidator(_encoder)], ...] = Field(
        min_length=2
    )

    def short(self) -> str:
        """The text that ``backbone`` reads back to this."""
        return "+".join(member.short() for member in self.members)


BackboneSpec = EncoderSpec | ConcatSpec


def members(wish: BackboneSpec) -> tuple[EncoderSpec, ...]:
    """The encoders that ``wish`` is made of; one that is not joint is its own."""
    return wish.members if isinstance(wish, ConcatSpec) else (wish,)


def parse_backbone(text: str) -> BackboneSpec:
    """Read an encoder, or several with plus signs between: ``lenet5+vgg16:layer=fc7``.

    Raises:
        InvalidSpec: see ``EncoderSpec.parse``.
    """
    found = tuple(map(EncoderSpec.parse, _PLUS.split(text)))
    return found[0] if len(found) == 1 else ConcatSpec(members=found)


def _backbone(value: Any) -> Any:
    return parsed(parse_backbone, value)


def _tag(value: Any) -> str:
    joint = isinstance(value, ConcatSpec) or (
        isinstance(value, Mapping) and "members" in value
    )
    return BACKBONE_TAGS[joint]


# What pydantic puts into the place of an error, and is nothing of the user's.
BACKBONE_TAGS = ("one encoder", "joint encoders")
BackboneField = Annotated[
    Annotated[EncoderSpec, Tag(BACKBONE_TAGS[0])]
    | Annotated[ConcatSpec, Tag(BACKBONE_TAGS[1])],
    Discriminator(_tag),
    BeforeValidator(_backbone),
]

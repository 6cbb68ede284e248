"""What specs have in common: frozen values with a short form, NAME:param=value.

Pure: nothing here reads a file.
"""

import json
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from tl_pipeline.errors import InvalidSpec

Scalar = bool | int | float | str


class Spec(BaseModel):
    """A frozen value; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


_SpecT = TypeVar("_SpecT", bound=Spec)


def number_or_text(text: str) -> Scalar:
    """``0.1`` and ``true`` as what they are, anything else as text."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return value if isinstance(value, bool | int | float) else text


def text_of(value: Scalar) -> str:
    """The text that ``number_or_text`` reads back to ``value``."""
    return json.dumps(value) if isinstance(value, bool) else str(value)


def parse_short(text: str) -> tuple[str, dict[str, str]]:
    """Split ``NAME:a=1,b=2`` into the name and its parameters.

    Raises:
        InvalidSpec: the text has another form.
    """
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


def short_form(name: str, params: dict[str, Any]) -> str:
    """The text that ``parse_short`` reads back to these.

    Raises:
        InvalidSpec: a value holds a comma.
    """
    for key, value in params.items():
        if "," in str(value):
            raise InvalidSpec(f"{name}: {key} must not hold a comma: {value!r}")
    shown = ",".join(f"{key}={value}" for key, value in params.items())
    return f"{name}:{shown}" if shown else name


def parsed(parse: Callable[[str], Any], value: Any) -> Any:
    """``value`` as pydantic is to check it further: a text is parsed.

    Raises:
        ValueError: it has another form; pydantic adds the place.
    """
    try:
        return parse(value) if isinstance(value, str) else value
    except InvalidSpec as fault:
        raise ValueError(str(fault)) from None


def checked(cls: type[_SpecT], fields: dict[str, Any], text: str) -> _SpecT:
    """A spec of ``fields``, which were read from ``text``.

    Raises:
        InvalidSpec: a parameter is unknown or out of its range.
    """
    try:
        return TypeAdapter(cls).validate_python(fields)
    except ValidationError as fault:
        known = ", ".join(cls.model_fields)
        first = fault.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        raise InvalidSpec(
            f"{text!r}: {where}{said}. Known parameters: {known}"
        ) from None

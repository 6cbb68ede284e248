"""Encoded bytes to text: probe, decode, and how a network of texts is fed."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from tl_pipeline.inputs.images import RefusedImage


class TextInput(BaseModel):
    """How a text becomes the input of a network, and the tokens one vector.

    What comes after ``max_tokens`` tokens is not read. ``pooling`` names what makes one
    vector of those of the tokens; with ``normalise`` it is scaled to length 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["text"] = "text"
    max_tokens: int
    pooling: str
    normalise: bool


def probe(data: bytes) -> tuple[None, None]:
    """Check ``data``; a text has no size in pixels.

    Raises:
        RefusedImage: it is no UTF-8, or blank.
    """
    text(data)
    return None, None


def text(data: bytes) -> str:
    """``data`` as text.

    Raises:
        RefusedImage: it is no UTF-8, or blank.
    """
    try:
        found = data.decode()
    except UnicodeDecodeError as error:
        raise RefusedImage("not a text", f"no UTF-8: {error}") from None
    if not found.strip():
        raise RefusedImage("blank", f"{len(data)} bytes without a letter")
    return found

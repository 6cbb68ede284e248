"""What a source is, and what it says of one input before anybody reads its bytes."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

SEVERAL_LABELS = (
    "holds a list of labels for each image, where one label is supported: write one in "
    "each row, or a column for each question and name that in 'label_column'"
)
_REFUSED = re.compile(r"(.+?)#refused=(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Entry:
    """One input of a source.

    ``version`` changes whenever the bytes behind ``uri`` may have changed (size and
    modification time of a file, the ETag of an object); None means "always read".
    ``modified_ns`` is that modification time where there is one (nanoseconds since
    1970). ``label`` is None where the source cannot tell one. ``weight`` is how much
    the image counts while training; None is 1.
    """

    uri: str
    label: str | None
    version: str | None = None
    split: str | None = None
    group: str | None = None
    modified_ns: int | None = None
    weight: float | None = None


class Source(Protocol):
    """Lists inputs and reads one of them."""

    def entries(self) -> Iterator[Entry]:
        """Every input once, in a stable order, without reading its bytes.

        Raises:
            DatasetError: the source as a whole cannot be read.
        """
        ...

    def read(self, uri: str) -> bytes:
        """The encoded bytes of one input.

        Raises:
            OSError: they cannot be read; the input will be refused with that reason.
        """
        ...

    def notes(self) -> Sequence[str]:
        """Sentences: what a user should know of the last listing, once it was read.

        That is what was left out, or taken for something else than it is written as.
        """
        return ()


def printable(text: str) -> str:
    """``text`` with what is no UTF-8 escaped, which a table could not hold."""
    return text.encode(errors="backslashreplace").decode()


def refused(uri: str, why: str) -> str:
    """The uri of an input that a source knows of, but that no one can read."""
    return f"{uri}#refused={why}"


def raise_if_refused(uri: str) -> None:
    """Raise the ``OSError`` that a uri made by ``refused`` stands for."""
    if found := _REFUSED.fullmatch(uri):
        raise OSError(f"{found[1]}: {found[2]}")

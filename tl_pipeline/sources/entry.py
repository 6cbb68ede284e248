"""What a source is, and what it says of one input before anybody reads its bytes."""

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tl_pipeline.storage.stamps import Stamp

SEVERAL_LABELS = (
    "holds a list of labels for each image, where one label is supported: write one in "
    "each row, or a column for each question and name that in 'label_column'"
)
# A file changed again within the clock tick of its last change keeps its modification
# time, so a file this young is not trusted to a memo (git calls it "racily clean").
TOO_YOUNG_NS = 2_000_000_000
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

    def state(self) -> str | None:
        """What changes whenever ``entries`` would tell anything else.

        None where only a listing can tell, or where a change might not show because
        files are so young.
        """
        return None

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


def state_of(stamps: Iterable[tuple[str, Stamp]]) -> str | None:
    """The ``state`` of a source of few files, from the name and the stamp of each."""
    now, said = time.time_ns(), list[str]()
    try:
        for name, stamp in stamps:
            young = now - (stamp.modified_ns or 0) <= TOO_YOUNG_NS
            if young or stamp.version is None:
                return None
            said.append(f"{name} {stamp.version}")
    except OSError:  # the listing says what is wrong
        return None
    return "\n".join(said)

"""What a source says about one input before anybody reads its bytes."""

from dataclasses import dataclass


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

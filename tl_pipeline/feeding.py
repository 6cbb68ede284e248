"""Images of a source, read and decoded into the batches that networks are fed with."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from tl_pipeline import modalities
from tl_pipeline.embeddings import RETRIED
from tl_pipeline.identity import image_id
from tl_pipeline.images import RefusedImage
from tl_pipeline.modalities import Input
from tl_pipeline.pools import ahead
from tl_pipeline.timings import Clock

# Refusals that say nothing about the image itself: the next run tries again.
UNREADABLE, CHANGED = RETRIED
# Images that one thread reads at a time, and how many times that a decoder is ahead:
# enough to hide a disk, few enough for memory where photos are large.
_AT_A_TIME = 8
READ_AHEAD = 2

Read = Callable[[str], bytes]
Image = tuple[str, str]  # image_id, uri
Refusal = tuple[str, str, str]  # image_id, reason, detail


@dataclass
class Fed:
    """A batch of images as encoders of one kind of input are fed with it.

    ``batch`` is what ``collate`` of ``modalities`` makes of those in ``ids``, None
    where there is none; the others are in ``refused``.
    """

    ids: list[str] = field(default_factory=list)
    batch: Any = None
    refused: list[Refusal] = field(default_factory=list)

    def refuse(self, expected: str, why: RefusedImage) -> None:
        """Note that there is no input of this image."""
        self.refused.append((expected, why.reason, why.detail))


class Feeder:
    """Makes batches for encoders of ``inputs``; called by any thread.

    What is about to be decoded is read beforehand in threads of ``reading``.
    """

    def __init__(
        self,
        inputs: Sequence[Input],
        read: Read,
        reading: ThreadPoolExecutor,
        clock: Clock,
    ) -> None:
        self._inputs = inputs
        self._modality = modalities.of(inputs[0])
        self._source, self._reading, self._clock = read, reading, clock

    def __call__(self, images: Sequence[Image]) -> dict[Input, Fed]:
        """``images`` for each kind of input; one that cannot be decoded is refused."""
        fed = {how: Fed() for how in self._inputs}
        rows: dict[Input, list[Any]] = {how: [] for how in self._inputs}
        for expected, data in self._bytes(images):
            with self._clock.time("decode"):
                try:
                    decoded = self._modality.decode(_unless_refused(data))
                except RefusedImage as refusal:
                    for one in fed.values():
                        one.refuse(expected, refusal)
                    continue
                for how, one in fed.items():
                    try:
                        rows[how].append(self._modality.prepare(decoded, how))
                    except RefusedImage as refusal:
                        one.refuse(expected, refusal)
                    else:
                        one.ids.append(expected)
        with self._clock.time("decode"):
            for how, one in fed.items():
                one.batch = self._modality.collate(rows[how]) if rows[how] else None
        return fed

    def _bytes(
        self, images: Sequence[Image]
    ) -> Iterator[tuple[str, bytes | RefusedImage]]:
        starts = range(0, len(images), _AT_A_TIME)
        some = [images[start : start + _AT_A_TIME] for start in starts]
        return chain.from_iterable(ahead(self._reading, self._read, some, READ_AHEAD))

    def _read(self, images: Sequence[Image]) -> list[tuple[str, bytes | RefusedImage]]:
        found: list[tuple[str, bytes | RefusedImage]] = []
        with self._clock.time("read"):
            for expected, uri in images:
                try:
                    found.append((expected, _read(uri, expected, self._source)))
                except RefusedImage as refusal:
                    found.append((expected, refusal))
        return found


def _unless_refused(data: bytes | RefusedImage) -> bytes:
    if isinstance(data, RefusedImage):
        raise data
    return data


def _read(uri: str, expected: str, read: Read) -> bytes:
    """The bytes of ``uri`` if they are still those that ingest saw."""
    try:
        data = read(uri)
    except OSError as error:
        raise RefusedImage(UNREADABLE, f"{error}") from None
    if image_id(data) != expected:
        raise RefusedImage(CHANGED, f"{uri} changed since it was ingested")
    return data

"""Images of a source, read and decoded into the batches that networks are fed with."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from tl_pipeline.data.reading import Image, Read, Refusal, checked
from tl_pipeline.embedding.prefetch import ahead
from tl_pipeline.inputs import modalities
from tl_pipeline.inputs.images import RefusedImage
from tl_pipeline.inputs.modalities import Batch, Input
from tl_pipeline.store.timings import Clock

# Images that one thread reads at a time, and how many times that a decoder is ahead:
# enough to hide a disk, few enough for memory where photos are large.
AT_A_TIME = 8
READ_AHEAD = 2


@dataclass
class DecodedBatch:
    """A batch of images as encoders of one kind of input are fed with it.

    ``batch`` is a ``Batch`` of ``modalities``, whole, of those in ``ids``; None where
    there is none. The others are in ``refused``.
    """

    ids: list[str] = field(default_factory=list)
    batch: Any = None
    refused: list[Refusal] = field(default_factory=list)


# What there is of an image: by the input of an encoder, a row of its batch or why not.
Prepared = dict[Input, Any | RefusedImage]


class BatchBuilder:
    """Images, one after another, into batches for encoders of ``inputs``.

    ``batch`` gathers at most so many rows.
    """

    def __init__(
        self, inputs: Sequence[Input], batch: Callable[[int], Batch], most: int
    ) -> None:
        self._fed = {how: (DecodedBatch(), batch(most)) for how in inputs}

    def take(self, image_id: str, prepared: Prepared) -> None:
        """The next image."""
        for how, (fed, batch) in self._fed.items():
            row = prepared[how]
            if isinstance(row, RefusedImage):
                fed.refused.append((image_id, row.reason, row.detail))
            else:
                fed.ids.append(image_id)
                batch.add(row)

    def whole(self) -> dict[Input, DecodedBatch]:
        """All that was taken."""
        for fed, batch in self._fed.values():
            fed.batch = batch.whole() if fed.ids else None
        return {how: fed for how, (fed, _) in self._fed.items()}


class BatchLoader:
    """Makes batches for encoders of ``inputs``, in two steps, each by any thread.

    ``begin`` is for those that decode, ``finish`` for those that drive a network. What
    is about to be decoded is read beforehand in threads of ``reading``.
    """

    def __init__(
        self,
        inputs: Sequence[Input],
        read: Read,
        reading: ThreadPoolExecutor,
        clock: Clock,
    ) -> None:
        self._inputs, self._clock = inputs, clock
        self._modality = modalities.of(inputs[0])
        self._source, self._reading = read, reading

    def begin(self, images: Sequence[Image]) -> Any:
        """``images`` read and decoded, for ``finish``."""
        gathering = BatchBuilder(self._inputs, self._modality.batch, len(images))
        for expected, data in self._bytes(images):
            with self._clock.time("decode"):
                gathering.take(expected, self._prepared(data))
        return gathering.whole()

    def finish(self, begun: Any) -> dict[Input, DecodedBatch]:
        """A batch for each kind of input; what cannot be decoded is refused."""
        return begun

    def _prepared(self, data: bytes | RefusedImage) -> Prepared:
        try:
            decoded = self._modality.decode(_unless_refused(data), self._inputs[0])
        except RefusedImage as refusal:
            return dict.fromkeys(self._inputs, refusal)
        found: Prepared = {}
        for how in self._inputs:
            try:
                found[how] = self._modality.prepare(decoded, how)
            except RefusedImage as refusal:
                found[how] = refusal
        return found

    def _bytes(
        self, images: Sequence[Image]
    ) -> Iterator[tuple[str, bytes | RefusedImage]]:
        starts = range(0, len(images), AT_A_TIME)
        some = [images[start : start + AT_A_TIME] for start in starts]
        return chain.from_iterable(ahead(self._reading, self._read, some, READ_AHEAD))

    def _read(self, images: Sequence[Image]) -> list[tuple[str, bytes | RefusedImage]]:
        found: list[tuple[str, bytes | RefusedImage]] = []
        with self._clock.time("read"):
            for image in images:
                try:
                    found.append((image[0], checked(image, self._source)))
                except RefusedImage as refusal:
                    found.append((image[0], refusal))
        return found


def _unless_refused(data: bytes | RefusedImage) -> bytes:
    if isinstance(data, RefusedImage):
        raise data
    return data

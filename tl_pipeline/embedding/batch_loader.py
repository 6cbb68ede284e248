"""Images of a source, read and decoded into the batches that networks are fed with."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from tl_pipeline.data.reading import ImageRef, Read, Refusal, checked
from tl_pipeline.embedding.workers import prefetched
from tl_pipeline.inputs import modalities
from tl_pipeline.inputs.images import RefusedImage
from tl_pipeline.inputs.modalities import Batch, Input
from tl_pipeline.store.timings import Clock

# Images that one thread reads at a time, and how many times that a decoder is ahead:
# enough to hide a disk, few enough for memory where photos are large.
_AT_A_TIME = 8
READ_AHEAD = 2


@dataclass
class DecodedBatch:
    """A batch of images as encoders of one kind of input are fed with it.

    ``batch`` is what a ``Batch`` of ``modalities`` gives for the images in ``ids``;
    None where there is none. The other images are in ``refused``.
    """

    ids: list[str] = field(default_factory=list)
    batch: Any = None
    refused: list[Refusal] = field(default_factory=list)


# Of one image, by the input of an encoder: a row of its batch, or the refusal.
Prepared = dict[Input, Any | RefusedImage]


class BatchBuilder:
    """Puts images, one after another, into a batch for each of ``inputs``.

    ``batch`` makes an empty ``Batch`` for at most ``most`` rows.
    """

    def __init__(
        self, inputs: Sequence[Input], batch: Callable[[int], Batch], most: int
    ) -> None:
        self._batches = {how: (DecodedBatch(), batch(most)) for how in inputs}

    def add(self, image_id: str, prepared: Prepared) -> None:
        """Add the next image."""
        for how, (decoded, batch) in self._batches.items():
            row = prepared[how]
            if isinstance(row, RefusedImage):
                decoded.refused.append((image_id, row.reason, row.detail))
            else:
                decoded.ids.append(image_id)
                batch.add(row)

    def build(self) -> dict[Input, DecodedBatch]:
        """A batch for each input, of all images that were added."""
        for decoded, batch in self._batches.values():
            decoded.batch = batch.whole() if decoded.ids else None
        return {how: decoded for how, (decoded, _) in self._batches.items()}


class BatchLoader:
    """Makes batches for encoders of ``inputs``, in two steps, each by any thread.

    ``begin`` is for threads that decode, ``finish`` for those that drive a network.
    What is about to be decoded is read beforehand in threads of ``reading``.
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

    def begin(self, images: Sequence[ImageRef]) -> Any:
        """Read and decode ``images``, for ``finish``."""
        builder = BatchBuilder(self._inputs, self._modality.batch, len(images))
        for image_id, data in self._bytes(images):
            with self._clock.time("decode"):
                builder.add(image_id, self._prepared(data))
        return builder.build()

    def finish(self, begun: Any) -> dict[Input, DecodedBatch]:
        """A batch for each input; images that cannot be decoded are refused."""
        return begun

    def _prepared(self, data: bytes | RefusedImage) -> Prepared:
        if isinstance(data, RefusedImage):
            return dict.fromkeys(self._inputs, data)
        try:
            decoded = self._modality.decode(data, self._inputs[0])
        except RefusedImage as refusal:
            return dict.fromkeys(self._inputs, refusal)
        return {how: self._row(decoded, how) for how in self._inputs}

    def _row(self, decoded: Any, how: Input) -> Any | RefusedImage:
        try:
            return self._modality.prepare(decoded, how)
        except RefusedImage as refusal:
            return refusal

    def _bytes(
        self, images: Sequence[ImageRef]
    ) -> Iterator[tuple[str, bytes | RefusedImage]]:
        starts = range(0, len(images), _AT_A_TIME)
        some = [images[start : start + _AT_A_TIME] for start in starts]
        read = prefetched(self._reading, self._read_some, some, READ_AHEAD)
        return chain.from_iterable(read)

    def _read_some(
        self, images: Sequence[ImageRef]
    ) -> list[tuple[str, bytes | RefusedImage]]:
        with self._clock.time("read"):
            return [(image[0], self._read(image)) for image in images]

    def _read(self, image: ImageRef) -> bytes | RefusedImage:
        try:
            return checked(image, self._source)
        except RefusedImage as refusal:
            return refusal

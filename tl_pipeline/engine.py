"""The embedding loop: decode, forward and write.

Decoding runs in threads ahead of the forward pass, so the processor is never idle while
bytes are awaited; a bounded number of batches is in flight, so memory does not grow
with the data. Threads and not processes: forked children of a Prefect task die.
"""

import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tl_pipeline import encoders, modalities
from tl_pipeline.embeddings import EmbeddingFolder
from tl_pipeline.encoders import Encoder
from tl_pipeline.identity import image_id
from tl_pipeline.images import Preprocess, RefusedImage
from tl_pipeline.modalities import Input
from tl_pipeline.progress import Track

BATCH = 32  # larger batches leave the cache of a processor and are slower
BATCHES_AHEAD = 4

# Refusals that say nothing about the image itself: the next run tries again.
UNREADABLE, CHANGED = "unreadable", "changed"

Read = Callable[[str], bytes]


@dataclass
class Embedded:
    """What one call of ``embed`` did; ``width`` is the length of an embedding."""

    images: int = 0
    refused: int = 0
    width: int = 0
    seconds: float = 0.0


@dataclass
class _Batch:
    """The images of one forward pass, decoded or refused."""

    image_ids: list[str] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    refused: list[tuple[str, str, str]] = field(default_factory=list)


def embed(
    encoder: Encoder,
    images: Sequence[tuple[str, str]],
    read: Read,
    folder: EmbeddingFolder,
    part_rows: int,
    track: Track,
) -> Embedded:
    """Embed ``images``, pairs of (image_id, uri), into part files of ``folder``.

    The images are cut in their order into shards of ``part_rows``; each shard becomes
    one part file when it is finished, so a broken run loses at most one shard. An image
    that cannot be decoded is refused alone. Runs on the GPU where torch sees one.

    Raises:
        WeightsError: the network of ``encoder`` cannot be loaded.
        ValueError: the network gave values that are not finite.
    """
    forward, collate = Forward(encoder), modalities.of(encoder.preprocess).collate
    done, started = Embedded(), time.perf_counter()
    workers = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode")
    with workers:
        for shard in _chunks(images, part_rows):
            ids: list[str] = []
            blocks: list[np.ndarray] = []
            refused: list[tuple[str, str, str]] = []
            for batch in _decoded(shard, read, encoder.preprocess, workers):
                if batch.image_ids:
                    ids += batch.image_ids
                    blocks.append(forward(collate(batch.inputs)))
                refused += batch.refused
                track.advance(len(batch.image_ids) + len(batch.refused))
            if blocks:
                folder.add(ids, np.concatenate(blocks))
                done.width = blocks[0].shape[1]
            if refused:
                folder.refuse(refused)
            done.images += len(ids)
            done.refused += len(refused)
    done.seconds = time.perf_counter() - started
    return done


class Forward:
    """A batch of n inputs -> float32 embeddings (n, width).

    Of images that is uint8 pixels (n, channels, crop, crop), else what ``collate`` of
    ``modalities`` makes.

    Raises:
        WeightsError: the network cannot be loaded.
        ValueError: it gave values that are not finite.
    """

    def __init__(self, encoder: Encoder) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._label = encoder.label
        self._module = encoders.load(encoder).to(device)
        how = encoder.preprocess
        self._feed = _Normalised(how, device) if isinstance(how, Preprocess) else None

    @torch.inference_mode()
    def __call__(self, batch: Any) -> np.ndarray:
        """Embed one batch."""
        values = self._feed(batch) if self._feed else batch
        vectors = self._module(values).cpu().numpy()
        if not np.isfinite(vectors).all():
            raise ValueError(f"{self._label} gave values that are not finite")
        return vectors


class _Normalised:
    """uint8 pixels to what a network of images takes, on its device."""

    def __init__(self, how: Preprocess, device: torch.device) -> None:
        shape = (1, -1, 1, 1)
        self._device = device
        self._mean = torch.tensor(how.mean, device=device).reshape(shape)
        self._std = torch.tensor(how.std, device=device).reshape(shape)

    def __call__(self, batch: np.ndarray) -> torch.Tensor:
        # Decoded pixels are channels-last already, the layout convolutions like best.
        values = torch.from_numpy(batch).to(self._device)
        values = values.contiguous(memory_format=torch.channels_last)
        # The order of torchvision's preset: to [0, 1], then normalise.
        return (values.to(torch.float32) / 255 - self._mean) / self._std


def _decoded(
    images: Sequence[tuple[str, str]],
    read: Read,
    how: Input,
    workers: ThreadPoolExecutor,
) -> Iterator[_Batch]:
    """Decode batches in threads, a bounded number ahead, and yield them in order."""
    batches = _chunks(images, BATCH)
    ahead: deque[Future[_Batch]] = deque()
    for chunk in itertools.islice(batches, BATCHES_AHEAD):
        ahead.append(workers.submit(_decode, chunk, read, how))
    while ahead:
        batch = ahead.popleft().result()
        for chunk in itertools.islice(batches, 1):
            ahead.append(workers.submit(_decode, chunk, read, how))
        yield batch


def _decode(images: Iterable[tuple[str, str]], read: Read, how: Input) -> _Batch:
    batch, prepare = _Batch(), modalities.of(how).prepare
    for expected, uri in images:
        try:
            values = prepare(_read(uri, expected, read), how)
        except RefusedImage as refusal:
            batch.refused.append((expected, refusal.reason, refusal.detail))
        else:
            batch.image_ids.append(expected)
            batch.inputs.append(values)
    return batch


def _read(uri: str, expected: str, read: Read) -> bytes:
    """The bytes of ``uri`` if they are still those that ingest saw."""
    try:
        data = read(uri)
    except OSError as error:
        raise RefusedImage(UNREADABLE, f"{error}") from None
    if image_id(data) != expected:
        raise RefusedImage(CHANGED, f"{uri} changed since it was ingested")
    return data


def _chunks(
    images: Sequence[tuple[str, str]], size: int
) -> Iterator[Sequence[tuple[str, str]]]:
    for start in range(0, len(images), size):
        yield images[start : start + size]

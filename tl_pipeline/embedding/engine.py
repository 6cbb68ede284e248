"""The embedding loop: read, decode, forward and write at the same time.

Pools of threads, each bounded in how far it is ahead of the next: no core idles while
another thing is awaited, and memory does not grow with the data. Without a GPU, few
cores take a batch each from its bytes to its embeddings; a GPU is fed by as many
threads that decode as there are cores, or decodes JPEGs itself where it has the
hardware. Several encoders share reading and decoding.
"""

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from tl_pipeline.data.reading import ImageRef, Read, Refusal
from tl_pipeline.embedding import canary
from tl_pipeline.embedding.batch_loader import READ_AHEAD, BatchLoader, DecodedBatch
from tl_pipeline.embedding.devices import devices
from tl_pipeline.embedding.forward import BATCH, Forward, Vectors
from tl_pipeline.embedding.gpu import nvjpeg
from tl_pipeline.embedding.gpu.batch_loader import NvjpegBatchLoader
from tl_pipeline.embedding.process import cores
from tl_pipeline.embedding.result import EmbedStats, Pace
from tl_pipeline.embedding.rounding import BEYOND, beyond, rounded
from tl_pipeline.embedding.workers import PER_GPU, NetworkThreads, pool, prefetched
from tl_pipeline.encoders.encoder import Encoder, sharing
from tl_pipeline.encoders.loading import weight_bytes
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.inputs.modalities import Input
from tl_pipeline.inputs.nvjpeg_support import Sampling
from tl_pipeline.progress import Track
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.timings import Clock

# Shards that wait to be written; more would only hide a disk that is too slow.
_UNWRITTEN = 2
# Images from which on a GPU is given a recorded network: recording takes a second.
_LONG = 8192
# Networks with more bytes of weights take turns: they would crowd out the images.
_TOGETHER = 3 << 30

Load = Callable[[Sequence[Encoder], torch.device], Forward]


class Job(NamedTuple):
    """An encoder and where its embeddings go."""

    encoder: Encoder
    folder: EmbeddingFolder


def embed(
    jobs: Sequence[Job],
    images: Sequence[ImageRef],
    read: Read,
    part_rows: int,
    track: Track,
    load: Load = Forward,
    known: Sequence[ImageRef] = (),
) -> list[EmbedStats]:
    """Embed each of ``images`` under the encoder of each of ``jobs``.

    The images are cut in their order into shards of ``part_rows``; each shard becomes
    one part file when it is finished, so a broken run loses those that are under way.
    An image that cannot be decoded is refused alone. ``track`` counts embeddings.
    ``load`` gives the network of some encoders on a device. Those of ``known`` images
    that have an embedding must come out as it: see ``canary``.

    Raises:
        StoreError: a network gives other embeddings than are stored.
        WeightsError: a network cannot be loaded.
        DeviceError: there is a GPU that torch cannot use.
        ValueError: a network gave values that are not finite.
    """
    if not (jobs and images):
        return [EmbedStats() for _ in jobs]
    folders = {job.encoder.key: job.folder for job in jobs}
    available = devices()
    done: dict[str, EmbedStats] = {}
    for groups in _passes(sharing([job.encoder for job in jobs])):
        if done:
            gc.collect()  # the networks of the last pass: their graphs are cyclic
        networks = [[load(group, device) for group in groups] for device in available]
        if known:
            _compare(networks, folders, known, read)
        done |= _Pass(networks, folders).run(images, read, part_rows, track)
    return [done[job.encoder.key] for job in jobs]


def _compare(
    networks: Sequence[Sequence[Forward]],
    folders: Mapping[str, EmbeddingFolder],
    known: Sequence[ImageRef],
    read: Read,
) -> None:
    """See that ``networks`` give what is stored of some of ``known``."""
    encoders = [encoder for forward in networks[0] for encoder in forward.encoders]
    again = {encoder.key: canary.Recomputed() for encoder in encoders}
    images = canary.sample([folders[key] for key in again], known)
    if images:
        _Pass(networks, again).run(images, read, len(images))
    for encoder in encoders:
        again[encoder.key].compare(encoder, folders[encoder.key])
        folders[encoder.key].note_made_by(canary.machine())


def _passes(groups: Sequence[list[Encoder]]) -> Iterator[list[list[Encoder]]]:
    """The groups whose networks are in memory together, before any is loaded."""
    together: list[list[Encoder]] = []
    size = 0
    for group in groups:
        more = weight_bytes(group[0]) if len(groups) > 1 else 0
        if together and size + more > _TOGETHER:
            yield together
            together, size = [], 0
        together.append(group)
        size += more
    yield together


@dataclass
class _Shard:
    """What one encoder made of some images."""

    ids: list[str] = field(default_factory=list)
    blocks: Vectors = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    rounding: float = 0.0  # see ``rounding.Rounded.error``

    def add(self, encoder: Encoder, ids: list[str], vectors: np.ndarray) -> None:
        """The embeddings of ``ids``, as they are kept, and those that cannot be."""
        kept = rounded(encoder, vectors)
        self.rounding = max(self.rounding, kept.error)
        if kept.fits.all():
            self.ids += ids
            self.blocks.append(kept.vectors)
            return
        self.ids += [one for one, fits in zip(ids, kept.fits, strict=True) if fits]
        self.blocks.append(kept.vectors[kept.fits])
        self.refused += [
            (ids[row], BEYOND, beyond(vectors[row]))
            for row in np.flatnonzero(~kept.fits)
        ]

    def extend(self, other: "_Shard") -> None:
        """All of ``other``, too."""
        self.ids += other.ids
        self.blocks += other.blocks
        self.refused += other.refused
        self.rounding = max(self.rounding, other.rounding)


class _Pass:
    """All images once through the networks, which lie there for each device."""

    def __init__(
        self,
        networks: Sequence[Sequence[Forward]],
        folders: Mapping[str, EmbeddingFolder | canary.Recomputed],
    ) -> None:
        self._networks = networks
        self._keys = [e.key for forward in networks[0] for e in forward.encoders]
        self._folders = {key: folders[key] for key in self._keys}
        inputs = [forward.encoders[0].preprocess for forward in networks[0]]
        self._inputs: list[Input] = list(dict.fromkeys(inputs))
        self._batch = BATCH[networks[0][0].device.type]
        self._done = {key: EmbedStats() for key in self._keys}
        self._clock = Clock()
        self._pace = Pace(self._clock)

    def run(
        self,
        images: Sequence[ImageRef],
        read: Read,
        part_rows: int,
        track: Track | None = None,
    ) -> dict[str, EmbedStats]:
        """See ``embed``."""
        started = time.perf_counter()
        threads = NetworkThreads(self._networks)
        self._record(len(images))
        batches = _batches(images, part_rows, self._batch)
        with ExitStack() as pools:
            decoding = threads.number if threads.decode else cores()
            loader = self._loader(read, decoding, pools)
            if not threads.decode:
                decoders = pools.enter_context(pool("decode", decoding))
                batches = prefetched(decoders, loader.begin, batches, decoding + 2)

            def embed_one(batch: Any) -> dict[str, _Shard]:
                begun = loader.begin(batch) if threads.decode else batch
                return self._forward(threads.networks, loader.finish(begun))

            driving = pools.enter_context(
                pool("forward", threads.number, threads.begin)
            )
            embedded = prefetched(driving, embed_one, batches, threads.number + 1)
            shards = self._shards(embedded, len(images), part_rows, track)
            writing = pools.enter_context(pool("write", 1, finish=True))
            for _ in prefetched(writing, self._publish, shards, _UNWRITTEN):
                pass
        self._account(time.perf_counter() - started, threads.number)
        return self._done

    def _loader(self, read: Read, decoding: int, pools: ExitStack) -> BatchLoader:
        reading = pools.enter_context(pool("read", decoding * READ_AHEAD))
        given = (self._inputs, read, reading, self._clock)
        samplings = self._samplings()
        if samplings:
            return NvjpegBatchLoader(*given, samplings)
        return BatchLoader(*given)

    def _samplings(self) -> frozenset[Sampling]:
        """The JPEGs, by sampling, that all GPUs here decode themselves."""
        devices = [forwards[0].device for forwards in self._networks]
        if devices[0].type != "cuda" or not isinstance(self._inputs[0], Preprocess):
            return frozenset()
        judged = [nvjpeg.judge(device) for device in devices]
        return frozenset.intersection(*(good for good, _ in judged))

    def _record(self, images: int) -> None:
        """Record the networks for a GPU if there is so much to do that it pays."""
        for forwards in self._networks if images >= _LONG else ():
            for forward in forwards:
                forward.record(self._batch, PER_GPU)

    def _forward(
        self, networks: Sequence[Forward], batches: Mapping[Input, DecodedBatch]
    ) -> dict[str, _Shard]:
        made: dict[str, _Shard] = {}
        for network in networks:
            decoded = batches[network.encoders[0].preprocess]
            vectors = network(decoded.batch, self._clock) if decoded.ids else []
            for at, encoder in enumerate(network.encoders):
                shard = made[encoder.key] = _Shard(refused=list(decoded.refused))
                if vectors:
                    shard.add(encoder, list(decoded.ids), vectors[at])
        return made

    def _shards(
        self,
        embedded: Iterable[dict[str, _Shard]],
        images: int,
        part_rows: int,
        track: Track | None,
    ) -> Iterator[dict[str, _Shard]]:
        """What belongs into one part file each, in order."""
        shards = {key: _Shard() for key in self._keys}
        seen = 0
        for made in embedded:
            for key, shard in made.items():
                shards[key].extend(shard)
            one = next(iter(made.values()))
            size = len(one.ids) + len(one.refused)
            seen += size
            self._pace.add(size)
            if track:
                track.advance(size * len(made))
            if seen % part_rows == 0 or seen == images:
                yield shards
                shards = {key: _Shard() for key in self._keys}

    def _publish(self, shards: Mapping[str, _Shard]) -> None:
        for key, shard in shards.items():
            folder, done = self._folders[key], self._done[key]
            with self._clock.time("write", key):
                if shard.ids:
                    folder.add(shard.ids, np.concatenate(shard.blocks))
                    done.width = shard.blocks[0].shape[1]
                if shard.refused:
                    folder.refuse(shard.refused)
            done.images += len(shard.ids)
            done.refused += len(shard.refused)
            done.rounding = max(done.rounding, shard.rounding)

    def _account(self, elapsed: float, threads: int) -> None:
        """Split what the pass took among its encoders."""
        worked = 0.0
        for key in self._keys:
            own = self._clock.of("forward", key) + self._clock.of("transfer", key)
            self._clock.add("elapsed", own / threads, key)
            worked += own
        idle = max(0.0, elapsed * threads - worked)
        self._clock.add("idle", idle)
        self._clock.add("elapsed", idle / threads)
        shares = self._pace.seconds_per_image(self._keys)
        timings = self._clock.split(self._keys)
        for forward in self._networks[0]:
            keys = [encoder.key for encoder in forward.encoders]
            alone = sum(shares[key] for key in keys) if shares else None
            for key in keys:
                self._done[key].timings = timings[key]
                self._done[key].seconds_per_image = alone


def _batches(
    images: Sequence[ImageRef], part_rows: int, size: int
) -> Iterator[Sequence[ImageRef]]:
    """Batches that reach over the end of no shard."""
    for start in range(0, len(images), part_rows):
        shard = images[start : start + part_rows]
        for at in range(0, len(shard), size):
            yield shard[at : at + size]

"""The embedding loop: read, decode, forward and write at the same time.

Three pools of threads, each a bounded number of batches ahead of the next, so that no
core is idle while another thing is awaited and memory does not grow with the data:
images are decoded by as many threads as there are cores, others drive the networks, one
writes. Threads and not processes: forked children of a Prefect task die, and all heavy
work here releases Python's lock. Several encoders share read and decode.

Without a GPU each core drives a batch of its own: a batch that is shared out among
cores has them wait for each other after every layer, most of all where some decode.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from tl_pipeline import encoders, modalities
from tl_pipeline.devices import cores, devices
from tl_pipeline.embeddings import RETRIED, EmbeddingFolder
from tl_pipeline.encoders import Encoder
from tl_pipeline.forward import BATCH, Forward, Vectors
from tl_pipeline.identity import image_id
from tl_pipeline.images import RefusedImage
from tl_pipeline.modalities import Input
from tl_pipeline.progress import Track
from tl_pipeline.timings import Clock, Timings

# Refusals that say nothing about the image itself: the next run tries again.
UNREADABLE, CHANGED = RETRIED
# Shards that wait to be written; more would only hide a disk that is too slow.
_UNWRITTEN = 2
# Drivers of a processor; each holds the activations of a batch. More cores share.
_DRIVERS = 4
# Networks of more bytes do not share a pass: they would crowd out the images.
_TOGETHER = 3 << 30

Read = Callable[[str], bytes]
Image = tuple[str, str]  # image_id, uri
Refusal = tuple[str, str, str]  # image_id, reason, detail
Load = Callable[[Sequence[Encoder], torch.device], Forward]
_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Job(NamedTuple):
    """An encoder and where its embeddings go."""

    encoder: Encoder
    folder: EmbeddingFolder


@dataclass
class Embedded:
    """What one call of ``embed`` did for one encoder; ``width`` is of an embedding.

    ``timings`` holds its share of the time, loading apart; ``seconds_per_image`` that
    of the network once warm, None where there were too few images to tell.
    """

    images: int = 0
    refused: int = 0
    width: int = 0
    timings: Timings = field(default_factory=Timings)
    seconds_per_image: float | None = None

    def __add__(self, other: "Embedded") -> "Embedded":
        return Embedded(
            images=self.images + other.images,
            refused=self.refused + other.refused,
            width=other.width or self.width,
            timings=self.timings + other.timings,
            seconds_per_image=other.seconds_per_image or self.seconds_per_image,
        )


def embed(
    jobs: Sequence[Job],
    images: Sequence[Image],
    read: Read,
    part_rows: int,
    track: Track,
    load: Load = Forward,
) -> list[Embedded]:
    """Embed each of ``images`` under the encoder of each of ``jobs``.

    The images are cut in their order into shards of ``part_rows``; each shard becomes
    one part file when it is finished, so a broken run loses those that are under way.
    An image that cannot be decoded is refused alone. ``track`` counts embeddings.
    ``load`` gives the network of some encoders on a device.

    Raises:
        WeightsError: a network cannot be loaded.
        DeviceError: there is a GPU that torch cannot use.
        ValueError: a network gave values that are not finite.
    """
    if not (jobs and images):
        return [Embedded() for _ in jobs]
    done: dict[str, Embedded] = {}
    where = devices()
    for networks in _passes(jobs, where, load):
        taken = _Pass(networks, {job.encoder.key: job.folder for job in jobs})
        done |= taken.run(images, read, part_rows, track)
    return [done[job.encoder.key] for job in jobs]


def _passes(
    jobs: Sequence[Job], where: Sequence[torch.device], load: Load
) -> Iterator[list[list[Forward]]]:
    """The networks of ``jobs`` on each device, as many at a time as fit together."""
    found: list[list[Forward]] = [[] for _ in where]
    size = 0
    for group in sharing([job.encoder for job in jobs]):
        loaded = [load(group, device) for device in where]
        if size and size + loaded[0].bytes > _TOGETHER:
            yield found
            found, size = [[] for _ in where], 0
        size += loaded[0].bytes
        for forwards, forward in zip(found, loaded, strict=True):
            forwards.append(forward)
    yield found


def sharing(wanted: Sequence[Encoder]) -> list[list[Encoder]]:
    """``wanted`` in groups that one forward pass serves."""
    groups: list[list[Encoder]] = []
    for encoder in wanted:
        for group in groups:
            if encoders.shares_network(group[0], encoder):
                group.append(encoder)
                break
        else:
            groups.append([encoder])
    return groups


@dataclass
class _Fed:
    """The images of one batch as encoders of one kind of input are fed with them."""

    ids: list[str] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    batch: Any = None


@dataclass
class _Shard:
    """What one encoder made of some images."""

    ids: list[str] = field(default_factory=list)
    blocks: Vectors = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)

    def take(self, other: "_Shard") -> None:
        self.ids += other.ids
        self.blocks += other.blocks
        self.refused += other.refused


class _Pass:
    """All images once through the networks, which lie there for each device."""

    def __init__(
        self,
        networks: Sequence[Sequence[Forward]],
        folders: Mapping[str, EmbeddingFolder],
    ) -> None:
        self._networks = networks
        self._keys = [e.key for forward in networks[0] for e in forward.encoders]
        self._folders = {key: folders[key] for key in self._keys}
        inputs = [forward.encoders[0].preprocess for forward in networks[0]]
        self._inputs: list[Input] = list(dict.fromkeys(inputs))
        self._batch = BATCH[networks[0][0].device.type]
        self._done = {key: Embedded() for key in self._keys}
        self._clock = Clock()
        self._warm = _Warm(self._clock)

    def run(
        self, images: Sequence[Image], read: Read, part_rows: int, track: Track
    ) -> dict[str, Embedded]:
        """See ``embed``."""
        started = time.perf_counter()
        threads = cores()
        drivers = _Drivers(self._networks)
        with (
            _pool("decode", threads, _single) as decode,
            _pool("forward", drivers.number, drivers.enlist) as drive,
            _pool("write", 1) as write,
        ):
            decoded = _ahead(
                decode,
                lambda batch: self._decode(batch, read),
                _batches(images, part_rows, self._batch),
                threads + 2,
            )
            embedded = _ahead(
                drive,
                lambda fed: self._forward(drivers.mine(), fed),
                decoded,
                drivers.number + 1,
            )
            shards = self._shards(embedded, len(images), part_rows, track)
            for _ in _ahead(write, self._publish, shards, _UNWRITTEN):
                pass
        self._account(time.perf_counter() - started, drivers.number)
        return self._done

    def _decode(self, images: Sequence[Image], read: Read) -> dict[Input, _Fed]:
        fed = {how: _Fed() for how in self._inputs}
        modality = modalities.of(self._inputs[0])
        for expected, uri in images:
            try:
                with self._clock.time("read"):
                    data = _read(uri, expected, read)
                with self._clock.time("decode"):
                    decoded = modality.decode(data)
            except RefusedImage as refusal:
                for one in fed.values():
                    one.refused.append((expected, refusal.reason, refusal.detail))
                continue
            with self._clock.time("decode"):
                for how, one in fed.items():
                    try:
                        one.rows.append(modality.prepare(decoded, how))
                    except RefusedImage as refusal:
                        one.refused.append((expected, refusal.reason, refusal.detail))
                    else:
                        one.ids.append(expected)
        with self._clock.time("decode"):
            for one in fed.values():
                one.batch = modality.collate(one.rows) if one.rows else None
                one.rows = []
        return fed

    def _forward(
        self, networks: Sequence[Forward], fed: Mapping[Input, _Fed]
    ) -> dict[str, _Shard]:
        made: dict[str, _Shard] = {}
        for network in networks:
            given = fed[network.encoders[0].preprocess]
            keys = [encoder.key for encoder in network.encoders]
            vectors: Vectors = []
            if given.ids:
                vectors = network(given.batch, self._clock)
            for at, key in enumerate(keys):
                blocks = [vectors[at]] if vectors else []
                made[key] = _Shard(list(given.ids), blocks, list(given.refused))
        return made

    def _shards(
        self,
        embedded: Iterable[dict[str, _Shard]],
        images: int,
        part_rows: int,
        track: Track,
    ) -> Iterator[dict[str, _Shard]]:
        """What belongs into one part file each, in order."""
        shards = {key: _Shard() for key in self._keys}
        seen = 0
        for made in embedded:
            for key, shard in made.items():
                shards[key].take(shard)
            one = next(iter(made.values()))
            size = len(one.ids) + len(one.refused)
            seen += size
            self._warm.saw(size)
            track.advance(size * len(made))
            if seen % part_rows == 0 or seen == images:
                yield shards
                shards = {key: _Shard() for key in self._keys}

    def _publish(self, shards: Mapping[str, _Shard]) -> None:
        for key, shard in shards.items():
            folder, done = self._folders[key], self._done[key]
            with self._clock.time("write", key):
                if shard.blocks:
                    folder.add(shard.ids, np.concatenate(shard.blocks))
                    done.width = shard.blocks[0].shape[1]
                if shard.refused:
                    folder.refuse(shard.refused)
            done.images += len(shard.ids)
            done.refused += len(shard.refused)

    def _account(self, elapsed: float, drivers: int) -> None:
        """Split what the pass took among its encoders."""
        worked = 0.0
        for key in self._keys:
            own = self._clock.of("forward", key) + self._clock.of("transfer", key)
            self._clock.add("elapsed", own / drivers, key)
            worked += own
        idle = max(0.0, elapsed * drivers - worked)
        self._clock.add("idle", idle)
        self._clock.add("elapsed", idle / drivers)
        shares = self._warm.seconds_per_image(self._keys)
        for key, timings in self._clock.split(self._keys).items():
            self._done[key].timings = timings
            self._done[key].seconds_per_image = shares.get(key)


class _Warm:
    """What an image costs from the end of the first batch to the end of the last.

    The first one also pays for what a network prepares when it first runs.
    """

    _IMAGES = 128  # enough to outweigh those that were decoded meanwhile

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began: float | None = None
        self._images, self._seconds = 0, 0.0
        self._before: dict[str, float] = {}

    def saw(self, images: int) -> None:
        """Count the images of a batch that is done."""
        now = time.perf_counter()
        if self._began is None:
            self._began = now
        else:
            self._images, self._seconds = self._images + images, now - self._began

    def seconds_per_image(self, keys: Sequence[str]) -> dict[str, float]:
        """The share of each encoder, by what its network worked; {} with too few."""
        if self._images < self._IMAGES:
            return {}
        own = {key: self._clock.of("forward", key) for key in keys}
        each = self._seconds / self._images
        total = sum(own.values()) or 1.0
        return {key: each * seconds / total for key, seconds in own.items()}


class _Drivers:
    """Gives each thread that drives a device the networks that lie there.

    A GPU has two drivers, so that it computes one batch while the next one is moved.
    """

    def __init__(self, networks: Sequence[Sequence[Forward]]) -> None:
        self._free: SimpleQueue[Sequence[Forward]] = SimpleQueue()
        self._thread = threading.local()
        self._each = min(cores(), _DRIVERS)
        self._threads = cores() // self._each
        self.number = 0
        for forwards in networks:
            cuda = forwards[0].device.type == "cuda"
            for _ in range(2 if cuda else self._each):
                self._free.put(forwards)
                self.number += 1

    def enlist(self) -> None:
        """Called once by each thread."""
        self._thread.networks = self._free.get()
        device = self._thread.networks[0].device
        if device.type == "cuda":
            torch.cuda.set_device(device)
            torch.cuda.set_stream(torch.cuda.Stream(device))
        else:
            torch.set_num_threads(self._threads)

    def mine(self) -> Sequence[Forward]:
        """The networks of the calling thread."""
        return self._thread.networks


def _single() -> None:
    # Threads that decode must not wait for helpers of their own beside the network.
    torch.set_num_threads(1)


@contextmanager
def _pool(
    name: str, threads: int, enlist: Callable[[], None] = lambda: None
) -> Iterator[ThreadPoolExecutor]:
    """A pool that drops what is still waiting when the block ends by an error."""
    usual = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=enlist)
    with ExitStack() as stack:
        # torch gives new threads the number that was set last, in whatever thread
        stack.callback(torch.set_num_threads, usual)
        stack.callback(pool.shutdown, cancel_futures=name != "write")
        yield pool


def _ahead(
    pool: ThreadPoolExecutor,
    work: Callable[[_In], _Out],
    items: Iterable[_In],
    most: int,
) -> Iterator[_Out]:
    """``work`` of each item in a thread, at most ``most`` ahead; yields in order.

    What comes before a fault is yielded before the fault is raised.
    """
    waiting: deque[Future[_Out]] = deque()
    fault: Exception | None = None
    source = iter(items)
    while True:
        try:
            item = next(source)
        except StopIteration:
            break
        except Exception as error:  # noqa: BLE001 - raised below
            fault = error
            break
        waiting.append(pool.submit(work, item))
        if len(waiting) >= most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
    if fault is not None:
        raise fault


def _batches(
    images: Sequence[Image], part_rows: int, size: int
) -> Iterator[Sequence[Image]]:
    """Batches that reach over the end of no shard."""
    for start in range(0, len(images), part_rows):
        shard = images[start : start + part_rows]
        for at in range(0, len(shard), size):
            yield shard[at : at + size]


def _read(uri: str, expected: str, read: Read) -> bytes:
    """The bytes of ``uri`` if they are still those that ingest saw."""
    try:
        data = read(uri)
    except OSError as error:
        raise RefusedImage(UNREADABLE, f"{error}") from None
    if image_id(data) != expected:
        raise RefusedImage(CHANGED, f"{uri} changed since it was ingested")
    return data

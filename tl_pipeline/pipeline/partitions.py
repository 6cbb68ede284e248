"""What is to be embedded, cut into partitions of shards for the workers of a cluster.

A partition is a few names: its images are listed in a file of the store, which every
worker must see. Workers write parts as a local run would, shard by shard; a part is
named by its images, so a partition that is done twice is there once. Nothing here knows
which engine runs the workers.
"""

import contextlib
import os
import platform
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.embedding import process
from tl_pipeline.embedding.result import EmbedStats
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.encoders.weight_store import located
from tl_pipeline.errors import DatasetError, StoreError
from tl_pipeline.pipeline.stages.embed import Group, group_by_missing, pending
from tl_pipeline.progress import track
from tl_pipeline.sources import open_source
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder

if TYPE_CHECKING:
    import torch

    from tl_pipeline.data.reading import ImageRef
    from tl_pipeline.embedding.engine import Job
    from tl_pipeline.embedding.forward import Forward

# Task runs of one flow run that a Prefect server on SQLite handles well.
MOST = 100
# Networks that a worker keeps for its next partition; those of one pass fit.
_KEPT_BYTES = 3 << 30
# Images none of which can be read before a worker says that it sees no data.
_TRIED = 5

_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Partition:
    """Whole shards of images for a worker to embed; small, because it travels.

    ``listed`` is the file with their ids and uris, relative to the store at ``store``,
    a path or a URL; relative paths of the dataset and of weights start from ``folder``.
    """

    number: int
    store: str
    listed: str
    folder: str
    dataset: DatasetSpec
    encoders: tuple[Encoder, ...]
    images: int
    part_rows: int


@contextlib.contextmanager
def cut(
    store: Store, dataset: DatasetSpec, part_rows: int, groups: Sequence[Group]
) -> Iterator[list[Partition]]:
    """``groups`` as partitions, whose lists of images last as long as the block.

    There are some ``MOST`` of them at the most, and their shards are those of a run in
    one process.
    """
    rows, root = part_rows, store.root
    shards = sum(-(-len(group.images) // rows) for group in groups)
    size = rows * max(1, -(-shards // MOST))
    lists = root / ".building" / f"partitions-{uuid.uuid4().hex}"
    lists.mkdir(parents=True)
    found: list[Partition] = []
    try:
        for group in groups:
            for start in range(0, len(group.images), size):
                some = group.images[start : start + size]
                file = lists / f"{len(found):04d}.parquet"
                with store.mirror.sending(file):
                    pq.write_table(_table(some), file)
                partition = Partition(
                    number=len(found) + 1,
                    store=store.uri,
                    listed=str(file.relative_to(root)),
                    folder=str(Path.cwd()),
                    dataset=dataset,
                    encoders=tuple(job.encoder for job in group.jobs),
                    images=len(some),
                    part_rows=rows,
                )
                found.append(partition)
        yield found
    finally:
        store.mirror.remove_folder(lists)


def embed(partition: Partition, cores: int) -> Mapping[str, EmbedStats]:
    """Embed a partition in this process, on ``cores``; what was done, by encoder key.

    One partition at a time: several would share cores and memory. Networks are kept
    for the next one. The lock of each encoder's writer is held by who cut the
    partitions.

    Raises:
        StoreError, DatasetError: this machine does not see the store, or the data.
        WeightsError, DeviceError: see ``engine.embed``.
    """
    from tl_pipeline.embedding import engine  # noqa: PLC0415 - torch only where there is work

    process.claim()
    with _one_at_a_time, _in(partition.folder):
        store = Store.open(partition.store)
        listed = _listed(store, partition)
        images, again = _images(listed), _begin(store, listed)
        jobs = [
            engine.Job(located(encoder, store), EmbeddingFolder(store, encoder.key))
            for encoder in partition.encoders
        ]
        # Of a worker that died the parts are there.
        groups = group_by_missing(jobs, images) if again else [Group(jobs, images)]
        total = {
            job.encoder.key: _settled(job, images) if again else EmbedStats()
            for job in jobs
        }
        read = open_source(partition.dataset).read
        os.environ["TL_CORES"] = str(cores)
        with track(f"partition {partition.number}", 0) as progress:
            for group in groups:
                _look(partition, read, group.images)
                made = engine.embed(*group, read, partition.part_rows, progress, _kept)
                for job, done in zip(group.jobs, made, strict=True):
                    total[job.encoder.key] += done
        return total


class _Kept:
    """Loads networks once and keeps them, the last used ones up to a size."""

    def __init__(self) -> None:
        self._forwards: dict[tuple[str, ...], Forward] = {}

    def __call__(
        self, together: Sequence[Encoder], device: "torch.device"
    ) -> "Forward":
        from tl_pipeline.embedding.forward import Forward  # noqa: PLC0415 - imports torch

        key = (str(device), *(encoder.key for encoder in together))
        found = self._forwards.pop(key, None) or Forward(together, device)
        self._forwards[key] = found
        while sum(f.bytes for f in self._forwards.values()) > _KEPT_BYTES:
            del self._forwards[next(iter(self._forwards))]
        return found


_kept = _Kept()


def _in(folder: str) -> contextlib.AbstractContextManager[None]:
    """Work in ``folder``, from which relative paths start, if it is on this machine."""
    return contextlib.chdir(folder) if Path(folder).is_dir() else _here()


@contextlib.contextmanager
def _here() -> Iterator[None]:
    yield


def _listed(store: Store, partition: Partition) -> Path:
    """The list of images, which is there where the right store is."""
    listed = store.root / partition.listed
    with contextlib.suppress(FileNotFoundError):
        store.mirror.fetch([listed])
    if not (store.root / "store.json").is_file() or not listed.is_file():
        raise StoreError(
            f"the worker on {platform.node()} does not see the store {store.uri}: "
            "mount the same folder there under the same path, or run without a cluster"
        )
    return listed


def _begin(store: Store, listed: Path) -> bool:
    """Whether somebody began with this partition before."""
    begun = listed.with_suffix(".begun")
    again = begun.exists() or begun.name in store.mirror.listing(begun.parent)
    with store.mirror.sending(begun):
        begun.touch()
    return again


def _settled(job: "Job", images: Sequence["ImageRef"]) -> EmbedStats:
    """What a worker that died did of these images."""
    ids = {image_id for image_id, _ in images}
    left = {image_id for image_id, _ in pending(job.folder, images)}
    embedded = ids & job.folder.embedded()
    return EmbedStats(images=len(embedded), refused=len(ids - left - embedded))


def _look(
    partition: Partition, read: Callable[[str], bytes], images: Sequence["ImageRef"]
) -> None:
    """Refuse to begin where the data is not: each image would count as unreadable."""
    fault: OSError | None = None
    for _, uri in images[:_TRIED]:
        try:
            read(uri)
        except OSError as error:
            fault = error
        else:
            return
    if fault is not None:
        raise DatasetError(
            f"the worker on {platform.node()} cannot read {partition.dataset.name}: "
            f"{fault}. Put the data there under the same path, or run without a cluster"
        ) from fault


def _table(images: Sequence["ImageRef"]) -> pa.Table:
    ids, uris = zip(*images, strict=True)
    return pa.table({"image_id": pa.array(ids), "uri": pa.array(uris)})


def _images(listed: Path) -> list["ImageRef"]:
    rows = pq.read_table(listed)
    return list(zip(rows["image_id"].to_pylist(), rows["uri"].to_pylist(), strict=True))

"""Partitions: the shards of a local run, and a worker that says what it cannot see."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tl_pipeline.config.catalog import find
from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.config.specs import EncoderSpec
from tl_pipeline.data.identity import image_id
from tl_pipeline.embedding import forward
from tl_pipeline.embedding.engine import Job
from tl_pipeline.encoders import resolution
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.errors import DatasetError, StoreError
from tl_pipeline.pipeline import partitions
from tl_pipeline.pipeline.partitions import Partition
from tl_pipeline.pipeline.stages import embed
from tl_pipeline.pipeline.stages.embed import Group
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Feed:
    """60 photos in shards of 16."""

    store: Store
    dataset: DatasetSpec
    part_rows: int = 16

    def cut(self, groups: Sequence[Group]) -> AbstractContextManager[list[Partition]]:
        return partitions.cut(self.store, self.dataset, self.part_rows, groups)


@pytest.fixture
def feed(store: Store, folder: Path) -> Feed:
    return Feed(store, find(str(folder)))


@pytest.fixture
def job(store: Store) -> Job:
    """LeNet-5, of which nothing is embedded."""
    encoder = resolution.resolve(EncoderSpec(backbone="lenet5"), store)
    folder = EmbeddingFolder(store, encoder.key)
    folder.describe("{}")
    return Job(encoder, folder)


@pytest.fixture(autouse=True)
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process is a worker that has kept nothing yet."""
    monkeypatch.setenv("TL_CORES", "1")
    monkeypatch.setattr(partitions, "_kept", partitions._Kept())
    return iter([None])


@pytest.fixture
def images(folder: Path) -> list[tuple[str, str]]:
    files = sorted(folder.rglob("*.jpg"))
    return [(image_id(file.read_bytes()), str(file)) for file in files]


def parts(job: Job) -> list[str]:
    return sorted(file.name for file in job.folder.path.glob("part-*"))


def local(feed: Feed, encoder: Encoder, images, root: Path) -> list[str]:
    """The part files of a run in one process."""
    store = Store.open(root)
    embed.fill(store, feed.dataset, [encoder], images, feed.part_rows)
    return parts(Job(encoder, EmbeddingFolder(store, encoder.key)))


def test_partitions_write_the_part_files_of_a_local_run(
    feed: Feed, job: Job, images, tmp_path: Path
):
    with feed.cut([Group([job], images)]) as found:
        assert [p.images for p in found] == [16, 16, 16, 12]
        done = [partitions.embed(p, 1)[job.encoder.key].images for p in reversed(found)]
    assert sum(done) == 60
    assert parts(job) == local(feed, job.encoder, images, tmp_path / "local")
    assert not list((feed.store.root / ".building").iterdir())


def test_many_shards_are_some_hundred_partitions_of_whole_shards(feed: Feed, job: Job):
    many = [(f"{i:032x}", f"{i}.jpg") for i in range(1_003)]
    with replace(feed, part_rows=3).cut([Group([job], many)]) as found:
        assert len(found) <= partitions.MOST
        assert all(p.images % 3 == 0 for p in found[:-1])
        listed = [image for p in found for image in partitions._images(place(p))]
    assert listed == many


def place(partition: Partition) -> Path:
    return Path(partition.store) / partition.listed


def test_a_partition_done_twice_computes_only_what_was_lost(
    feed: Feed, job: Job, images, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(partitions, "MOST", 1)
    with feed.cut([Group([job], images)]) as (partition,):
        partitions.embed(partition, 1)
        whole = {f: f.stat().st_mtime_ns for f in job.folder.path.glob("part-*")}
        lost, *kept = whole
        lost.unlink()
        again = partitions.embed(partition, 1)[job.encoder.key]
    assert again.images == 60
    assert parts(job) == sorted(file.name for file in whole)
    assert all(file.stat().st_mtime_ns == whole[file] for file in kept)
    assert lost.stat().st_mtime_ns != whole[lost]


def test_a_worker_loads_a_network_once(
    feed: Feed, job: Job, images, monkeypatch: pytest.MonkeyPatch
):
    loaded = []

    class Counted(forward.Forward):
        def __init__(self, *given) -> None:
            loaded.append(given)
            super().__init__(*given)

    monkeypatch.setattr(forward, "Forward", Counted)
    with feed.cut([Group([job], images)]) as found:
        for partition in found:
            partitions.embed(partition, 1)
    assert len(found) == 4
    assert len(loaded) == 1


def test_a_worker_keeps_networks_up_to_a_size(
    store: Store, job: Job, monkeypatch: pytest.MonkeyPatch
):
    import torch

    twin = resolution.resolve(
        EncoderSpec(backbone="lenet5", weights="random:0"), store, control=True
    )
    kept, cpu = partitions._Kept(), torch.device("cpu")
    first = kept([job.encoder], cpu)
    assert kept([job.encoder], cpu) is first
    monkeypatch.setattr(partitions, "_KEPT_BYTES", first.bytes)
    kept([twin], cpu)
    assert kept([job.encoder], cpu) is not first


def test_a_worker_that_does_not_see_the_store_makes_none(
    feed: Feed, job: Job, images, tmp_path: Path
):
    with feed.cut([Group([job], images)]) as found:
        elsewhere = replace(found[0], store=str(tmp_path / "elsewhere"))
        with pytest.raises(StoreError, match="does not see the store"):
            partitions.embed(elsewhere, 1)
    assert not (tmp_path / "elsewhere").exists()


def test_another_store_under_the_same_path_is_refused(
    feed: Feed, job: Job, images, tmp_path: Path
):
    other = Store.open(tmp_path / "other")
    other.create()
    with (
        feed.cut([Group([job], images)]) as found,
        pytest.raises(StoreError, match="does not see the store"),
    ):
        partitions.embed(replace(found[0], store=str(other.root)), 1)


def test_a_worker_that_does_not_see_the_data_refuses_no_image(
    feed: Feed, job: Job, images, folder: Path
):
    with feed.cut([Group([job], images)]) as found:
        shutil.rmtree(folder)
        with pytest.raises(DatasetError, match="cannot read photos"):
            partitions.embed(found[0], 1)
    assert job.folder.refused() == {}
    assert parts(job) == []


def test_one_image_that_is_gone_is_one_refused_row(feed: Feed, job: Job, images):
    Path(images[0][1]).unlink()
    with feed.cut([Group([job], images)]) as found:
        done = partitions.embed(found[0], 1)[job.encoder.key]
    assert (done.images, done.refused) == (15, 1)
    assert {why for why, _ in job.folder.refused().values()} == {"unreadable"}


def test_what_workers_left_is_embedded_here_and_what_they_refused_is_not_tried_again(
    feed: Feed, job: Job, images
):
    Path(images[0][1]).unlink()

    def execute(_store, _dataset, _rows, groups, _track) -> embed.RemoteResult:
        with feed.cut(groups) as found:
            done = partitions.embed(found[0], 1)  # the other three are lost
        return embed.RemoteResult(done, "; in 4 partitions on chance")

    filled = embed.fill(
        feed.store, feed.dataset, [job.encoder], images, feed.part_rows, execute
    )[job.encoder.key]
    assert (filled.images, filled.refused) == (59, 1)
    assert filled.where == "; in 4 partitions on chance"
    assert len(parts(job)) == 4

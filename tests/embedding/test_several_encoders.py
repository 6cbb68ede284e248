"""Several encoders over the same images: read and decoded once, counted one by one."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tl_pipeline.config import catalog
from tl_pipeline.config.specs import EncoderSpec
from tl_pipeline.data.identity import image_id
from tl_pipeline.embedding import engine
from tl_pipeline.encoders import resolution
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.pipeline.stages import embed
from tl_pipeline.pipeline.stages.ingest import Ingest
from tl_pipeline.progress import track
from tl_pipeline.runs.planning import Workspace
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.timings import Clock, Timings

# Two layers of one network, the same layer of another one, and other pixels.
WISHES = (
    "lenet5",
    "lenet5:layer=f6",
    "lenet5:weights=random:1",
    "squeezenet1_1:weights=random:0,resize=64,crop=64",
)


@pytest.fixture
def wanted(store: Store) -> list[Encoder]:
    """The encoders of ``WISHES``."""
    return [resolution.resolve(EncoderSpec.parse(wish), store) for wish in WISHES]


def job(store: Store, encoder: Encoder) -> engine.Job:
    """``encoder`` and a folder for it."""
    folder = EmbeddingFolder(store, encoder.key)
    folder.describe(encoder.model_dump_json())
    return engine.Job(encoder, folder)


def test_every_image_is_read_once_for_all_encoders(
    store: Store, wanted: list[Encoder], folder: Path, tmp_path: Path
):
    files = sorted(folder.rglob("*.jpg"))
    images = [(image_id(file.read_bytes()), str(file)) for file in files]
    reads: Counter[str] = Counter()

    def read(uri: str) -> bytes:
        reads[uri] += 1
        return Path(uri).read_bytes()

    jobs = [job(store, encoder) for encoder in wanted]
    with track("test", len(images)) as progress:
        engine.embed(jobs, images, read, 25, progress)
    assert set(reads.values()) == {1}
    alone = Store.open(tmp_path / "alone")
    for encoder in wanted:
        one = job(alone, encoder)
        with track("test", len(images)) as progress:
            engine.embed([one], images, read, 25, progress)
        ids = [i for i, _ in images]
        expected = one.folder.load(ids).vectors
        found = EmbeddingFolder(store, encoder.key).load(ids).vectors
        np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())


def test_only_what_is_missing_under_an_encoder_is_embedded(
    store: Store, wanted: list[Encoder], folder: Path
):
    dataset = catalog.find(str(folder))
    images = embed.pairs(Ingest(Workspace(store), dataset).run().output.images)
    embed.fill(store, dataset, wanted[:1], images[:20])
    embed.fill(store, dataset, wanted[1:2], images[10:30])
    done = embed.fill(store, dataset, wanted, images)
    assert [done[encoder.key].images for encoder in wanted] == [40, 40, 60, 60]
    for encoder in wanted:
        parts = EmbeddingFolder(store, encoder.key).path.glob("part-*")
        found = EmbeddingFolder(store, encoder.key).load(i for i, _ in images)
        assert found.image_ids == sorted(i for i, _ in images)
        assert parts


def test_each_encoder_has_a_step_of_its_own(
    store: Store, wanted: list[Encoder], folder: Path
):
    at, dataset = Workspace(store), catalog.find(str(folder))
    manifest = Ingest(at, dataset).run().output
    first = embed.Embed(at, dataset, manifest, tuple(wanted[:2])).run()
    second = embed.Embed(at, dataset, manifest, tuple(wanted[:3])).run()
    assert [step.subject for step in second.steps] == [e.label for e in wanted[:3]]
    assert [step.cached for step in second.steps] == [True, True, False]
    assert [step.timings is not None for step in second.steps] == [False, False, True]
    assert first.output.items() <= second.output.items()
    planned = embed.Embed(at, dataset, manifest, tuple(wanted[:3])).plan()
    assert planned.output == second.output


def test_a_plan_says_beforehand_what_each_encoder_stores(
    store: Store, wanted: list[Encoder], folder: Path
):
    at, dataset = Workspace(store), catalog.find(str(folder))
    manifest = Ingest(at, dataset).run().output
    steps = embed.Embed(at, dataset, manifest, tuple(wanted)).plan().steps
    assert [step.width for step in steps] == [120, 84, 120, 512]
    assert [step.estimated_bytes for step in steps] == [
        4 * 60 * width for width in (120, 84, 120, 512)
    ]


def test_shared_seconds_are_split_and_own_seconds_are_not():
    clock = Clock()
    clock.add("decode", 6.0)
    clock.add("forward", 1.0, "a")
    clock.add("forward", 3.0, "b")
    split = clock.split(["a", "b"])
    assert (split["a"].decode, split["b"].decode) == (3.0, 3.0)
    assert (split["a"].forward, split["b"].forward) == (1.0, 3.0)
    assert (split["a"] + split["b"]).decode == 6.0


@pytest.mark.parametrize(
    ("spent", "said"),
    [
        (Timings(forward=9, idle=1, decode=50), "the network"),
        (Timings(forward=4, idle=6, decode=5, read=2), "decoding"),
        (Timings(forward=4, idle=6, decode=2, read=5), "reading"),
        (Timings(forward=4, idle=6, decode=2, read=1, write=9), "writing"),
    ],
)
def test_the_bottleneck_is_what_the_network_waits_for(spent: Timings, said: str):
    assert spent.bottleneck == said

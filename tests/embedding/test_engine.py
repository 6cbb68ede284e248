"""The embedding loop: the same numbers as one big forward, and faults stay single."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tl_pipeline.config.datasets import DigitsSpec
from tl_pipeline.config.specs import EncoderSpec
from tl_pipeline.data import reading
from tl_pipeline.data.identity import image_id
from tl_pipeline.embedding import engine
from tl_pipeline.embedding.devices import CPU
from tl_pipeline.embedding.forward import Forward
from tl_pipeline.embedding.gpu import nvjpeg
from tl_pipeline.embedding.gpu.batch_loader import NvjpegBatchLoader
from tl_pipeline.encoders import loading, resolution
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.errors import WeightsError
from tl_pipeline.inputs.pixels import decode, pixels
from tl_pipeline.inputs.resizing import Resizer
from tl_pipeline.progress import reporting, track
from tl_pipeline.sources.digits import Digits
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder

Images = list[tuple[str, str]]
# The hardware of a GPU rounds a value of a JPEG in ten thousand the other way.
CLOSE = 2e-2 if torch.cuda.is_available() else 1e-5


@pytest.fixture
def lenet(store: Store) -> Encoder:
    """The bundled LeNet-5, 120 wide."""
    return resolution.resolve(EncoderSpec(backbone="lenet5"), store)


@pytest.fixture
def parts(store: Store, lenet: Encoder) -> EmbeddingFolder:
    """Where its embeddings go."""
    folder = EmbeddingFolder(store, lenet.key)
    folder.describe("{}")
    return folder


def read_file(uri: str) -> bytes:
    """The bytes of a file."""
    return Path(uri).read_bytes()


def listed(folder: Path) -> Images:
    """(image_id, uri) of every file in the folder."""
    return [
        (image_id(file.read_bytes()), str(file))
        for file in sorted(folder.rglob("*.jpg"))
    ]


def embed(
    encoder: Encoder,
    images: Images,
    parts: EmbeddingFolder,
    part_rows: int = 1000,
    read: Callable[[str], bytes] = read_file,
) -> engine.EmbedStats:
    """``engine.embed`` with a track."""
    with track("test", total=len(images)) as progress:
        return engine.embed(
            [engine.Job(encoder, parts)], images, read, part_rows, progress
        )[0]


@torch.inference_mode()
def at_once(
    encoder: Encoder, images: Images, read: Callable[[str], bytes] = read_file
) -> np.ndarray:
    """The embeddings of ``images`` by one forward over all of them, sorted by id."""
    how = encoder.preprocess
    batch = np.stack([pixels(read(uri), how) for _, uri in sorted(images)])
    mean, std = (np.array(v, "f4").reshape(1, -1, 1, 1) for v in (how.mean, how.std))
    values = (batch.astype(np.float32) / 255 - mean) / std
    return loading.load(encoder)(torch.from_numpy(values)).numpy()


@pytest.mark.parametrize("spec", ["lenet5", "lenet5:layer=f6,weights=random:3"])
def test_embeddings_equal_one_forward_over_everything(
    store: Store, folder: Path, spec: str
):
    encoder = resolution.resolve(EncoderSpec.parse(spec), store)
    parts = EmbeddingFolder(store, encoder.key)
    parts.describe("{}")
    images = listed(folder)
    done = embed(encoder, images, parts)
    found = parts.load(i for i, _ in images)
    assert found.image_ids == sorted(i for i, _ in images)
    expected = at_once(encoder, images)
    np.testing.assert_allclose(found.vectors, expected, rtol=1e-5, atol=CLOSE)
    assert (done.images, done.refused, done.width) == (60, 0, expected.shape[1])


def test_colour_is_scaled_and_normalised_per_channel(store: Store, folder: Path):
    """LeNet's one channel has mean = std; three different ones show a mixed-up axis."""
    spec = EncoderSpec(backbone="squeezenet1_0", weights="random:0")
    encoder = resolution.resolve(spec, store)
    parts = EmbeddingFolder(store, encoder.key)
    parts.describe("{}")
    images = listed(folder)[28:32]
    embed(encoder, images, parts)
    found = parts.load(i for i, _ in images).vectors
    expected = at_once(encoder, images)
    np.testing.assert_allclose(found, expected, atol=CLOSE * np.abs(expected).max())


def test_parts_are_cut_as_asked_and_keep_their_order(
    lenet: Encoder, parts: EmbeddingFolder
):
    """300 images: more than the batches in flight hold, in shards that fit no batch."""
    digits = Digits(DigitsSpec(name="digits", type="digits"))
    uris = [entry.uri for entry in digits.entries()][:300]
    images = [(image_id(digits.read(uri)), uri) for uri in uris]
    done = embed(lenet, images, parts, part_rows=110, read=digits.read)
    held = [
        pq.read_table(file)["image_id"].to_pylist()
        for file in parts.path.glob("part-*.parquet")
    ]
    ids = [i for i, _ in images]
    assert sorted(held) == sorted([ids[:110], ids[110:220], ids[220:]])
    assert done.images == 300
    np.testing.assert_allclose(
        parts.load(ids).vectors, at_once(lenet, images, digits.read), atol=1e-5
    )


def test_an_undecodable_image_costs_one_row_and_not_its_batch(
    lenet: Encoder, parts: EmbeddingFolder, folder: Path
):
    broken = folder / "china" / "007.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])
    images = listed(folder)
    done = embed(lenet, images, parts)
    bad = image_id(broken.read_bytes())
    assert parts.embedded() == {i for i, _ in images} - {bad}
    assert {i: reason for i, (reason, _) in parts.refused().items()} == {
        bad: "undecodable"
    }
    assert (done.images, done.refused) == (59, 1)
    good = [(i, uri) for i, uri in images if i != bad]
    np.testing.assert_allclose(
        parts.load(i for i, _ in good).vectors, at_once(lenet, good), atol=CLOSE
    )


def test_a_changed_image_is_refused_and_a_vanished_one_too(
    lenet: Encoder, parts: EmbeddingFolder, folder: Path
):
    images = listed(folder)
    changed, vanished, other = (Path(uri) for _, uri in images[:3])
    changed.write_bytes(other.read_bytes())  # a whole image, but not the one promised
    vanished.unlink()
    done = embed(lenet, images, parts)
    reasons = {i: reason for i, (reason, _) in parts.refused().items()}
    assert reasons == {images[0][0]: reading.CHANGED, images[1][0]: reading.UNREADABLE}
    assert parts.embedded() == {i for i, _ in images[2:]}
    assert (done.images, done.refused) == (58, 2)


def test_a_shard_of_broken_images_writes_no_part(
    lenet: Encoder, parts: EmbeddingFolder, folder: Path
):
    for file in folder.rglob("*.jpg"):
        file.write_bytes(b"no image: " + file.name.encode() + bytes(file.parent))
    images = listed(folder)
    done = embed(lenet, images, parts, part_rows=20)
    assert (done.images, done.refused, done.width) == (0, 60, 0)
    assert parts.embedded() == set()
    assert parts.refused().keys() == {i for i, _ in images}


def test_finished_shards_survive_a_fault_in_a_later_one(
    lenet: Encoder, parts: EmbeddingFolder, folder: Path
):
    images = listed(folder)

    def read(uri: str) -> bytes:
        if uri == images[45][1]:
            raise RuntimeError("the plug is pulled")
        return read_file(uri)

    with pytest.raises(RuntimeError, match="plug"):
        embed(lenet, images, parts, part_rows=20, read=read)
    assert parts.embedded() == {i for i, _ in images[:40]}


def test_no_images_are_no_files(lenet: Encoder, parts: EmbeddingFolder):
    done = embed(lenet, [], parts)
    assert (done.images, done.refused) == (0, 0)
    assert not list(parts.path.glob("*.parquet"))


def test_every_image_is_reported_once(
    lenet: Encoder, parts: EmbeddingFolder, folder: Path
):
    class Counter:
        """Adds up what is reported."""

        def __init__(self) -> None:
            self.done = 0

        def start(self, task: str, total: int) -> None: ...

        def finish(self, task: str) -> None: ...

        def advance(self, task: str, done: int) -> None:
            assert task == "test"
            self.done += done

    images = listed(folder)
    Path(images[0][1]).unlink()
    with reporting(counter := Counter()):
        embed(lenet, images, parts, part_rows=25)
    assert counter.done == len(images)


def test_values_that_are_not_finite_are_an_error(
    store: Store, tmp_path: Path, folder: Path, lenet: Encoder
):
    assert lenet.weights.file is not None
    state = loading.load(lenet).state_dict()
    # Finite as they are, and too large after two layers.
    full = {name.rpartition("body.")[2]: 1e20 * value for name, value in state.items()}
    full |= {"f6.weight": torch.zeros(84, 120), "f6.bias": torch.zeros(84)}
    full |= {"output.weight": torch.zeros(26, 84), "output.bias": torch.zeros(26)}
    torch.save(full, tmp_path / "huge.pth")
    spec = EncoderSpec(backbone="lenet5", weights=str(tmp_path / "huge.pth"))
    encoder = resolution.resolve(spec, store)
    parts = EmbeddingFolder(store, encoder.key)
    parts.describe("{}")
    with pytest.raises(ValueError, match=r"huge\.pth gave values that are not finite"):
        embed(encoder, listed(folder), parts)
    assert parts.embedded() == set()


def test_weights_that_cannot_be_loaded_are_an_error_before_any_image_is_read(
    store: Store, tmp_path: Path
):
    file = tmp_path / "weights.pth"
    file.write_bytes(b"none")
    spec = EncoderSpec(backbone="lenet5", weights=str(file))
    encoder = resolution.resolve(spec, store)
    parts = EmbeddingFolder(store, encoder.key)
    reads: list[str] = []
    with pytest.raises(WeightsError):
        embed(encoder, [("a", "a")], parts, read=lambda uri: bytes(reads.append(uri)))
    assert reads == []


class Hardware:
    """As NvjpegDecoder, on the processor."""

    device, decoded = CPU, 0

    def __call__(
        self, some: Sequence[bytes], sizes: Sequence[tuple[int, int]]
    ) -> torch.Tensor:
        self.decoded += len(some)
        height, width = np.max(sizes, axis=0)
        found = torch.zeros((len(some), 3, height, width), dtype=torch.uint8)
        for place, data, (rows, columns) in zip(found, some, sizes, strict=True):
            place[:, :rows, :columns] = decode(data)
        return found


def test_a_gpu_that_decodes_embeds_as_a_processor_does(
    lenet: Encoder,
    folder: Path,
    store: Store,
    parts: EmbeddingFolder,
    monkeypatch: pytest.MonkeyPatch,
):
    """The GPU is a stand-in: a processor that says it is one."""
    images = listed(folder)
    embed(lenet, images, parts)
    expected = parts.load([image_id for image_id, _ in images])

    def load(encoders: Sequence[Encoder], device: torch.device) -> Forward:
        forward = Forward(encoders)
        forward.device = device
        return forward

    monkeypatch.setattr(engine, "devices", lambda: [torch.device("cuda", 0)])
    every = frozenset({(1, 1), (1, 2), (2, 2)})
    monkeypatch.setattr(nvjpeg, "judge", lambda _: (every, ""))
    hardware = Hardware()
    mine = hardware, [Resizer(lenet.preprocess, CPU)]
    monkeypatch.setattr(NvjpegBatchLoader, "_tools", lambda _: mine)
    for name in ("set_device", "set_stream", "Stream"):
        monkeypatch.setattr(torch.cuda, name, lambda _: None)
    there = EmbeddingFolder(store, "there")
    with track("embed", len(images)) as progress:
        (done,) = engine.embed(
            [engine.Job(lenet, there)], images, read_file, 7, progress, load
        )
    assert done.images == hardware.decoded == len(images)
    assert done.timings.read > 0
    found = there.load(expected.image_ids)
    np.testing.assert_allclose(found.vectors, expected.vectors, atol=2e-2)

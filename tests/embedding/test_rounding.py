"""Embeddings kept in float16: half the bytes, the loss told, nothing infinite."""

from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tl_pipeline.config.specs import EncoderSpec
from tl_pipeline.data.identity import image_id
from tl_pipeline.embedding import engine
from tl_pipeline.embedding.forward import Forward
from tl_pipeline.embedding.rounding import rounded
from tl_pipeline.encoders import concat, resolution
from tl_pipeline.encoders.encoder import Encoder, shares_network
from tl_pipeline.maintenance.compaction import compact
from tl_pipeline.progress import track
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder


def encoder(store: Store, text: str = "lenet5:store=float16") -> Encoder:
    return resolution.resolve(EncoderSpec.parse(text), store)


def embed(
    store: Store, encoders: Sequence[Encoder], files: Sequence[Path]
) -> list[engine.EmbedStats]:
    jobs = [engine.Job(one, EmbeddingFolder(store, one.key)) for one in encoders]
    for job in jobs:
        job.folder.describe(job.encoder.model_dump_json())
    images = [(image_id(file.read_bytes()), str(file)) for file in files]
    with track("test", len(images)) as progress:
        read = lambda uri: Path(uri).read_bytes()  # noqa: E731
        return engine.embed(jobs, images, read, 16, progress)


def test_a_float32_encoder_has_the_key_that_it_had(store: Store):
    plain, half = encoder(store, "lenet5"), encoder(store)
    assert encoder(store, "lenet5:store=float32").key == plain.key
    assert plain.key != half.key
    assert "float16" in half.label
    assert shares_network(plain, half)


def test_rounding_tells_what_it_takes_and_what_it_cannot_hold(store: Store):
    rows = np.array([[1 + 2**-11, 0], [0, 0], [65504, 1], [1, -65536]], np.float32)
    found = rounded(encoder(store), rows)
    assert found.vectors.dtype == np.float16
    assert found.fits.tolist() == [True, True, True, False]
    assert found.error == pytest.approx(2**-11 / (1 + 2**-11))
    plain = rounded(encoder(store, "lenet5"), rows)
    assert plain.vectors is rows
    assert (plain.fits.all(), plain.error) == (True, 0)


def test_half_the_bytes_are_kept_and_float32_is_read(store: Store, folder: Path):
    files = sorted(folder.rglob("*.jpg"))[:40]
    plain, half = encoder(store, "lenet5"), encoder(store)
    stats = embed(store, [plain, half], files)
    assert stats[0].rounding == 0
    assert 0 < stats[1].rounding < 2**-11
    one, other = (EmbeddingFolder(store, e.key) for e in (plain, half))
    ids = one.embedded()
    exact, read = one.load(ids), other.load(ids)
    assert read.vectors.dtype == np.float32
    expected = exact.vectors.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(read.vectors, expected)
    compact(store, half.key)
    (part,) = other.parts().whole
    column = pq.read_table(part)["embedding"]
    assert column.type == pa.list_(pa.float16(), 120)
    assert column.nbytes == 40 * 120 * 2
    np.testing.assert_array_equal(other.load(ids).vectors, expected)
    parts = f"{store.root}/embeddings/*/*.parquet"
    rows = duckdb.sql(
        f"SELECT image_id, typeof(embedding), embedding FROM '{parts}' "
        f"WHERE filename LIKE '%{half.key}%' ORDER BY image_id"
    ).fetchall()
    assert {kind for _, kind, _ in rows} == {"FLOAT[]"}
    np.testing.assert_array_equal(np.array([v for *_, v in rows], "f4"), expected)


def test_a_head_is_given_the_same_by_the_store_and_at_once(store: Store):
    half = encoder(store)
    made = np.random.default_rng(0).normal(size=(3, 120)).astype(np.float32)
    kept = rounded(half, made).vectors
    EmbeddingFolder(store, half.key).add(list("abc"), kept)
    at_once = concat.concatenate(half, {half.key: kept}, list("abc"))
    stored = EmbeddingFolder(store, half.key).load("abc")
    assert at_once.vectors.dtype == stored.vectors.dtype == np.float32
    np.testing.assert_array_equal(at_once.vectors, stored.vectors)


def test_an_image_beyond_float16_is_refused_with_the_cure(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    files = sorted(folder.rglob("*.jpg"))[:4]
    compute = Forward.__call__

    def large(self: Forward, *given: object) -> list[np.ndarray]:
        found = compute(self, *given)
        for vectors in found:
            vectors[1, 0] = 70_000
        return found

    monkeypatch.setattr(Forward, "__call__", large)
    plain, half = encoder(store, "lenet5"), encoder(store)
    first, second = embed(store, [plain, half], files)
    assert (first.images, first.refused) == (4, 0)
    assert (second.images, second.refused) == (3, 1)
    folder_of = EmbeddingFolder(store, half.key)
    ((one, (reason, detail)),) = folder_of.refused().items()
    assert one == image_id(files[1].read_bytes())
    assert reason == "beyond float16"
    assert detail == (
        "a value of its embedding is 70,000, and float16 ends at 65,504; leave "
        "store=float16 out"
    )
    assert np.isfinite(folder_of.load(folder_of.embedded()).vectors).all()

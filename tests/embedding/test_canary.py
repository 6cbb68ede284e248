"""Stored embeddings that come out differently now stop a run; others do not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tl_pipeline.config.datasets import DigitsSpec
from tl_pipeline.config.encoder_specs import EncoderSpec
from tl_pipeline.data.identity import image_id
from tl_pipeline.data.reading import ImageRef
from tl_pipeline.embedding import canary, engine
from tl_pipeline.encoders import resolution
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.errors import StoreError
from tl_pipeline.progress import track
from tl_pipeline.sources.digits import Digits
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder

DIGITS = Digits(DigitsSpec(name="digits", type="digits"))
OLD, NEW = slice(0, 40), slice(40, 50)
Embed = Callable[[str, slice], EmbeddingFolder]


@pytest.fixture(scope="module")
def images() -> list[ImageRef]:
    uris = [entry.uri for entry in DIGITS.entries()][:50]
    return [(image_id(DIGITS.read(uri)), uri) for uri in uris]


def encoder(text: str, store: Store) -> Encoder:
    return resolution.resolve(EncoderSpec.parse(text), store)


def embed(
    text: str, folder: EmbeddingFolder, store: Store, images: list[ImageRef], new: slice
) -> list[str]:
    """Embed the ``new`` ones into ``folder``; the uris that were read."""
    read: list[str] = []

    def reading(uri: str) -> bytes:
        read.append(uri)
        return DIGITS.read(uri)

    job = engine.Job(encoder(text, store), folder)
    with track("test", len(images)) as progress:
        engine.embed([job], images[new], reading, 100, progress, known=images)
    return read


@pytest.fixture
def folder(store: Store) -> EmbeddingFolder:
    """That of ``lenet5``, empty."""
    made = EmbeddingFolder(store, encoder("lenet5", store).key)
    made.describe("{}")
    return made


def test_sixteen_stored_images_are_embedded_again_before_new_ones(
    store: Store, folder: EmbeddingFolder, images: list[ImageRef]
):
    first = embed("lenet5", folder, store, images, OLD)
    assert sorted(first) == sorted(uri for _, uri in images[OLD])
    assert folder.made_by() == canary.machine()
    before = folder.load([i for i, _ in images])
    second = embed("lenet5", folder, store, images, NEW)
    known = {uri for _, uri in images[OLD]}
    assert [uri in known for uri in second] == [True] * 16 + [False] * 10
    after = folder.load(before.image_ids)
    assert np.array_equal(after.vectors, before.vectors)
    assert folder.embedded() == {i for i, _ in images}


@pytest.mark.parametrize(
    "other",
    ["lenet5:weights=random:0", "lenet5:interpolation=nearest"],
    ids=["other weights", "other preprocessing"],
)
def test_a_network_that_gives_other_embeddings_adds_none(
    store: Store, folder: EmbeddingFolder, images: list[ImageRef], other: str
):
    embed("lenet5", folder, store, images, OLD)
    folder.note_made_by("torch 1.0, on an abacus")
    parts = sorted(folder.path.iterdir())
    with pytest.raises(StoreError) as raised:
        embed(other, folder, store, images, NEW)
    said = str(raised.value)
    assert "16 images that were embedded before came out " in said
    assert "fp32 allows 2 %" in said
    assert f"Stored by torch 1.0, on an abacus; now {canary.machine()}." in said
    assert f"remove {folder.path}" in said
    assert sorted(folder.path.iterdir()) == parts
    assert folder.made_by() == "torch 1.0, on an abacus"


@pytest.mark.parametrize(("times", "moved"), [(1.01, None), (1.1, "9.1 %")])
def test_rounding_is_allowed(
    store: Store,
    folder: EmbeddingFolder,
    images: list[ImageRef],
    tmp_path: Path,
    times: float,
    moved: str | None,
):
    """Of 1.1 times a vector the vector is 0.1 / 1.1 of its length away."""
    elsewhere = EmbeddingFolder(Store.open(tmp_path / "other"), folder.encoder_key)
    elsewhere.describe("{}")
    embed("lenet5", elsewhere, store, images, OLD)
    made = elsewhere.load([i for i, _ in images])
    folder.add(made.image_ids, made.vectors * np.float32(times))
    if moved is None:
        embed("lenet5", folder, store, images, NEW)
        assert folder.embedded() == {i for i, _ in images}
        return
    folder.note_made_by(canary.machine())
    with pytest.raises(StoreError, match=f"came out {moved} of their") as raised:
        embed("lenet5", folder, store, images, NEW)
    assert f"Versions are the same ({canary.machine()}). See" in str(raised.value)
    assert folder.embedded() == set(made.image_ids)


def test_images_that_changed_or_went_say_nothing(
    store: Store, folder: EmbeddingFolder, images: list[ImageRef]
):
    old = [(f"{number:032x}", uri) for number, (_, uri) in enumerate(images[OLD])]
    folder.add([i for i, _ in old], np.ones((40, 120), np.float32))
    embed("lenet5", folder, store, [*old, *images[NEW]], slice(40, 50))
    assert folder.embedded() == {i for i, _ in [*old, *images[NEW]]}

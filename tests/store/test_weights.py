"""Weights in the store: a model predicts wherever the file of a user has gone."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import REPOSITORY
from tests.exhaustive import more
from tl_pipeline.config.specs import EncoderSpec, HeadSpec, RunSpec
from tl_pipeline.encoders import resolution, weight_store
from tl_pipeline.errors import WeightsError
from tl_pipeline.pipeline import partitions, wiring
from tl_pipeline.registry import index, prediction
from tl_pipeline.registry.model import open_model
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.store import weights
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder

LETTERS = REPOSITORY / "tl_pipeline" / "weights" / "lenet5-letters.safetensors"
At = Callable[[str], Store]

pytestmark = pytest.mark.usefixtures("one_thread", "one_core")


@pytest.fixture(params=["sq.pth", *more("sq.safetensors")])
def mine(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Weights of LeNet-5 in a file of the user."""
    file = tmp_path / "a" / request.param
    file.parent.mkdir()
    if file.suffix == ".pth":
        torch.save(load_file(LETTERS), file)
    else:
        shutil.copyfile(LETTERS, file)
    return file


def run(store: Store, images: Path, file: Path) -> RunRecord:
    spec = RunSpec(
        dataset=str(images),
        backbones=(EncoderSpec(backbone="lenet5", weights=str(file)),),
        heads=(HeadSpec(name="logistic", params={"C": [0.1]}),),
        controls=False,
    )
    return wiring.run(wiring.prepare(spec, store))


def said(store: Store, images: Path) -> list[tuple[str | None, float | None]]:
    """What the champion says of two photos."""
    photos = [images / "china" / "000.jpg", images / "flower" / "001.jpg"]
    model = index.load_model(store, "photos")
    return [(p.label, p.confidence) for p in prediction.predict(model, photos)]


def test_a_champion_predicts_when_its_weights_were_moved_and_overwritten(
    store: Store, folder: Path, mine: Path
):
    run(store, folder, mine)
    before = said(store, folder)
    assert [label for label, _ in before] == ["china", "flower"]
    sha256 = hashlib.sha256(mine.read_bytes()).hexdigest()
    assert (store.root / "weights" / sha256).read_bytes() == mine.read_bytes()

    mine.parent.rename(mine.parent.with_name("b"))
    assert said(store, folder) == before
    mine.parent.mkdir()
    mine.write_bytes(b"something else")
    assert said(store, folder) == before


def test_a_store_that_was_moved_predicts_with_the_weights_that_it_keeps(
    store: Store, folder: Path, mine: Path, tmp_path: Path
):
    run(store, folder, mine)
    before = said(store, folder)
    mine.unlink()
    model = index.load_model(store, "photos").folder
    moved = Path(shutil.move(store.root, tmp_path / "moved"))
    opened = open_model(moved / model.relative_to(store.root))
    photos = [folder / "china" / "000.jpg", folder / "flower" / "001.jpg"]
    found = prediction.predict(opened, photos)
    assert [(p.label, p.confidence) for p in found] == before


def test_a_run_with_the_new_place_of_the_weights_mends_a_store_without_them(
    store: Store, folder: Path, mine: Path
):
    """As stores are that were written before weights were kept."""
    run(store, folder, mine)
    before = said(store, folder)
    shutil.rmtree(store.root / "weights")
    moved = mine.rename(mine.parent.parent / mine.name)
    with pytest.raises(WeightsError, match=rf"no longer at {mine}.*weights=FILE"):
        said(store, folder)
    record = run(store, folder, moved)
    assert all(step.cached for step in record.steps)
    assert said(store, folder) == before


def test_weights_are_kept_once_by_content(store: Store, mine: Path, tmp_path: Path):
    second = shutil.copyfile(mine, tmp_path / "again.pth")
    spec = EncoderSpec(backbone="lenet5", weights=str(mine))
    one = resolution.resolve(spec, store)
    two = resolution.resolve(spec.model_copy(update={"weights": str(second)}), store)
    assert one.key == two.key
    for encoder in (one, two):
        weight_store.keep(encoder, store)
    (kept,) = (store.root / "weights").iterdir()
    assert weight_store.located(two, store).weights.file == kept
    assert list((store.root / ".building").iterdir()) == []


def test_weights_that_changed_since_they_were_resolved_are_not_kept(
    store: Store, mine: Path
):
    encoder = resolution.resolve(
        EncoderSpec(backbone="lenet5", weights=str(mine)), store
    )
    mine.write_bytes(mine.read_bytes() + b"x")
    with pytest.raises(WeightsError, match="changed while it was read"):
        weight_store.keep(encoder, store)
    assert not (store.root / "weights").exists()
    assert list((store.root / ".building").iterdir()) == []


def test_random_weights_are_not_kept(store: Store):
    spec = EncoderSpec(backbone="lenet5", weights="random:1")
    weight_store.keep(resolution.resolve(spec, store), store)
    assert not (store.root / "weights").exists()


def test_weights_of_several_files_are_a_folder(store: Store, tmp_path: Path):
    place = tmp_path / "text"
    (place / "1_Pooling").mkdir(parents=True)
    names = ("config.json", "1_Pooling/config.json", "model.safetensors")
    for name in names:
        (place / name).write_text(name)
    (place / "pytorch_model.bin").write_text("not read")
    weights.keep(store, "0" * 64, place, [place / name for name in names])
    kept = weights.find(store, "0" * 64)
    assert kept is not None
    found = [p.relative_to(kept).as_posix() for p in kept.rglob("*") if p.is_file()]
    assert sorted(found) == sorted(names)


@pytest.mark.usefixtures("object_server")
def test_another_machine_predicts_with_weights_out_of_the_object_store(
    at: At, folder: Path, mine: Path
):
    run(at("A"), folder, mine)
    before = said(at("A"), folder)
    mine.unlink()
    assert said(at("B"), folder) == before


def test_a_worker_that_does_not_see_the_file_takes_that_of_the_store(
    store: Store, folder: Path, mine: Path
):
    from tl_pipeline.data.identity import image_id
    from tl_pipeline.embedding.engine import Job
    from tl_pipeline.pipeline.stages.embed import Group

    spec = RunSpec(
        dataset=str(folder),
        backbones=(EncoderSpec(backbone="lenet5", weights=str(mine)),),
        heads=(HeadSpec(name="logistic", params={"C": [0.1]}),),
        controls=False,
    )
    work = wiring.prepare(spec, store)
    for encoder in work.encoders:
        weight_store.keep(encoder, store)
    mine.unlink()
    (encoder,) = work.encoders
    job = Job(encoder, EmbeddingFolder(store, encoder.key))
    job.folder.describe(encoder.model_dump_json())
    files = sorted(folder.rglob("*.jpg"))[:8]
    images: list[Any] = [(image_id(file.read_bytes()), str(file)) for file in files]
    with partitions.cut(store, work.dataset, 16, [Group([job], images)]) as (one,):
        partitions.embed(one, cores=1)
    found = job.folder.load([image for image, _ in images])
    assert found.vectors.shape == (8, 120)
    assert np.isfinite(found.vectors).all()

"""What a dataset must fulfil is asked again once its images were decoded."""

from pathlib import Path

import pytest

from tl_pipeline.config.datasets import ImageFolderSpec
from tl_pipeline.errors import DatasetError, TooManyRefused
from tl_pipeline.pipeline import work
from tl_pipeline.pipeline.stages.embed import Embed
from tl_pipeline.pipeline.stages.ingest import Ingest
from tl_pipeline.runs.planning import Workspace
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder


def spec(folder: Path = Path("photos"), **more: object) -> ImageFolderSpec:
    return ImageFolderSpec.model_validate({"name": "photos", "path": folder, **more})


@pytest.fixture
def cut(folder: Path) -> Path:
    """60 photos, of which the 30 of china have a whole header and half their data."""
    for file in (folder / "china").iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return folder


def embed(store: Store, dataset: ImageFolderSpec) -> Embed:
    at = Workspace(store)
    manifest = Ingest(at, dataset).run().output
    (encoder,) = work.resolve(work.RunSpec(dataset="-").backbones, store)
    return Embed(at, dataset, manifest, (encoder,))


def test_images_that_cannot_be_decoded_count_against_max_quarantined(
    cut: Path, store: Store
):
    stage = embed(store, spec(cut, max_quarantined=0.4, expect={"classes": 2}))
    with pytest.raises(TooManyRefused) as refused:
        stage.run()
    said = str(refused.value).splitlines()
    assert said[0] == (
        "photos: 30 of 60 inputs were refused (30 undecodable), more than "
        "max_quarantined = 0.4 allows. It holds 1 classes instead of 2. The first of "
        "them:"
    )
    assert [line.split(": ")[1].partition(" ")[0] for line in said[1:]] == [
        "undecodable"
    ] * 5
    # what could be decoded is kept, and a plan refuses at once
    assert len(EmbeddingFolder(store, stage.encoders[0].key).embedded()) == 30
    with pytest.raises(TooManyRefused, match="30 of 60 inputs"):
        stage.plan()


def test_expected_classes_are_counted_after_decoding(cut: Path, store: Store):
    stage = embed(store, spec(cut, max_quarantined=1, expect={"classes": 2}))
    with pytest.raises(DatasetError, match="holds 1 classes instead of 2") as wrong:
        stage.run()
    assert not isinstance(wrong.value, TooManyRefused)

"""What a dataset must fulfil is asked again once its images were decoded."""

from pathlib import Path

import pytest

from tests.runs.made import record
from tl_pipeline import query
from tl_pipeline.config.datasets import ImageFolderSpec
from tl_pipeline.errors import DatasetError, TooManyRefused
from tl_pipeline.pipeline import wiring, work
from tl_pipeline.pipeline.stages.embed import Embed
from tl_pipeline.pipeline.stages.ingest import Ingest
from tl_pipeline.runs import records
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


ASKED = (
    "SELECT dataset, parse_filename(uri) AS file, parse_path(uri)[-2] AS label, "
    "reason, detail, encoder FROM quarantine ORDER BY uri"
)


def refuse(folder: Path, store: Store, **more: object) -> str:
    """What is said by a run on ``folder`` that is refused."""
    asked = work.RunSpec(dataset="photos", controls=False)
    (encoder,) = work.resolve(asked.backbones, store)
    wanted = work.Work(asked, Workspace(store), spec(folder, **more), [], encoder)
    with pytest.raises(DatasetError) as error:
        wiring.run(wanted)
    return str(error.value).partition("\n")[0]


def test_what_a_refused_first_run_could_not_decode_is_in_the_quarantine(
    cut: Path, store: Store
):
    assert refuse(cut, store, max_quarantined=0.4).startswith("photos: 30 of 60 inputs")
    found = query.ask(store, ASKED).to_pylist()
    assert [row["file"] for row in found] == [f"{n:03}.jpg" for n in range(30)]
    assert {(row["dataset"], row["label"], row["reason"]) for row in found} == {
        ("photos", "china", "undecodable")
    }
    cut_in_header = {"003.jpg", "023.jpg"}  # which ingest sees
    for row in found:
        seen = row["file"] in cut_in_header
        assert row["encoder"] == (None if seen else "lenet5/c5 LETTERS")
        assert ("Truncated File Read" if seen else "is truncated") in row["detail"]
    assert query.ask(store, "FROM images").num_rows == 0  # of finished runs


def test_what_a_refused_first_run_took_for_no_images_is_in_the_quarantine(
    folder: Path, store: Store
):
    for file in folder.glob("*/*"):
        file.write_text("<html>")
    said = refuse(folder, store)
    assert said.startswith("photos: none of 60 inputs can be used (60 not an image)")
    found = query.ask(store, ASKED).to_pylist()
    assert [(row["file"], row["label"]) for row in found] == [
        (f"{n:03}.jpg", label) for label in ("china", "flower") for n in range(30)
    ]
    assert {(row["reason"], row["encoder"]) for row in found} == {
        ("not an image", None)
    }
    query.build(store)  # by another dataset's run
    assert query.ask(store, ASKED).num_rows == 60


def test_a_later_run_tells_its_own_quarantine(cut: Path, store: Store):
    """Refused after a finished one, and finished after a refused one."""
    whole = {file: file.read_bytes() for file in (cut / "flower").iterdir()}
    finished = records.new_run_id()
    assert refuse(cut, store, max_quarantined=0.4)
    for file in whole:
        file.write_text("no image")
    assert refuse(cut, store, max_quarantined=0.4)
    counted = "SELECT reason, count(*) AS n FROM quarantine GROUP BY ALL ORDER BY ALL"
    both = [{"reason": "not an image", "n": 30}, {"reason": "undecodable", "n": 30}]
    assert query.ask(store, counted).to_pylist() == both
    (key,) = records.last_manifests(store, []).values()
    made = record(finished).model_copy(update={"manifest": "f" * 32})
    records.write(store, made)
    assert records.last_manifests(store, [made]) == {"photos": key}
    later = made.model_copy(update={"run_id": records.new_run_id()})
    assert records.last_manifests(store, [later]) == {"photos": "f" * 32}

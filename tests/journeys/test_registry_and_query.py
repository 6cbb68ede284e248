"""The registry's champion."""

import shutil
import warnings
from pathlib import Path

import pytest

from tl_pipeline.config.specs import EncoderSpec, HeadSpec, RunSpec
from tl_pipeline.errors import EncoderMismatch, InvalidSpec, UnknownName
from tl_pipeline.pipeline import wiring
from tl_pipeline.registry import connection, index
from tl_pipeline.registry.model import open_model
from tl_pipeline.registry.prediction import predict
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.store.artifacts import Store

POOR = "mlp:hidden=1,max_epochs=1,learning_rate=1e-9"


def run(folder: Path, store: Store, head: str) -> RunRecord:
    spec = RunSpec(
        dataset=str(folder),
        backbones=(EncoderSpec(backbone="lenet5"),),
        heads=(HeadSpec.parse(head),),
        controls=False,
    )
    return wiring.run(wiring.prepare(spec, store))


def champion(store: Store) -> int:
    (row,) = [m for m in index.models(store) if "champion" in m["aliases"]]
    return row["version"]


def test_a_worse_model_is_registered_but_does_not_become_champion(
    folder: Path, store: Store
):
    """Judged on the held-out images that both were scored on."""
    good = run(folder, store, "logistic:C=1")
    worse = run(folder, store, POOR)
    assert good.best.held_out.value > worse.best.held_out.value
    assert (worse.registered.version, worse.registered.champion) == (2, False)
    assert "held-out images in common with version 1" in worse.registered.reason
    assert champion(store) == 1


def test_an_equal_model_takes_over(folder: Path, store: Store):
    """Ties go to the newer: it has seen today's images."""
    run(folder, store, "logistic:C=1")
    again = run(folder, store, "logistic:C=1.0001")
    assert again.registered.champion
    assert champion(store) == 2


@pytest.fixture(scope="module")
def still(
    sixty_photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, RunRecord]:
    """A store of one run with controls, to be read, and its record."""
    store = Store.open(tmp_path_factory.mktemp("still") / "store")
    spec = RunSpec(dataset=str(sixty_photos), heads=(HeadSpec.parse("logistic:C=1"),))
    return store, wiring.run(wiring.prepare(spec, store))


def test_mlflow_finds_the_whole_folder_by_alias(still: tuple[Store, RunRecord]):
    store, record = still
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own
        from mlflow import MlflowClient

        client = MlflowClient(connection.uri(store), connection.uri(store))
        version = client.get_model_version_by_alias("photos", "champion")
    kept = store.root / "models" / record.registered.model
    place = Path(version.source.removeprefix("file://"))
    assert place.is_relative_to(store.root)
    names = {file.name for file in place.iterdir()}
    assert names == {
        "MLmodel",
        "model.json",
        "head.json",
        "head.safetensors",
        "calibration.json",
        "provenance.json",
    }
    assert all((place / name).samefile(kept / name) for name in names)


def test_a_model_folder_works_where_it_was_moved_to(
    still: tuple[Store, RunRecord], sixty_photos: Path, tmp_path: Path
):
    store, record = still
    moved = tmp_path / "elsewhere"
    shutil.copytree(store.root / "models" / record.registered.model, moved)
    model = open_model(moved)
    images = sorted(sixty_photos.glob("flower/*"))[:5]
    labels = [found.label for found in predict(model, images)]
    assert labels.count("flower") >= 4


def test_a_model_refuses_embeddings_of_another_encoder(
    still: tuple[Store, RunRecord],
):
    """Here: those of its untrained twin."""
    store, _ = still
    (member,) = index.load_model(store, "photos").members
    from tl_pipeline.store.embeddings import EmbeddingFolder

    folders = (store.root / "embeddings").iterdir()
    stranger = next(
        f.name.partition("=")[2] for f in folders if member.encoder.key not in f.name
    )
    vectors = EmbeddingFolder(store, stranger)
    with pytest.raises(EncoderMismatch, match=stranger):
        member.head.predict_proba(vectors.load(vectors.embedded()))


def test_unknown_models_and_aliases_name_the_choices(
    store: Store, still: tuple[Store, RunRecord]
):
    with pytest.raises(UnknownName, match="Known: none"):
        index.load_model(store, "photos")
    with pytest.raises(UnknownName, match="Did you mean 'champion'"):
        index.load_model(still[0], "photos", "champions")


def test_a_control_alone_is_refused(folder: Path, store: Store):
    with pytest.raises(InvalidSpec, match="majority is a control"):
        run(folder, store, "majority")

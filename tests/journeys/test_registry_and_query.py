"""The registry's champion, and the catalogue that SQL asks."""

import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from PIL import Image

from tests.conftest import REPOSITORY
from tl_pipeline import query
from tl_pipeline.config.specs import EncoderSpec, HeadSpec, RunSpec
from tl_pipeline.errors import EncoderMismatch, InvalidSpec, StoreError, UnknownName
from tl_pipeline.pipeline import wiring
from tl_pipeline.registry import index
from tl_pipeline.registry.mlflow_index import database
from tl_pipeline.registry.prediction import predict
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.store.artifacts import Store

POOR = "mlp:hidden=1,max_epochs=1,learning_rate=1e-9"


def run(folder: Path, store: Store, head: str, *, layer: str = "c5") -> RunRecord:
    spec = RunSpec(
        dataset=str(folder),
        backbones=(EncoderSpec(backbone="lenet5", layer=layer),),
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
    """Judged on the validation images that both were scored on."""
    good = run(folder, store, "logistic:C=1")
    worse = run(folder, store, POOR)
    assert good.best.validation.value > worse.best.validation.value
    assert (worse.registered.version, worse.registered.champion) == (2, False)
    assert "validation images in common with version 1" in worse.registered.reason
    assert champion(store) == 1


def test_an_equal_model_takes_over(folder: Path, store: Store):
    """Ties go to the newer: it has seen today's images."""
    run(folder, store, "logistic:C=1")
    again = run(folder, store, "logistic:C=1.0001")
    assert again.registered.champion
    assert champion(store) == 2


def test_a_deleted_database_is_made_again_from_the_folders(folder: Path, store: Store):
    run(folder, store, "logistic:C=1")
    (store.root / "mlflow.db").unlink()
    # in a process of its own: MLflow keeps a database open as long as it lives
    again = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "tl_pipeline.cli",
                "run",
                folder,
                "--no-controls",
            ),
            *("--head", "logistic:C=1", "--store", store.root),
            *("--runner", "direct", "--json"),
        ],
        capture_output=True,
        check=True,
        cwd=REPOSITORY,
    )
    record = RunRecord.model_validate_json(again.stdout)
    assert [s.stage for s in record.steps if not s.cached] == ["register"]
    assert record.registered.champion


def test_mlflow_finds_the_whole_folder_by_alias(folder: Path, store: Store):
    record = run(folder, store, "logistic:C=1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own
        from mlflow import MlflowClient

        client = MlflowClient(database(store), database(store))
        version = client.get_model_version_by_alias("photos", "champion")
    place = store.root / "models" / record.registered.model
    assert version.source == place.as_uri()
    names = {file.name for file in place.iterdir()}
    assert names == {
        "model.json",
        "head.json",
        "head.skops",
        "calibration.json",
        "provenance.json",
    }


def test_a_model_folder_works_where_it_was_moved_to(
    folder: Path, store: Store, tmp_path: Path
):
    record = run(folder, store, "logistic:C=1")
    moved = tmp_path / "elsewhere"
    shutil.copytree(store.root / "models" / record.registered.model, moved)
    model = index.open_model(moved)
    images = sorted(folder.glob("flower/*"))[:5]
    labels = [found.label for found in predict(model, images)]
    assert labels.count("flower") >= 4


def test_a_model_refuses_embeddings_of_another_encoder(folder: Path, store: Store):
    run(folder, store, "logistic:C=1")
    run(folder, store, "logistic:C=1", layer="f6")
    (member,) = index.load_model(store, "photos").members
    from tl_pipeline.store.embeddings import EmbeddingFolder

    folders = (store.root / "embeddings").iterdir()
    stranger = next(
        f.name.partition("=")[2] for f in folders if member.encoder.key not in f.name
    )
    vectors = EmbeddingFolder(store, stranger)
    with pytest.raises(EncoderMismatch, match=stranger):
        member.head.predict_proba(vectors.load(vectors.embedded()))


def test_unknown_models_and_aliases_name_the_choices(folder: Path, store: Store):
    with pytest.raises(UnknownName, match="Known: none"):
        index.load_model(store, "photos")
    run(folder, store, "logistic:C=1")
    with pytest.raises(UnknownName, match="Did you mean 'champion'"):
        index.load_model(store, "photos", "champions")


def test_catalogue_is_replaced_under_a_reader(folder: Path, store: Store):
    """A reader keeps its snapshot; the next one sees the new run."""
    run(folder, store, "logistic:C=1")
    with query.connect(store) as reader:
        run(folder, store, POOR)
        assert reader.sql("SELECT count(*) FROM runs").fetchall() == [(1,)]
    assert query.ask(store, "SELECT count(*) AS n FROM runs").to_pylist() == [{"n": 2}]
    assert not list(store.root.glob(".catalog*"))


def test_views_agree_with_the_tables_they_come_from(
    folder: Path, store: Store, crops: Callable[[str, int], Image.Image]
):
    run(folder, store, "logistic:C=0.1/1")
    crops("china", 300).save(folder / "china" / "new.png")
    record = run(folder, store, "logistic:C=0.1/1")
    said = query.ask(
        store,
        "SELECT (SELECT count(*) FROM images) AS images, "
        "(SELECT count(*) FROM embeddings JOIN images USING (image_id)) AS embedded, "
        "(SELECT count(DISTINCT run_id) FROM metrics) AS runs, "
        "(SELECT count(*) FROM predictions WHERE split = 'test') AS tested",
    ).to_pylist()[0]
    assert said == {
        "images": record.images,
        "embedded": record.images,
        "runs": 2,
        "tested": record.best.test_images,
    }
    comments = query.ask(store, query.CONTENTS).to_pylist()
    assert {"images", "embeddings", "predictions", "metrics", "models"} <= {
        row["name"] for row in comments
    }
    assert all(row["comment"].startswith("One row per") for row in comments)


def test_an_older_storage_format_is_written(folder: Path, store: Store):
    """So that a DuckDB on an analyst's laptop need not be the newest."""
    run(folder, store, "logistic:C=1")
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{store.root / 'catalog.duckdb'}' AS c (READ_ONLY)")
        tags = connection.sql(
            "SELECT tags FROM duckdb_databases() WHERE database_name = 'c'"
        ).fetchall()
    assert "v1.0.0" in str(tags)


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELEC 1", "syntax error"),
        ("FROM nowhere", "nowhere does not exist"),
        ("CREATE TABLE t AS SELECT 1", "read-only"),
        ("SELECT 'x'::INT", "Could not convert"),
        ("-- only a remark", "gives no rows"),
    ],
)
def test_wrong_queries_are_one_clear_error(
    folder: Path, store: Store, sql: str, said: str
):
    run(folder, store, POOR)
    with pytest.raises(InvalidSpec, match=said):
        query.ask(store, sql)


def test_no_run_no_catalogue(store: Store):
    with pytest.raises(StoreError, match="`tl run DATASET` builds it"):
        query.ask(store, "SELECT 1")


def test_a_control_alone_is_refused(folder: Path, store: Store):
    with pytest.raises(InvalidSpec, match="majority is a control"):
        run(folder, store, "majority")

"""``tl predict`` of a folder or dataset, as somebody types it."""

import json
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from PIL import Image

from tests.command_line import Tl, in_this_process


@pytest.fixture
def tl(
    tmp_path: Path,
    folder: Path,
    crops: Callable[[str, int], Image.Image],
    monkeypatch: pytest.MonkeyPatch,
) -> Tl:
    """``tl`` where there is a model of ``photos``, and a folder ``incoming``."""
    typed = in_this_process(tmp_path, monkeypatch)
    assert typed("run", folder, "--head", "logistic:C=1", "--runner", "direct")
    (tmp_path / "incoming").mkdir()
    for number in range(100, 104):
        crops("flower", number).save(tmp_path / "incoming" / f"{number}.jpg")
    return typed


@pytest.mark.usefixtures("catalogue")
def test_a_folder_is_predicted_and_files_are_answered(tl: Tl, tmp_path: Path):
    (tmp_path / "incoming" / "bad.jpg").write_bytes(b"no image")
    refused = tl("predict", "photos", "incoming")
    assert refused.returncode == 3
    assert "TooManyRefused: incoming: 1 of 5 inputs were refused" in refused.stderr
    (tmp_path / "incoming" / "bad.jpg").unlink()
    planned = tl("predict", "photos", "incoming", "--plan").stdout
    assert "4 of 4 images are not predicted yet" in planned
    assert "4 of 5 stages would run" in planned
    done = tl("predict", "photos", "incoming", "--output", "said.jsonl")
    assert "incoming: 4 of 4 images predicted now, by photos version 1" in done.stdout
    lines = (tmp_path / "said.jsonl").read_text().splitlines()
    labels = [json.loads(line)["label"] for line in lines]
    assert labels.count("flower") >= 3
    again = json.loads(tl("predict", "photos", "incoming", "--json").stdout)
    assert (again["new"], again["images"]) == (0, 4)
    files = sorted((tmp_path / "incoming").iterdir())
    single = json.loads(tl("predict", "photos", *files, "--json").stdout)
    assert [row["label"] for row in single] == labels
    file = tmp_path / "tl_store" / "catalog.duckdb"
    with duckdb.connect(file, read_only=True) as catalogue:
        sql = "SELECT count(*) FROM batch_predictions"
        assert catalogue.execute(sql).fetchall() == [(4,)]


def test_what_is_meant_is_asked_where_it_is_not_clear(tl: Tl, folder: Path):
    def said(*words: object) -> str:
        done = tl(*words)
        assert done.returncode == 2
        return done.stderr

    Path("data_catalog.yaml").write_text("version: 1\ndatasets: {}\n")
    photo = folder / "china" / "000.jpg"
    assert "unknown dataset 'incomming'" in said("predict", "photos", "incomming")
    assert "one folder or dataset" in said("predict", "photos", "incoming", photo)
    assert "are of a dataset or folder" in said("predict", "photos", photo, "--plan")
    assert "Did you mean 'photos'" in said("predict", "fotos", "incoming")
    assert "version of model" in said("predict", "photos", "incoming", "--alias", "7")


def test_a_dataset_without_labels_is_for_predict_alone(tl: Tl, tmp_path: Path):
    (tmp_path / "data_catalog.yaml").write_text(
        "version: 1\ndatasets:\n"
        "  new: {type: image_folder, path: incoming, labels: none}\n"
    )
    refused = tl("run", "new", "--runner", "direct")
    assert refused.returncode == 2
    assert refused.stderr == (
        "InvalidSpec: new has no labels (labels: none), so nothing can be learned "
        "from it. To predict its images: tl predict MODEL new\n"
    )
    assert json.loads(tl("predict", "photos", "new", "--json").stdout)["new"] == 4
    shown = json.loads(tl("catalog", "show", "new", "--json").stdout)
    assert [(row["class"], row["all"]) for row in shown["classes"]] == [
        ("unlabelled", 4)
    ]

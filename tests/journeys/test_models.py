"""Registered models as people use them: listed, chosen, rebuilt, loaded by MLflow."""

import base64
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from tests.command_line import Tl, in_this_process
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.registry import connection
from tl_pipeline.store.artifacts import Store

HEADS = ("logistic:C=1", "ridge")
ENTRY = """
version: 1
datasets:
  photos:
    type: image_folder
    path: photos
    near_duplicates: {action: ignore}
"""


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, crops: Callable[[str, int], Image.Image]
) -> Path:
    """A folder with photos and a store of two versions of one model."""
    place = tmp_path_factory.mktemp("models")
    (place / "data_catalog.yaml").write_text(ENTRY)
    for label in ("china", "flower"):
        (place / "photos" / label).mkdir(parents=True)
        for number in range(30):
            crops(label, number).save(place / "photos" / label / f"{number:03d}.jpg")
    with pytest.MonkeyPatch.context() as monkeypatch:
        tl = in_this_process(place, monkeypatch)
        for head in HEADS:
            more = ("--no-controls", "--runner", "direct")
            done = tl("run", "photos", "--head", head, *more)
            assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return shutil.copytree(made, tmp_path / "copy")


@pytest.fixture
def tl(place: Path, monkeypatch: pytest.MonkeyPatch) -> Tl:
    return in_this_process(place, monkeypatch)


def shown(printed: str) -> dict[int, tuple[str, str]]:
    """Version -> head and aliases, of a table of models as it is printed."""
    rows = [line.split() for line in printed.splitlines() if line.startswith("photos")]
    return {
        int(row[1]): (
            next(word for word in row if word.partition("(")[0] in ONLY),
            "champion" if "champion" in row else "",
        )
        for row in rows
    }


ONLY = ("logistic", "ridge")


def versions(tl: Tl) -> dict[int, tuple[str, list[str], float]]:
    """Version -> head, aliases and accuracy on test, as a script reads them."""
    done = tl("models", "--json")
    assert done.returncode == 0, done.stderr
    return {
        row["version"]: (row["head"], row["aliases"], row["test_accuracy"])
        for row in json.loads(done.stdout)
    }


def champion(tl: Tl) -> int:
    (number,) = [n for n, row in versions(tl).items() if row[1] == ["champion"]]
    return number


# tl models, promote, rollback, rebuild


def test_models_lists_each_version_with_its_head_and_the_champion(tl: Tl):
    found = versions(tl)
    assert [found[n][0].partition("(")[0] for n in (1, 2)] == list(ONLY)
    assert list(found) == [2, 1]  # the newest first
    first = champion(tl)
    done = tl("models")
    assert (done.returncode, done.stderr) == (0, "")
    heads = {n: (name, "") for n, name in zip((1, 2), ONLY, strict=True)}
    said = {
        n: (row[0].partition("(")[0], row[1]) for n, row in shown(done.stdout).items()
    }
    assert said == heads | {first: (heads[first][0], "champion")}
    assert done.stdout.rstrip().endswith("tl_store/mlflow.db")


def test_promote_makes_another_champion_and_rollback_undoes_it(tl: Tl, place: Path):
    before = champion(tl)
    other = next(n for n in (1, 2) if n != before)
    done = tl("models", "promote", "photos", other)
    assert (done.returncode, done.stderr) == (0, "")
    assert {n for n, row in shown(done.stdout).items() if row[1]} == {other}
    assert champion(tl) == other
    photo = place / "photos" / "china" / "000.jpg"
    assert tl("predict", "photos", photo).returncode == 0
    done = tl("models", "rollback", "photos", "--reason", "worse on Mondays")
    assert (done.returncode, done.stderr) == (0, "")
    assert {n for n, row in shown(done.stdout).items() if row[1]} == {before}
    assert champion(tl) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("promote", "photos", 9), "9"),
        (("promote", "photo", 1), "Did you mean 'photos'?"),
        (("rollback", "photo"), "Did you mean 'photos'?"),
    ],
)
def test_what_is_not_there_cannot_be_champion(tl: Tl, words: tuple[object], said: str):
    before = versions(tl)
    done = tl("models", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Known: " in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert versions(tl) == before


def test_rebuild_gives_the_same_table_as_before_the_loss(tl: Tl, place: Path):
    other = next(n for n in (1, 2) if n != champion(tl))
    assert tl("models", "promote", "photos", other).returncode == 0
    before, table = versions(tl), shown(tl("models").stdout)
    (place / "tl_store" / "mlflow.db").unlink()
    done = tl("models", "rebuild")
    assert (done.returncode, done.stderr) == (0, "")
    assert shown(done.stdout) == table
    assert versions(tl) == before
    assert champion(tl) == other


# mlflow.pyfunc


@pytest.fixture(scope="module")
def model(made: Path) -> Any:
    """What MLflow loads under the champion's name."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as monkeypatch:
        warnings.simplefilter("ignore")  # MLflow's own
        from mlflow import pyfunc

        uri = connection.uri(Store(made / "tl_store"))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", uri)
        return pyfunc.load_model("models:/photos@champion")


@pytest.fixture
def photos(made: Path) -> list[Path]:
    return sorted(made.glob("photos/*/*.jpg"))[::6]


def data_url(file: Path) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(file.read_bytes()).decode()}"


@pytest.mark.parametrize(
    "how", [str, Path, Path.read_bytes, data_url], ids=lambda how: how.__name__
)
def test_mlflow_says_what_tl_predict_says(
    model: Any,
    made: Path,
    photos: list[Path],
    how: Callable[[Path], Any],
    monkeypatch: pytest.MonkeyPatch,
):
    tl = in_this_process(made, monkeypatch)
    done = tl("predict", "photos", *photos, "--json")
    assert done.returncode == 0, done.stderr
    expected = json.loads(done.stdout)
    index = [f"row {n}" for n in range(len(photos))]
    found = model.predict(pd.DataFrame({"image": [how(p) for p in photos]}, index))
    assert list(found.index) == index
    assert list(found.columns) == [name for name in expected[0] if name != "file"]
    for row, said in zip(found.to_dict("records"), expected, strict=True):
        assert row.pop("confidence") == pytest.approx(said["confidence"], abs=1e-6)
        assert row == {n: said[n] for n in said if n not in ("file", "confidence")}
    assert set(found["label"]) == {"china", "flower"}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "nan"),  # as MLflow hands it on
        (float("nan"), "nan"),
        (pd.NA, "nan"),
        (7, "7"),
        ("", ""),
        ("data:x,abc", "data:x,abc"),
        ("data:image/png;base64,?", "data:image/png;base64,?"),
    ],
)
def test_what_is_no_input_is_named_with_its_row(
    model: Any, photos: list[Path], value: Any, said: str
):
    frame = pd.DataFrame({"image": [str(photos[0]), value]}, index=["a", "b"])
    with pytest.raises(InvalidSpec) as error:
        model.predict(frame)
    assert str(error.value) == (
        f"row b: {said!r} is no input: give one column of file names, of bytes, "
        "or of data URLs such as data:image/jpeg;base64,..."
    )


def test_a_file_that_is_gone_and_bytes_of_no_image_get_a_reason_and_no_label(
    model: Any, photos: list[Path], tmp_path: Path
):
    gone = tmp_path / "gone.jpg"
    found = model.predict(pd.DataFrame({"image": [str(gone), str(photos[0])]}))
    assert list(found["label"]) == [None, "china"]
    assert found["refused"][0] == f"[Errno 2] No such file or directory: '{gone}'"
    assert found["refused"][1] is None
    (row,) = model.predict(pd.DataFrame({"image": [b"<html>"]})).to_dict("records")
    assert row["label"] is None
    assert row["confidence"] is None
    assert "HTML" in row["refused"]


def test_no_rows_give_no_rows(model: Any):
    found = model.predict(pd.DataFrame({"image": []}))
    names = ["label", "confidence", "labels", "accepted", "refused"]
    assert (len(found), list(found.columns)) == (0, names)

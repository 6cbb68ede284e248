"""``tl why`` and ``tl runs diff``: what was made of what, and how two nights differ."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.command_line import Tl, in_this_process
from tl_pipeline.runs import records
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.store.artifacts import Store

RUN = ("run", "photos", "--runner", "direct")
HEADS = ("--head", "logistic:C=0.01/0.1", "--head", "ridge:alpha=10")


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory,
    sixty_photos: Path,
    crops: Callable[[str, int], Image.Image],
) -> Path:
    """A store after three nights: new, changed images and a head less, nothing new."""
    place = tmp_path_factory.mktemp("nights")
    photos = shutil.copytree(sixty_photos, place / "photos")
    with pytest.MonkeyPatch.context() as patch:
        tl = in_this_process(place, patch)
        assert tl(*RUN, *HEADS, "--no-controls").returncode == 0
        for number in (100, 101):
            crops("china", number).save(photos / "china" / f"{number}.png")
        one, other = sorted((photos / "china").glob("00*"))[:2]
        one.unlink()
        other.rename(photos / "flower" / f"moved{other.suffix}")
        for _ in range(2):
            assert tl(*RUN, *HEADS[:2], "--no-controls").returncode == 0
    return place


@pytest.fixture
def tl(place: Path, monkeypatch: pytest.MonkeyPatch) -> Tl:
    return in_this_process(place, monkeypatch)


@pytest.fixture(scope="module")
def runs(place: Path) -> list[RunRecord]:
    return records.every(Store.open(place / "tl_store"))


def predicted(place: Path, record: RunRecord) -> dict[str, tuple[str, str]]:
    """Test image -> its label and what the best head says, read by nobody's code."""
    folder = place / "tl_store" / "evaluations" / record.best.evaluation
    rows = pq.read_table(folder / "predictions.parquet").to_pylist()
    return {
        row["image_id"]: (row["label"], row["predicted"])
        for row in rows
        if row["split"] == "test"
    }


def test_two_nights_differ_in_what_was_changed(tl: Tl, place: Path, runs: list[Any]):
    first, second, _ = runs
    found = json.loads(tl("runs", "diff", first.run_id, second.run_id, "--json").stdout)
    assert (found["before"], found["after"]) == (first.run_id, second.run_id)
    was, now = ([h.short() for h in run.spec.heads] for run in (first, second))
    assert found["settings"] == [f"heads: {', '.join(was)} -> {now[0]}"]
    assert (found["images_before"], found["images_after"]) == (60, 61)
    how = [one["change"] for one in found["changes"] if one["change"] != "moved"]
    assert sorted(how) == ["entered", "entered", "left", "relabelled"]
    (relabelled,) = (o for o in found["changes"] if o["change"] == "relabelled")
    assert (relabelled["before"], relabelled["after"]) == ("china", "flower")
    assert Path(relabelled["uri"]).stem == "moved"
    assert found["encoders_new"] == found["encoders_gone"] == []
    heads = [(one["head_before"], one["head_after"]) for one in found["scores"]]
    assert sorted(heads, key=str) == sorted(
        [
            (first_head(first, "logistic"), first_head(second, "logistic")),
            (first_head(first, "ridge"), None),
        ],
        key=str,
    )
    was, now = predicted(place, first), predicted(place, second)
    both = was.keys() & now.keys()
    flips = {i: (was[i][1], now[i][1]) for i in both if was[i][1] != now[i][1]}
    told = {one["image_id"]: (one["before"], one["after"]) for one in found["flips"]}
    assert (found["compared"], told) == (len(both), flips)
    right = [(was[i][1] == now[i][0], now[i][1] == now[i][0]) for i in both]
    assert found["won"] == right.count((False, True))
    assert found["lost"] == right.count((True, False))
    (logistic,) = (one for one in found["scores"] if one["head_after"])
    if first.best.head.startswith("logistic"):
        change = (found["won"] - found["lost"]) / len(both)
        assert logistic["difference"]["value"] == pytest.approx(change)


def first_head(record: RunRecord, name: str) -> str:
    return next(r.head for r in record.results if r.head.startswith(name))


def test_a_night_with_nothing_new_differs_in_nothing(tl: Tl, runs: list[RunRecord]):
    """The last two runs of the dataset are compared where none is named."""
    said = tl("runs", "diff").stdout
    assert said.startswith(f"{runs[1].run_id} -> {runs[2].run_id}: photos\n")
    assert "images    61, unchanged" in said
    common = runs[2].best.test_images
    assert f"0 of {common} test images in common flipped" in said
    found = json.loads(tl("runs", "diff", "--json").stdout)
    assert found["changes"] == found["flips"] == found["settings"] == []
    assert [(s["same"], s["difference"]) for s in found["scores"]] == [(True, None)]


def test_a_champion_is_traced_to_the_run_and_the_inputs_that_made_it(
    tl: Tl, runs: list[RunRecord]
):
    """The last run used it and had made none of it."""
    _, second, third = runs
    assert third.registered.champion
    (found,) = json.loads(tl("why", "photos@champion", "--json").stdout)
    number = third.registered.version
    assert json.loads(tl("why", f"photos/{number}", "--json").stdout) == [found]
    assert found["key"] == third.registered.model
    assert (found["run"], found["used_by"]) == (second.run_id, third.run_id)
    (evaluated,) = found["made_of"]
    assert evaluated["key"] == found["inputs"]["evaluation"] == second.best.evaluation
    below = {one["stage"]: one for one in evaluated["made_of"]}
    assert below.keys() == {"embed", "train", "audit"}
    assert below["train"]["key"] == evaluated["inputs"]["heads"]
    assert below["embed"]["reason"] == "2 of 61 images are new"
    assert below["embed"]["params"]["weights"]["name"] == "LETTERS"
    (ingested,) = below["audit"]["made_of"]
    assert ingested["reason"] == "2 added, 1 removed, 1 relabelled"


@pytest.mark.parametrize(
    ("subject", "stages"),
    [
        ("photos", ["register"]),
        ("lenet5", ["embed"]),
        ("lenet5/c5 LETTERS", ["embed"]),
        ("logistic", ["evaluate"]),
        ("ridge on lenet5", ["evaluate"]),  # the last run that had it was the first
    ],
)
def test_a_subject_is_called_as_in_tables(tl: Tl, subject: str, stages: list[str]):
    found = json.loads(tl("why", subject, "--json").stdout)
    assert [one["stage"] for one in found] == stages


def test_a_key_is_known_by_its_beginning(tl: Tl, runs: list[RunRecord]):
    key = runs[0].results[0].evaluation
    (found,) = json.loads(tl("why", key[:8], "--json").stdout)
    assert (found["key"], found["run"]) == (key, runs[0].run_id)
    said = tl("why", key[:8]).stdout
    assert said.splitlines()[1].split()[:2] == ["evaluate", found["subject"].split()[0]]


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("why", "photo"), "unknown subject 'photo'. Did you mean 'photos'?"),
        (("why", "photos/9"), "unknown alias or version of model 'photos' '9'"),
        (("runs", "diff", "19990101"), "unknown run '19990101'"),
    ],
)
def test_what_is_unknown_is_refused_with_the_choices(
    tl: Tl, words: tuple[str, ...], fault: str
):
    done = tl(*words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"UnknownName: {fault}")

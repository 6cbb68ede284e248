"""n draws of k images of each class."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tl_pipeline.cli import main
from tl_pipeline.errors import TransferLearningError
from tl_pipeline.pipeline.manifest import Rows
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store
from tl_pipeline.studies.few_shots import sampled

IDS = [f"{i:03d}" for i in range(90)]


def rows(groups: dict[str, str] | None = None) -> Rows:
    columns = {"image_id": IDS, "label": ["abc"[i % 3] for i in range(90)]}
    if groups:
        columns["group"] = [groups[i] for i in IDS]
    return Rows(pa.table(columns))


def test_a_draw_has_as_many_of_each_class_and_more_shots_hold_fewer():
    few, many = sampled(rows(), 2, 0, 0), sampled(rows(), 5, 0, 0)
    for part, shots in ((few, 2), (many, 5)):
        assert part.classes == dict.fromkeys("abc", shots)
    assert set(few.ids) < set(many.ids)
    assert sampled(rows(), 5, 0, 0).ids == many.ids
    assert sampled(rows(), 5, 0, 1).ids != many.ids
    assert sampled(rows(), 5, 1, 0).ids != many.ids


def test_a_class_gives_what_it_has():
    assert len(sampled(rows(), 1000, 0, 0)) == 90


def test_different_groups_come_first():
    groups = {f"{i:03d}": f"group {i // 9}" for i in range(90)}
    part = sampled(rows(groups), 10, 0, 0)
    for name in "abc":
        pairs = zip(part.ids, part.labels, strict=True)
        own = [groups[i] for i, label in pairs if label == name]
        assert len(set(own)) == 10


def run(folder: Path, store: Path, *more: str) -> None:
    given = ("--store", str(store), "--json", *more)
    main.app(["few-shot", str(folder), *given], result_action="return_value")


def test_more_draws_try_only_what_is_new(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    store = tmp_path / "store"
    more = ("--shots", "1/3", "--head", "logistic:C=0.01/1", "--head", "knn:k=1")
    run(folder, store, *more, "--draws", "2")
    found = json.loads(capsys.readouterr().out)
    assert [(row["shots"], row["draws"]) for row in found["rows"]] == [
        (1, 2),
        (3, 2),
    ] * 2
    trials = {place.name for place in (store / "trials").iterdir()}
    assert len(trials) == 2 * 2 * 3
    run(folder, store, *more, "--draws", "3")
    wider = json.loads(capsys.readouterr().out)
    now = {place.name for place in (store / "trials").iterdir()}
    assert trials < now
    assert len(now) == 2 * 3 * 3
    for row in wider["rows"]:
        assert row["low"] <= row["accuracy"] <= row["high"]
        assert row["tried"] == (2 if row["head"].startswith("logistic") else 1)
    assert not (store / "runs").exists()


def test_the_mean_is_that_of_the_trials(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run(folder, tmp_path / "s", "--shots", "2", "--draws", "4", "--head", "knn:k=1")
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    store = Store.open(tmp_path / "s")
    found = [
        tables.read(tables.TRIAL, place).to_pylist()[0]["accuracy"]
        for place in (store.root / "trials").iterdir()
    ]
    assert row["accuracy"] == pytest.approx(np.mean(found))
    assert row["deviation"] == pytest.approx(np.std(found, ddof=1))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--shots", "1/0"), "numbers of images"),
        (("--draws", "0"), "at least 1"),
        (("--head", "logistic:C=0.1..1"), "strategy=random"),
        (("--head", "quik"), "Did you mean 'quick'"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    folder: Path, tmp_path: Path, more: tuple[str, ...], said: str
):
    with pytest.raises(TransferLearningError, match=said):
        run(folder, tmp_path / "store", *more)
    assert not (tmp_path / "store").exists()

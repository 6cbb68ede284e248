"""Which candidate is the best, and by which held-out images."""

import json
from pathlib import Path
from typing import Any

import pytest

from tl_pipeline import query, report
from tl_pipeline.config.specs import RunSpec
from tl_pipeline.evaluation import choice
from tl_pipeline.evaluation.choice import Candidate, HeldOutScore
from tl_pipeline.pipeline import wiring
from tl_pipeline.pipeline.stages import register
from tl_pipeline.registry import index
from tl_pipeline.runs.records import Result, RunRecord
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.tables import METRICS, SEARCH, TRIAL


def candidate(name: str, right: int, loss: float = 0.5) -> Candidate:
    """One that was right in so many of 50 images."""
    return Candidate(name, HeldOutScore(50, right / 50, loss, right / 50))


def test_the_best_is_right_most_often_then_by_log_loss_then_the_first():
    several = [candidate("a", 45), candidate("b", 46, 0.9), candidate("c", 46, 0.3)]
    several.append(candidate("d", 46, 0.3))
    assert choice.leading(several) == 2
    found = choice.chosen(several, [None] * 4, "best", "accuracy", "validation")
    assert found == (2, "by validation, right in 46 of 50 images")
    found = choice.chosen(several[:1], [None], "cheaper", "accuracy", "folds")
    assert found.reason == "by folds of train and validation, right in 45 of 50 images"


def test_another_metric_may_choose():
    one = Candidate("a", HeldOutScore(50, 0.9, 0.3, 0.62))
    other = Candidate("b", HeldOutScore(50, 0.86, 0.3, 0.71))
    found = choice.chosen(
        [one, other], [None, None], "best", "balanced_accuracy", "folds"
    )
    assert found.at == 1
    assert found.reason == (
        "by balanced accuracy on folds of train and validation (0.7100), right in 43 "
        "of 50 images"
    )


# --- in a run ------------------------------------------------------------------------

BY_FOLDS = "cross_validation:folds=3"


def run(folder: Path, root: Path, search: str, **fields: Any) -> RunRecord:
    given = {
        "dataset": str(folder),
        "heads": ["logistic:C=0.000001/0.1", "nearest_centroid"],
        "search": search,
        "controls": False,
        **fields,
    }
    store = Store.open(root)
    return wiring.run(wiring.prepare(RunSpec.model_validate(given), store))


def metrics(root: Path, result: Result) -> list[dict[str, Any]]:
    return tables.read(METRICS, root / "evaluations" / result.evaluation).to_pylist()


def test_folds_are_a_split_of_the_scores_of_an_evaluation(folder: Path, tmp_path: Path):
    """Of every training and validation image, and by what the search found."""
    root = tmp_path / "store"
    record = run(folder, root, BY_FOLDS, calibration="none")
    assert record.split_report
    images = record.split_report.splits
    (step, _) = [step for step in record.steps if step.stage == "train"]
    place = root / "searches" / step.keys["search"]
    found = [row for row in tables.read(SEARCH, place).to_pylist() if row["chosen"]]
    trial = tables.read(TRIAL, root / "trials" / found[0]["trial"]).to_pydict()
    (logistic,) = [r for r in record.results if r.head.startswith("logistic")]
    folds = {r["metric"]: r for r in metrics(root, logistic) if r["split"] == "folds"}
    accuracy = folds["accuracy"]
    assert (
        accuracy["images"]
        == sum(trial["rows"])
        == images["train"].images + images["validation"].images
    )
    assert accuracy["value"] == pytest.approx(found[0]["accuracy"])
    assert accuracy["low"] < accuracy["value"] <= accuracy["high"]
    assert folds["log_loss"]["value"] == pytest.approx(found[0]["log_loss"])
    assert accuracy["head"] == logistic.head
    assert logistic.folds
    assert logistic.folds.value == accuracy["value"]


def test_everyone_who_looks_is_told_of_folds(folder: Path, tmp_path: Path):
    root = tmp_path / "store"
    record, store = run(folder, root, BY_FOLDS), Store.open(root)
    assert record.chosen
    assert record.chosen.startswith("by folds of train and validation, right in ")
    assert record.best.folds
    (row,) = index.models(store)
    assert row["folds_accuracy"] == record.best.folds.value
    about = json.loads((Path(row["folder"]) / "model.json").read_text())
    assert about["chosen"] == record.chosen
    page = report.path(store, record).read_text()
    assert record.chosen in page
    assert '<th class="n">folds</th>' in page
    told = query.ask(
        store,
        "SELECT count(*) AS n FROM metrics WHERE split = 'folds' AND chosen",
    )
    assert told.to_pylist()[0]["n"] == 2 * len(
        {r["metric"] for r in metrics(root, record.best) if r["split"] == "folds"}
    )


def test_validation_alone_chooses_where_it_is_asked_to(folder: Path, tmp_path: Path):
    root = tmp_path / "store"
    record, store = run(folder, root, "validation"), Store.open(root)
    assert record.split_report
    validation = record.split_report.splits["validation"].images
    for result in record.results:
        rows = metrics(root, result)
        assert {row["split"] for row in rows} == {"validation", "test", "train"}
        assert {r["images"] for r in rows if r["split"] == "validation"} == {validation}
        assert result.folds is None
    assert record.chosen
    assert record.chosen.startswith("by validation, right in ")
    assert '<th class="n">folds</th>' not in report.path(store, record).read_text()


def test_the_run_registers_what_folds_prefer(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What was stored of test is not read: with the worst scores nothing changes."""
    record = run(folder, tmp_path / "store", BY_FOLDS, choose="best")
    other = next(r for r in record.results if r.role != "best")
    plain = tables.read

    def skewed(table: tables.Table, place: Path, *columns: Any) -> Any:
        found = plain(table, place, *columns)
        if table is not METRICS:
            return found
        rows = found.to_pylist()
        for row in rows:
            loser = row["evaluation"] == other.evaluation
            if row["metric"] == "accuracy":
                row["value"] = {
                    "folds": (row["images"] - 4 * (not loser)) / row["images"],
                    "test": 0.0 if loser else 1.0,
                    "train": 0.0 if loser else 1.0,
                }[row["split"]]
        return tables.from_rows(METRICS, rows)

    monkeypatch.setattr(register.tables, "read", skewed)
    again = run(folder, tmp_path / "store", BY_FOLDS, choose="best")
    assert again.best.evaluation == other.evaluation


def test_a_lost_trial_is_made_again(folder: Path, tmp_path: Path):
    root = tmp_path / "store"
    record = run(folder, root, BY_FOLDS)
    evaluation = root / "evaluations" / record.best.evaluation
    before = metrics(root, record.best)
    for place in (evaluation, *(root / "trials").iterdir()):
        for file in place.iterdir():
            file.unlink()
        place.rmdir()
    again = run(folder, root, BY_FOLDS)
    assert metrics(root, again.best) == before

"""Which candidate is the best, and by which held-out images."""

import json
from dataclasses import replace
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
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.tables import METRICS, PREDICTIONS, SEARCH, TRIAL


def single(
    name: str, folds: int, validation: int, loss: float = 0.5, rows: str = "same"
) -> Candidate:
    """One that was right in so many of 200 images in folds, and of 50 of validation."""
    return Candidate(
        name,
        HeldOutScore(50, validation / 50, loss),
        HeldOutScore(200, folds / 200, loss),
        rows,
    )


def ensemble(validation: int, loss: float = 0.5) -> Candidate:
    return Candidate("greedy", HeldOutScore(50, validation / 50, loss))


def chosen(*candidates: Candidate) -> str:
    return candidates[choice.best(candidates).at].name


def test_candidates_are_compared_by_all_images_that_were_held_out_from_them():
    assert chosen(single("lucky", 170, 48), single("better", 180, 45)) == "better"
    assert chosen(single("a", 180, 45), single("b", 178, 48)) == "b"


def test_a_tie_goes_to_the_better_log_loss_and_then_to_the_first():
    one, other = single("one", 180, 45, loss=0.5), single("other", 179, 46, loss=0.4)
    assert chosen(one, other) == "other"
    same = [replace(other, name=name) for name in ("first", "second")]
    assert chosen(*same) == "first"


def test_log_loss_is_summed_over_rows_too():
    tally = HeldOutScore(200, 0.9, 0.2) + HeldOutScore(50, 0.8, 0.7)
    assert (tally.rows, tally.right) == (250, 220)
    assert tally.log_loss == pytest.approx(0.3)


def test_what_only_validation_scored_must_be_right_more_often_there():
    best, other = single("best", 190, 45, loss=0.9), single("other", 150, 49)
    assert chosen(best, other, ensemble(45, loss=0.1)) == "best"
    assert chosen(best, other, ensemble(46)) == "greedy"
    found = choice.best([best, other, ensemble(46)])
    assert found.reason == (
        "by validation alone, right in 46 of 50 images, as folds have not scored it; "
        "best, the best by folds of train and validation, is right in 45 of 50"
    )
    assert chosen(ensemble(46), replace(ensemble(47), name="average"), best) == (
        "average"
    )


def test_other_rows_in_folds_leave_the_choice_to_validation():
    candidates = [single("a", 190, 44), single("b", 150, 46, rows="fewer")]
    found = choice.best(candidates)
    assert candidates[found.at].name == "b"
    assert found.reason == (
        "by validation alone, right in 46 of 50 images; folds have no say, as not all "
        "were scored on the same images"
    )


def test_without_folds_validation_decides_as_it_did():
    candidates = [ensemble(45), ensemble(46, loss=0.9), ensemble(46, loss=0.3)]
    found = choice.best(candidates)
    assert found == (2, "by validation alone, right in 46 of 50 images")


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
    root = tmp_path / "store"
    record = run(folder, root, BY_FOLDS)
    train = record.split_report and record.split_report.splits["train"].images
    (step, _) = [step for step in record.steps if step.stage == "search"]
    place = root / "searches" / step.keys["search"]
    found = [row for row in tables.read(SEARCH, place).to_pylist() if row["chosen"]]
    trial = tables.read(TRIAL, root / "trials" / found[0]["trial"]).to_pydict()
    (logistic,) = [r for r in record.results if r.head.startswith("logistic")]
    folds = {r["metric"]: r for r in metrics(root, logistic) if r["split"] == "folds"}
    assert folds.keys() == {"accuracy", "log_loss"}
    accuracy = folds["accuracy"]
    assert accuracy["images"] == sum(trial["rows"]) == train
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
    assert told.to_pylist() == [{"n": 4}]


def test_validation_as_the_search_leaves_everything_as_it_was(
    folder: Path, tmp_path: Path
):
    """No rows of folds, and the key that this evaluation had before there were any."""
    root = tmp_path / "store"
    record, store = run(folder, root, "validation"), Store.open(root)
    for result in record.results:
        assert {row["split"] for row in metrics(root, result)} == {"validation", "test"}
        found = store.provenance(Artifact("evaluations", result.evaluation, ""))
        assert found["version"] == 2
        assert found["inputs"].keys() == {
            "encoder",
            "heads",
            "validation rows",
            "test rows",
        }
    assert record.chosen
    assert record.chosen.startswith("by validation alone, right in ")
    assert '<th class="n">folds</th>' not in report.path(store, record).read_text()


def test_the_run_registers_what_folds_and_validation_prefer(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The head that is worse on validation, which three more images in folds outweigh.

    What was stored of test is not read: with the worst scores there nothing changes.
    """
    record = run(folder, tmp_path / "store", BY_FOLDS)
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
                    "validation": (row["images"] - loser) / row["images"],
                    "test": 0.0 if loser else 1.0,
                }[row["split"]]
        return tables.from_rows(METRICS, rows)

    monkeypatch.setattr(register.tables, "read", skewed)
    again = run(folder, tmp_path / "store", BY_FOLDS)
    assert again.best.evaluation == other.evaluation


def test_an_image_that_one_encoder_refused_leaves_the_choice_to_validation(
    folder: Path, tmp_path: Path
):
    root, store = tmp_path / "store", Store.open(tmp_path / "store")
    first = run(folder, root, BY_FOLDS, backbones=["lenet5"])
    place = store.path(Artifact("evaluations", first.best.evaluation, ""))
    scored = set(tables.read(PREDICTIONS, place)["image_id"].to_pylist())
    manifest = root / "manifests" / first.manifest / "manifest.parquet"
    ids = query.ask(store, f"SELECT image_id FROM '{manifest}'").to_pydict()["image_id"]
    learned = next(image_id for image_id in sorted(ids) if image_id not in scored)
    both = ["lenet5", "lenet5:layer=f6"]
    whole = run(folder, root, BY_FOLDS, backbones=both)
    assert whole.chosen
    assert whole.chosen.startswith("by folds")
    work = wiring.prepare(
        RunSpec(dataset=str(folder), backbones=("lenet5:layer=f6",)), store
    )
    EmbeddingFolder(store, work.encoders[0].key).refuse(
        [(learned, "too_large", "for this test")]
    )
    partly = run(folder, root, BY_FOLDS, backbones=both)
    assert partly.chosen
    assert partly.chosen.endswith("not all were scored on the same images")


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

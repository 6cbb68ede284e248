"""Calibration, label sets and acceptance through whole runs and single predictions."""

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tl_pipeline import query, report
from tl_pipeline.cli import console
from tl_pipeline.cli.request import Request
from tl_pipeline.config import catalog
from tl_pipeline.config.specs import Method, RunSpec
from tl_pipeline.errors import CatalogError, DamagedArtifact, InvalidSpec
from tl_pipeline.evaluation import calibration, cross_fitting, decisions, scoring
from tl_pipeline.evaluation.averaging import Predictions
from tl_pipeline.evaluation.operating_point import FILE, OperatingPoint
from tl_pipeline.pipeline import wiring
from tl_pipeline.registry import index
from tl_pipeline.registry.model import open_model
from tl_pipeline.registry.prediction import predict
from tl_pipeline.runs.planning import Step
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.tables import METRICS, PREDICTIONS


def run(folder: Path, store: Store, catalog: Path | None = None, **fields) -> RunRecord:
    spec = RunSpec.model_validate(
        {
            "dataset": str(folder),
            "heads": ["logistic:C=0.1"],
            "controls": False,
            "error": 0.6,
            **fields,
        }
    )
    return wiring.run(wiring.prepare(spec, store, catalog_file=catalog))


def folder_of(store: Store, record: RunRecord) -> Path:
    return store.path(Artifact("evaluations", record.best.evaluation, ""))


def point_of(store: Store, record: RunRecord) -> OperatingPoint:
    found = OperatingPoint.read(folder_of(store, record))
    assert found is not None
    return found


def decided(record: RunRecord) -> decisions.Decisions:
    assert record.decisions is not None
    return record.decisions


@pytest.mark.parametrize("method", calibration.METHODS)
def test_a_run_tells_what_came_of_its_operating_point(
    folder: Path, store: Store, method: str
):
    """All figures follow from the table of predictions and the stored thresholds."""
    record = run(folder, store, calibration=method)
    point, found = point_of(store, record), decided(record)
    assert (point.error, point.calibration.method) == (0.6, method)
    assert (found.error, found.method) == (0.6, method)
    rows = tables.read(PREDICTIONS, folder_of(store, record)).to_pylist()
    for row in rows:
        p = np.array(row["probabilities"], np.float32)
        inside = p >= np.float32(point.least_probability)
        inside[p.argmax()] = True
        assert row["set_size"] == inside.sum()
        assert row["in_set"] == inside[["china", "flower"].index(row["label"])]
        assert row["accepted"] == (
            point.least_confidence is not None
            and row["confidence"] >= point.least_confidence
        )
    test = [row for row in rows if row["split"] == "test"]
    kept = [row for row in test if row["accepted"]]
    assert kept
    assert found.accepted.value == len(kept) / len(test)
    assert found.error_of_accepted is not None
    wrong = [row for row in kept if row["label"] != row["predicted"]]
    assert found.error_of_accepted.value == len(wrong) / len(kept)
    assert found.set_coverage.value == np.mean([row["in_set"] for row in test])
    assert found.set_size.value == np.mean([row["set_size"] for row in test])
    assert (found.log_loss_before is None) == (method == "none")


def test_held_out_scores_are_of_probabilities_that_never_saw_their_row():
    chance = np.random.default_rng(0)
    labels = np.array(["a", "b"] * 40, dtype="<U8")
    raw = chance.dirichlet([1, 1], size=80).astype(np.float32)
    raw[labels == "a"] = np.sort(raw[labels == "a"])[:, ::-1]
    labels[:3] = "stranger"
    ids = pa.array([f"{i:02d}" for i in range(80)])
    said = Predictions(ids, pa.array(labels.tolist()), ["a", "b"], raw)
    units = np.arange(80) // 2
    held = cross_fitting.fixed("temperature", said, units)
    found = scoring.score("folds", held, said, units, "temperature", 0.05, seed=0)
    targets = np.select([labels == "a", labels == "b"], [0, 1], -1)
    crossed = calibration.cross_fitted("temperature", raw, targets, units)
    assert np.array_equal(found.predictions["folds"].probabilities, crossed)
    given = np.where(targets < 0, 1e-9, crossed[np.arange(80), targets])
    floor = float(np.finfo(np.float32).eps)
    loss = -np.log(np.maximum(given, floor)).mean()
    assert found.scores["folds"]["log_loss"].value == pytest.approx(loss)


def test_another_rate_or_calibration_trains_nothing(folder: Path, store: Store):
    run(folder, store)

    def ran(**fields: Any) -> list[str]:
        steps: list[Step] = run(folder, store, **fields).steps
        return [step.stage for step in steps if not step.cached]

    assert ran() == []
    assert ran(error=0.3) == ["evaluate", "register"]
    assert ran(calibration="none") == ["evaluate", "register"]


def test_groups_of_validation_images_change_the_evaluation_alone(
    folder: Path, store: Store, tmp_path: Path
):
    """Frames of a film count as one unit; a head that holds nothing out stays."""
    files = sorted(folder.glob("*/*.jpg"))
    split = ("train", "train", "validation", "test")

    def told(groups: bool) -> RunRecord:
        lines = ["image,label,split" + ",group" * groups]
        for i, file in enumerate(files):
            film = f",{file.parent.name}{i // 8}-{i % 4}" if groups else ""
            lines.append(f"{file},{file.parent.name},{split[i % 4]}{film}")
        table, entry = tmp_path / "photos.csv", tmp_path / "data_catalog.yaml"
        table.write_text("\n".join(lines))
        entry.write_text(
            f"version: 1\ndatasets:\n  films:\n    type: table\n    path: {table}\n"
            "    split_column: split\n" + "    group_column: group\n" * groups
        )
        return run(Path("films"), store, entry, search="validation")

    single, grouped = told(groups=False), told(groups=True)
    assert point_of(store, single).units == point_of(store, single).rows == 15
    assert point_of(store, grouped).units == 9
    ran = [step.stage for step in grouped.steps if not step.cached]
    assert "train" not in ran
    assert "evaluate" in ran


def test_a_prediction_is_calibrated_as_it_was_in_the_run(folder: Path, store: Store):
    record = run(folder, store)
    (told,) = query.ask(
        store,
        "SELECT uri, confidence, accepted, predicted, set_size FROM predictions JOIN "
        "images USING (dataset, image_id, split, label) WHERE split = 'test' LIMIT 1",
    ).to_pylist()
    model = index.load_model(store, record.dataset)
    (found,) = predict(model, [folder / told["uri"]])
    assert found.confidence == pytest.approx(told["confidence"], abs=1e-4)
    assert found.accepted == told["accepted"]
    assert found.labels is not None
    assert found.labels[0] == found.label == told["predicted"]
    assert len(found.labels) == told["set_size"]


def test_labels_are_listed_from_the_most_probable_on(folder: Path, store: Store):
    """At a rate that 11 images cannot show, each set holds all labels."""
    record = run(folder, store, error=0.01)
    model = index.load_model(store, record.dataset)
    found = predict(model, sorted(folder.glob("*/*.jpg"))[::7])
    assert {prediction.label for prediction in found} == {"china", "flower"}
    for prediction in found:
        assert prediction.labels is not None
        assert prediction.label == prediction.labels[0]
        assert sorted(prediction.labels) == ["china", "flower"]
        assert prediction.accepted is False


def test_a_run_that_can_promise_nothing_says_so(
    folder: Path, store: Store, capsys: pytest.CaptureFixture[str]
):
    record = run(folder, store, error=0.01)
    console.summarise(record, {})
    said = " ".join(capsys.readouterr().out.split())
    start = "at an error rate of 1 %: 0.0 % of test images accepted; prediction sets"
    assert start in said
    assert "prediction sets hold all labels: an error rate of 1 % needs 99" in said
    assert "every prediction is rejected: to show an error rate of 1 % takes" in said
    shown = report.render(store, record, catalog.find(str(folder)))
    assert "Not promised:" in shown


def test_after_a_refit_nothing_is_promised_and_that_is_said(folder: Path, store: Store):
    """The thresholds are those of the head before, to the last bit."""
    plain, refit = (
        run(folder, store, search=f"validation:refit={value}")
        for value in ("false", "true")
    )
    assert point_of(store, plain) == point_of(store, refit)
    assert decided(plain).shortage != decided(refit).shortage
    assert decisions.REFITTED in decided(refit).shortage
    assert "Not promised:" in report.render(store, refit, catalog.find(str(folder)))
    assert decisions.REFITTED in report.render(store, refit, catalog.find(str(folder)))


def test_the_page_shows_the_sentence_and_the_diagram(folder: Path, store: Store):
    record = run(folder, store)
    shown = report.render(store, record, catalog.find(str(folder)))
    sentence = decided(record).sentence
    assert sentence.startswith("at an error rate of 60 %: ")
    assert sentence[1:] in shown
    assert "Calibration by temperature: log loss" in shown
    _, _, diagram = shown.partition('<figure class="reliability">')
    assert diagram.partition("</figure>")[0].count("<circle") == len(
        {
            min(int(row["confidence"] * 10), 9)
            for row in tables.read(PREDICTIONS, folder_of(store, record)).to_pylist()
            if row["split"] == "test"
        }
    )


def test_models_records_and_tables_of_older_versions(folder: Path, store: Store):
    """They have no operating point: they load, predict and are shown without."""
    record = run(folder, store)
    evaluated = folder_of(store, record)
    kept = store.root / "models" / record.registered.model
    (kept / FILE).unlink()
    model = open_model(kept)
    assert model.operating_point is None
    image = next(folder.glob("china/*.jpg"))
    (found,) = predict(model, [image])
    assert found.label == "china"
    assert found.confidence is not None
    assert (found.labels, found.accepted) == (None, None)

    (evaluated / FILE).unlink()
    assert decisions.of(evaluated, refitted=False) is None
    document = json.loads(record.model_dump_json())
    del document["decisions"], document["spec"]["error"]
    del document["spec"]["calibration"]
    older = RunRecord.model_validate(document)
    assert "What confidence is worth" not in report.render(
        store, older, catalog.find(str(folder))
    )

    file = evaluated / PREDICTIONS.file
    columns = PREDICTIONS.schema.names[:-4]
    pq.write_table(pq.read_table(file, columns=columns), file)
    query.build(store)
    rows = query.ask(
        store, "SELECT DISTINCT accepted, set_size, in_set FROM predictions"
    )
    assert rows.to_pylist() == [{"accepted": None, "set_size": None, "in_set": None}]


def test_a_damaged_operating_point_is_refused(folder: Path, store: Store):
    record = run(folder, store)
    place = store.root / "models" / record.registered.model
    (place / FILE).write_text('{"format": 1}')
    with pytest.raises(DamagedArtifact, match=r"calibration\.json: error"):
        open_model(place)


def test_metrics_of_the_decisions_are_rows_of_the_table(folder: Path, store: Store):
    record = run(folder, store)
    rows = tables.read(METRICS, folder_of(store, record)).to_pylist()
    test = {row["metric"] for row in rows if row["split"] == "test"}
    assert test >= {"brier", "ece", "log_loss_uncalibrated", "ece_uncalibrated"}
    assert test >= {"set_coverage", "set_size", "accepted", "error_of_accepted"}
    told = open_model(store.root / "models" / record.registered.model).about
    assert (
        told["metrics"]["test"]["accepted"]["value"] == decided(record).accepted.value
    )


def test_the_methods_of_a_run_are_those_that_there_are():
    assert get_args(Method) == tuple(calibration.METHODS)


@pytest.mark.parametrize("error", [0, 1, -0.1, 2, float("nan")])
def test_a_rate_that_is_none_is_refused(error: float, tmp_path: Path):
    with pytest.raises(InvalidSpec, match="--error: Input should be"):
        Request(dataset="digits", error=error).spec()
    file = tmp_path / "run.yaml"
    file.write_text(f"dataset: digits\nerror: {error}\n".replace("nan", ".nan"))
    with pytest.raises(CatalogError, match=r"run\.yaml:2: error: Input should be"):
        catalog.load_run(file)


def test_a_request_becomes_parameters_of_the_flow():
    request = Request(dataset="digits", error=0.02, calibration="none")
    told = request.parameters(request.spec())
    assert (told["error"], told["calibration"]) == (0.02, "none")
    plain = Request(dataset="digits")
    told = plain.parameters(plain.spec())
    assert (told["error"], told["calibration"]) == (0.05, "temperature")

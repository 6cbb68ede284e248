"""Batches of predictions: what is computed, what it says, and what is remembered."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tl_pipeline import query
from tl_pipeline.config.encoder_specs import backbone_of
from tl_pipeline.config.specs import HeadSpec, RunSpec
from tl_pipeline.errors import InvalidSpec, TooManyRefused
from tl_pipeline.maintenance import gc
from tl_pipeline.maintenance.gc_roots import RunPolicy
from tl_pipeline.pipeline import batch, wiring
from tl_pipeline.pipeline.stages import predict as stage
from tl_pipeline.registry import index, nearest, prediction, registration
from tl_pipeline.runs.records import BatchRecord, RunRecord
from tl_pipeline.store import unit_vectors
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder

Crops = Callable[[str, int], Image.Image]


SEVERAL = ["lenet5", "lenet5:layer=f6"]


def trained(
    folder: Path,
    store: Store,
    head: str = "logistic:C=1",
    backbone: str | list[str] = "lenet5",
) -> RunRecord:
    spec = RunSpec(
        dataset=str(folder),
        backbones=(backbone_of(backbone),),
        heads=(HeadSpec.parse(head),),
        controls=False,
    )
    return wiring.run(wiring.prepare(spec, store))


@pytest.fixture
def incoming(tmp_path: Path, crops: Crops) -> Path:
    """Twelve photos without labels, no two of them alike."""
    root = tmp_path / "incoming"
    root.mkdir()
    add(root, crops, range(100, 106))
    return root


def add(root: Path, crops: Crops, numbers: range) -> None:
    for label in ("china", "flower"):
        for number in numbers:
            crops(label, number).save(root / f"{label}-{number}.jpg", quality=90)


def run(store: Store, dataset: Path | str, **more: object) -> BatchRecord:
    """A batch, after checking that its plan foretells each step and its reason."""
    planned = batch.plan(batch.prepare("photos", str(dataset), store, **more))
    record = batch.run(batch.prepare("photos", str(dataset), store, **more))
    assert [(s.stage, s.subject, s.cached, s.units) for s in planned] == [
        (s.stage, s.subject, s.cached, s.units) for s in record.steps
    ]
    return record


def worked(record: BatchRecord) -> dict[str, int]:
    """How many images each stage that was not cached was about, but for drift."""
    return {
        step.stage: step.units
        for step in record.steps
        if not step.cached and step.stage not in {"reference", "drift"}
    }


def test_an_image_is_embedded_and_predicted_once(
    folder: Path, store: Store, incoming: Path, crops: Crops
):
    trained(folder, store)
    first, second = run(store, incoming), run(store, incoming)
    add(incoming, crops, range(106, 111))
    third = run(store, incoming)
    assert [one.new for one in (first, second, third)] == [12, 0, 10]
    assert worked(first) == {"ingest": 12, "embed": 12, "predict": 12}
    assert worked(second) == {}
    assert worked(third) == {"ingest": 22, "embed": 10, "predict": 10}
    rows = query.ask(store, "SELECT uri, label, version FROM batch_predictions")
    assert rows.num_rows == 22
    names = {Path(uri).name for uri in rows["uri"].to_pylist()}
    assert names == {path.name for path in incoming.iterdir()}
    assert set(rows["version"].to_pylist()) == {1}
    batches = query.ask(
        store, "SELECT new_images AS new, images FROM batches ORDER BY started"
    )
    assert batches.to_pylist() == [
        {"new": 12, "images": 12},
        {"new": 0, "images": 12},
        {"new": 10, "images": 22},
    ]


def test_a_new_champion_costs_its_heads_alone_and_an_old_one_nothing(
    folder: Path, store: Store, incoming: Path
):
    trained(folder, store)
    run(store, incoming)
    assert trained(folder, store, "logistic:C=1.0001").registered.champion
    newer = run(store, incoming)
    assert (newer.version, newer.new, worked(newer)) == (2, 12, {"predict": 12})
    registration.roll_back(store, "photos", "test")
    older = run(store, incoming)
    assert (older.version, older.new, worked(older)) == (1, 0, {})
    said = query.ask(
        store,
        "SELECT version, count(DISTINCT image_id) AS images FROM batch_predictions "
        "GROUP BY version ORDER BY version",
    )
    assert said.to_pylist() == [
        {"version": 1, "images": 12},
        {"version": 2, "images": 12},
    ]


@pytest.mark.parametrize("backbone", ["lenet5", SEVERAL])
def test_predictions_are_those_of_evaluation_and_of_single_files(
    folder: Path, store: Store, tmp_path: Path, backbone: str | list[str]
):
    """Test images of a run, as a folder without labels: the same bytes, one answer."""
    trained(folder, store, backbone=backbone)
    tested = query.ask(
        store,
        "SELECT image_id, uri, predicted, confidence, probabilities, accepted, "
        "set_size FROM predictions JOIN images USING (dataset, image_id) "
        "WHERE predictions.split = 'test'",
    ).to_pylist()
    assert len(tested) > 5
    unlabelled = tmp_path / "unlabelled"
    unlabelled.mkdir()
    files = [unlabelled / f"{number}.jpg" for number in range(len(tested))]
    for file, row in zip(files, tested, strict=True):
        file.write_bytes(Path(row["uri"]).read_bytes())
    assert worked(run(store, unlabelled)) == {
        "ingest": len(tested),
        "predict": len(tested),
    }
    rows = query.ask(store, "FROM batch_predictions").to_pylist()
    said = {row["image_id"]: row for row in rows}
    model = index.load_model(store, "photos")
    single = prediction.predict(model, files)
    for row, alone in zip(tested, single, strict=True):
        ours = said[row["image_id"]]
        assert (ours["label"], ours["accepted"], len(ours["labels"])) == (
            row["predicted"],
            row["accepted"],
            row["set_size"],
        )
        assert ours["confidence"] == pytest.approx(row["confidence"], abs=1e-6)
        top = {one["label"]: one["probability"] for one in ours["top"]}
        given = dict(zip(model.classes, row["probabilities"], strict=True))
        assert top == pytest.approx(given, abs=1e-6)
        assert (ours["label"], ours["labels"]) == (alone.label, alone.labels)
        assert ours["confidence"] == pytest.approx(alone.confidence, abs=1e-5)


@pytest.mark.parametrize("backbone", ["lenet5", SEVERAL])
def test_the_nearest_training_image_is_that_of_all_cosines(
    folder: Path,
    store: Store,
    incoming: Path,
    backbone: str | list[str],
    monkeypatch: pytest.MonkeyPatch,
):
    """In many small chunks, too; one that was learned from is its own nearest."""
    monkeypatch.setattr(stage, "_VALUES", 1_000)
    monkeypatch.setattr(unit_vectors, "_CELLS", 100)
    trained(folder, store, backbone=backbone)
    sides = "SELECT image_id, uri FROM images WHERE split <> 'test'"
    learned = query.ask(store, sides).to_pylist()
    (incoming / "learned.jpg").write_bytes(Path(learned[0]["uri"]).read_bytes())
    run(store, incoming)
    rows = query.ask(store, "FROM batch_predictions WHERE dataset = 'incoming'")
    encoders = index.load_model(store, "photos").encoders
    every = [EmbeddingFolder(store, encoder.key) for encoder in encoders]

    def unit(ids: list[str]) -> np.ndarray:
        """The unit vectors of all encoders side by side, of length 1 together."""
        found = [one.load(ids).vectors.astype(np.float64) for one in every]
        blocks = [v / np.linalg.norm(v, axis=1)[:, None] for v in found]
        return np.hstack(blocks) / np.sqrt(len(every))

    train = sorted(row["image_id"] for row in learned)
    known = unit(train)
    for row in rows.to_pylist():
        cosines = known @ unit([row["image_id"]])[0]
        assert row["nearest_id"] == train[int(cosines.argmax())]
        assert row["nearest_similarity"] == pytest.approx(cosines.max(), abs=1e-5)
    own = {row["image_id"]: row for row in rows.to_pylist()}[learned[0]["image_id"]]
    assert own["nearest_id"] == learned[0]["image_id"]


@pytest.mark.parametrize("manifest", ["gone", "older"])
def test_what_a_model_learned_from_may_be_known_by_its_run_or_not_at_all(
    folder: Path, store: Store, manifest: str
):
    record = trained(folder, store)
    key = record.manifest if manifest == "gone" else None
    if manifest == "gone":
        (store.root / "manifests" / record.manifest / "manifest.parquet").unlink()
    (encoder,) = index.load_model(store, "photos").encoders
    model = record.registered.model
    found = nearest.training_images(store, model, key, encoder.key)
    learned = record.images - record.best.test_images
    assert len(found) == (0 if manifest == "gone" else learned)


def test_refused_inputs_are_counted_and_too_many_end_the_batch(
    folder: Path, store: Store, incoming: Path
):
    """One is no image, which ingest sees; one is cut, which embed sees."""
    trained(folder, store)
    (incoming / "text.jpg").write_bytes(b"no image")
    whole = next(incoming.glob("china-*")).read_bytes()
    (incoming / "cut.jpg").write_bytes(whole[: len(whole) // 2])

    def predicted(allowed: float) -> BatchRecord:
        file = incoming.parent / "catalog.yaml"
        file.write_text(
            "version: 1\ndatasets:\n  incoming: {type: image_folder, path: incoming, "
            f"labels: none, max_quarantined: {allowed}}}\n"
        )
        work = batch.prepare("photos", "incoming", store, catalog_file=file)
        return batch.run(work)

    def quarantine() -> list[str]:
        sql = "SELECT uri FROM quarantine WHERE dataset = 'incoming' ORDER BY uri"
        return [Path(uri).name for uri in query.ask(store, sql)["uri"].to_pylist()]

    with pytest.raises(TooManyRefused, match="incoming: 1 of 14 inputs were refused"):
        predicted(0.05)
    assert quarantine() == ["text.jpg"]
    with pytest.raises(TooManyRefused, match="incoming: 2 of 14 inputs were refused"):
        predicted(0.1)
    assert quarantine() == ["cut.jpg", "text.jpg"]
    record = predicted(0.2)
    assert (record.new, record.images, record.quarantined) == (12, 13, 2)
    (said,) = [step.reason for step in record.steps if step.stage == "predict"]
    assert said == "12 of 12 images are not predicted yet"
    assert quarantine() == ["cut.jpg", "text.jpg"]


def test_a_folder_is_not_taken_for_another_of_its_name(
    folder: Path, store: Store, incoming: Path, tmp_path: Path
):
    trained(folder, store)
    run(store, incoming)
    (tmp_path / "other" / "incoming").mkdir(parents=True)
    with pytest.raises(InvalidSpec, match=r"the dataset 'incoming' is .*same name"):
        batch.prepare("photos", str(tmp_path / "other" / "incoming"), store)


def test_an_empty_folder_is_nothing_new(folder: Path, store: Store, tmp_path: Path):
    trained(folder, store)
    (tmp_path / "incoming").mkdir()
    record = run(store, tmp_path / "incoming")
    assert (record.images, record.new) == (0, 0)


def test_small_tables_become_one_and_a_lost_one_is_made_again(
    folder: Path,
    store: Store,
    incoming: Path,
    crops: Crops,
    monkeypatch: pytest.MonkeyPatch,
):
    """As many tables as the logarithm of the batches; no row is lost or twice."""
    monkeypatch.setattr(stage, "_SMALL", 1)
    trained(folder, store)
    sizes = []
    for number in range(9):
        add(incoming, crops, range(106 + number, 107 + number))
        record = run(store, incoming)
        (keys,) = record.predictions.values()
        sizes.append([rows(store, key) for key in keys])
    assert sizes[0] == [14]
    assert sizes[1:5] == [[14, 2], [14, 4], [14, 4, 2], [14, 8]]
    assert sizes[-2:] == [[14, 8, 4, 2], [30]]
    folder_of = store.root / "predictions" / keys[0]
    (folder_of / "batch_predictions.parquet").write_bytes(b"")
    again = run(store, incoming)
    assert (again.new, worked(again)) == (30, {"predict": 30})


def rows(store: Store, key: str) -> int:
    file = store.root / "predictions" / key / "batch_predictions.parquet"
    return pq.read_metadata(file).num_rows


def test_gc_keeps_what_the_last_batch_names(
    folder: Path, store: Store, incoming: Path, crops: Crops
):
    trained(folder, store)
    run(store, incoming)
    add(incoming, crops, range(106, 107))
    last = run(store, incoming)
    found = gc.collect(store, RunPolicy(keep_runs=1), retention_days=0)
    gone = sorted(garbage.item.kind for garbage in found.garbage)
    assert gone == ["batches", "manifests", "predictions"]
    assert run(store, incoming).new == 0
    (keys,) = last.predictions.values()
    assert [path.name for path in (store.root / "predictions").iterdir()] == keys


@pytest.mark.exhaustive  # runs of two machines: test_mirror.py
def test_what_one_machine_predicted_another_does_not_predict_again(
    folder: Path, incoming: Path, crops: Crops, at: Callable[[str], Store]
):
    """At a URL: embeddings, predictions and records travel, and so does the SQL."""
    trained(folder, at("A"))
    assert run(at("A"), incoming).new == 12
    again = run(at("B"), incoming)
    assert (again.new, worked(again)) == (0, {})
    add(incoming, crops, range(106, 107))
    assert run(at("C"), incoming).new == 2
    rows = query.ask(at("A"), "FROM batch_predictions")
    assert rows.num_rows == 14
    assert rows["nearest_id"].null_count == 0


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
def test_the_output_has_all_images_of_now_with_their_present_names(
    folder: Path, store: Store, incoming: Path, tmp_path: Path, ending: str
):
    trained(folder, store)
    run(store, incoming)
    next(incoming.glob("china-100*")).unlink()
    next(incoming.glob("flower-100*")).rename(incoming / "renamed.jpg")
    output = tmp_path / f"said{ending}"
    run(store, incoming, output=output)
    if ending == ".parquet":
        found = pq.read_table(output).to_pylist()
    elif ending == ".csv":
        found = arrow_csv.read_csv(output).to_pylist()
        found = [{**row, "top": json.loads(row["top"])} for row in found]
    else:
        found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [Path(row["uri"]).name for row in found] == sorted(
        path.name for path in incoming.iterdir()
    )
    for row in found:
        assert row["top"][0]["label"] == row["label"]
        assert row["top"][0]["probability"] == pytest.approx(row["confidence"])
        assert [one["label"] for one in row["top"]] in (
            ["china", "flower"],
            ["flower", "china"],
        )


def test_what_cannot_be_done_is_said_before_anything_is(
    folder: Path, store: Store, tmp_path: Path
):
    trained(folder, store)
    (tmp_path / "texts.csv").write_text("text,label\nhello,a\n")
    file = tmp_path / "catalog.yaml"
    file.write_text(
        "version: 1\ndatasets:\n"
        "  incoming: {type: image_folder, path: incoming, labels: none}\n"
        "  deep: {type: image_folder, path: incoming, range: [0, 4095]}\n"
        "  texts: {type: table, path: texts.csv, text_column: text}\n"
    )

    def refused(what: str, name: str, **more: object) -> None:
        with pytest.raises(InvalidSpec, match=what):
            batch.prepare("photos", name, store, catalog_file=file, **more)

    refused("model photos takes images, but texts holds texts", "texts")
    refused(r"deep says range: \(0.0, 4095.0\), but model photos was trained", "deep")
    refused("the ending tells the format", "incoming", output=tmp_path / "a.xlsx")
    refused("there is no folder", "incoming", output=tmp_path / "no" / "a.csv")
    spec = RunSpec(dataset="incoming")
    with pytest.raises(InvalidSpec, match="tl predict MODEL incoming"):
        wiring.prepare(spec, store, catalog_file=file)

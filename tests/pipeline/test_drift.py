"""Batches that are unlike the images of a model's test, from files to the record."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tl_pipeline import query
from tl_pipeline.config.specs import HeadSpec, RunSpec
from tl_pipeline.evaluation import drift
from tl_pipeline.pipeline import batch, wiring
from tl_pipeline.runs import summary
from tl_pipeline.runs.records import BatchRecord
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.tables import REFERENCE

Crops = Callable[[str, int], Image.Image]


@pytest.fixture
def made(folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with a model of sixty photos, of which some ten are for test."""
    monkeypatch.setattr(drift, "FEWEST", 8)
    heads = (HeadSpec.parse("logistic:C=1"),)
    spec = RunSpec(dataset=str(folder), heads=heads, controls=False)
    wiring.run(wiring.prepare(spec, store))
    return store


def photos(root: Path, crops: Crops, change: Callable[..., Image.Image]) -> Path:
    root.mkdir()
    for label in ("china", "flower"):
        for number in range(200, 220):
            image = change(crops(label, number).convert("RGB"))
            image.save(root / f"{label}-{number}.png")
    return root


def predicted(store: Store, entry: Path, how: str = "report") -> BatchRecord:
    catalog = entry.parent / "catalog.yaml"
    catalog.write_text(
        f"version: 1\ndatasets:\n  {entry.name}: {{type: image_folder, "
        f"path: {entry}, labels: none, drift: {how}}}\n"
    )
    work = batch.prepare("photos", entry.name, store, catalog_file=catalog)
    return batch.run(work)


def test_photos_in_negative_trip_and_others_do_not(
    made: Store, tmp_path: Path, crops: Crops
):
    alike = predicted(made, photos(tmp_path / "alike", crops, lambda image: image))
    unlike = predicted(made, photos(tmp_path / "unlike", crops, ImageOps.invert))
    names = ["embeddings", "classes", "novelty", "not_accepted"]
    assert [one.statistic for one in alike.drift] == names
    assert [one.statistic for one in alike.drift if one.tripped] == []
    assert "embeddings" in {one.statistic for one in unlike.drift if one.tripped}
    said = [one.text for one in summary.of_batch(unlike) if one.tone == "alarm"]
    assert len(said) == 1
    assert said[0].startswith("drift: the new images are unlike the test images")
    assert [one for one in summary.of_batch(alike) if one.tone == "alarm"] == []
    rows = query.ask(made, "FROM drift WHERE dataset = 'unlike'").to_pylist()
    assert {row["statistic"]: row["p"] for row in rows} == {
        one.statistic: one.p for one in unlike.drift
    }
    assert {row["threshold"] for row in rows} == {0.01 / 4}


def test_novelty_is_the_rank_among_test_images(
    made: Store, tmp_path: Path, crops: Crops
):
    record = predicted(made, photos(tmp_path / "alike", crops, lambda image: image))
    (key,) = [s.keys["reference"] for s in record.steps if s.stage == "reference"]
    usual = tables.read(REFERENCE, made.root / "references" / key)
    near = np.array(usual["nearest_similarity"].to_pylist())
    tested = query.ask(made, "SELECT image_id FROM images WHERE split = 'test'")
    assert usual["image_id"].to_pylist() == sorted(tested["image_id"].to_pylist())
    rows = query.ask(made, "FROM batch_predictions").to_pylist()
    assert len(rows) == 40
    for row in rows:
        farther = int((near <= row["nearest_similarity"]).sum())
        assert row["novelty"] == pytest.approx((1 + farther) / (1 + len(near)))


def test_test_images_that_are_gone_are_compared_with_again_once_they_are_back(
    made: Store, tmp_path: Path, crops: Crops
):
    (evaluations,) = made.root.glob("evaluations")
    away = evaluations.rename(tmp_path / "evaluations")
    entry = photos(tmp_path / "first", crops, ImageOps.invert)
    first = predicted(made, entry)
    assert (first.new, first.drift) == (40, [])
    assert first.steps[-1].reason == (
        "test images of the model, or their embeddings, are gone"
    )
    away.rename(evaluations)
    second = predicted(made, photos(tmp_path / "second", crops, ImageOps.flip))
    assert (second.new, len(second.drift)) == (40, 4)


def test_what_is_ignored_or_too_few_is_not_compared(
    made: Store, tmp_path: Path, crops: Crops, monkeypatch: pytest.MonkeyPatch
):
    entry = photos(tmp_path / "unlike", crops, ImageOps.invert)
    ignored = predicted(made, entry, "ignore")
    assert (ignored.new, ignored.drift) == (40, [])
    assert {"reference", "drift"} & {step.stage for step in ignored.steps} == set()
    monkeypatch.setattr(drift, "FEWEST", 41)
    few = predicted(made, photos(tmp_path / "others", crops, ImageOps.flip))
    assert (few.new, few.drift) == (40, [])
    assert few.steps[-1].reason == "40 new images are too few to tell, of 41"

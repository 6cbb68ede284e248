"""Concatenated encoders and averaged heads: whole runs, to a prediction."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tl_pipeline import query
from tl_pipeline.config.specs import RunSpec
from tl_pipeline.encoders import concat
from tl_pipeline.encoders.concat import ConcatEncoder
from tl_pipeline.encoders.lenet import LeNet5
from tl_pipeline.errors import InvalidSpec, StoreError
from tl_pipeline.evaluation import choice
from tl_pipeline.maintenance import gc, gc_roots, inventory
from tl_pipeline.pipeline import wiring
from tl_pipeline.registry import index
from tl_pipeline.registry.model import open_model
from tl_pipeline.registry.prediction import Prediction, predict
from tl_pipeline.runs.records import Result, RunRecord
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.tables import MANIFEST, METRICS, PREDICTIONS

C5, F6 = "lenet5", "lenet5:layer=f6"
BOTH = [C5, F6]
POOR = "mlp:hidden=1,max_epochs=1,learning_rate=1e-9"


def work(folder: Path, store: Store, **fields: Any) -> wiring.Work:
    given = {"dataset": str(folder), "heads": ["logistic:C=0.1"], **fields}
    return wiring.prepare(RunSpec.model_validate(given), store)


def run(folder: Path, store: Store, **fields: Any) -> RunRecord:
    return wiring.run(work(folder, store, **fields))


def gain(record: RunRecord) -> float:
    assert record.gain is not None
    return record.gain.value


def predictions(
    store: Store, result: Result
) -> dict[tuple[str, str], Mapping[str, Any]]:
    place = store.path(Artifact("evaluations", result.evaluation, ""))
    rows = tables.read(PREDICTIONS, place).to_pylist()
    return {(row["split"], row["image_id"]): row for row in rows}


def test_a_joint_is_a_candidate_like_any_other(folder: Path, store: Store):
    record = run(folder, store, backbones=[BOTH])
    label = "lenet5/c5 LETTERS + lenet5/f6 LETTERS"
    twin = "lenet5/c5 random:0 + lenet5/f6 random:0"
    found = {(r.role, r.encoder, r.head) for r in record.results}
    assert found == {
        ("best", label, "logistic(C=0.1)"),
        ("control", label, "majority"),
        ("control", twin, "logistic(C=0.1)"),
    }
    (control,) = [r for r in record.results if r.encoder == twin]
    assert gain(record) == pytest.approx(record.best.test.value - control.test.value)
    # Members are embedded, each once; the joint is not.
    embedded = [s.subject for s in record.steps if s.stage == "embed"]
    assert sorted(embedded) == sorted([*concat.labels(label), *concat.labels(twin)])
    assert len(list((store.root / "embeddings").iterdir())) == 4
    again = run(folder, store, backbones=[BOTH])
    assert all(step.cached for step in again.steps)
    assert again.results == record.results


def test_a_joint_head_sees_its_members_side_by_side(folder: Path, store: Store):
    plain: dict[str, Any] = {"controls": False, "calibration": "none"}
    record = run(folder, store, backbones=[BOTH], **plain)
    model = index.load_model(store, "photos")
    (member,) = model.members
    assert isinstance(member.encoder, ConcatEncoder)
    vectors = [
        EmbeddingFolder(store, part.key).load(predicted)
        for predicted in [
            [i for s, i in predictions(store, record.best) if s == "test"]
        ]
        for part in member.encoder.members
    ]
    assert member.head.encoder_key == member.encoder.key
    said = member.head.predictor.predict_proba(np.hstack([v.vectors for v in vectors]))
    stored = predictions(store, record.best)
    expected = [stored["test", i]["probabilities"] for i in vectors[0].image_ids]
    np.testing.assert_allclose(said, expected, atol=1e-6)


def test_a_joint_next_to_its_member_embeds_nothing_twice(folder: Path, store: Store):
    run(folder, store, backbones=[C5], controls=False)
    record = run(folder, store, backbones=[BOTH, C5], controls=False)
    embedded = {s.subject: s.units for s in record.steps if s.stage == "embed"}
    assert embedded == {"lenet5/c5 LETTERS": 0, "lenet5/f6 LETTERS": 60}


def test_an_average_is_the_mean_of_its_members(folder: Path, store: Store):
    record = run(
        folder,
        store,
        backbones=[C5, F6],
        heads=["logistic:C=0.1", "knn:k=5"],
        ensemble="average",
        calibration="none",
    )
    averages = {r.role == "control": r for r in record.results if r.members}
    assert set(averages) == {False, True}
    average = averages[False]
    assert average.head == "average of 2 heads"
    assert average.encoder == "lenet5/c5 LETTERS, lenet5/f6 LETTERS"
    candidates = [r for r in record.results if not r.members and r.role != "control"]
    assert len(candidates) == 4
    names = [member.evaluation for member in average.members]
    chosen = [r for r in candidates if r.evaluation in names]
    assert {r.encoder for r in chosen} == {"lenet5/c5 LETTERS", "lenet5/f6 LETTERS"}
    for r in chosen:
        rivals = [c.held_out.value for c in candidates if c.encoder == r.encoder]
        assert r.held_out.value == max(rivals)
    ordinary = {r.evaluation: predictions(store, r) for r in chosen}
    stored = predictions(store, average)
    for place, row in stored.items():
        members = [said[place]["probabilities"] for said in ordinary.values()]
        np.testing.assert_allclose(
            row["probabilities"], np.mean(members, axis=0), atol=1e-6
        )
        assert row["label"] == next(iter(ordinary.values()))[place]["label"]
        names = ["china", "flower"]
        assert row["predicted"] == names[int(np.argmax(row["probabilities"]))]
    right = [
        r["label"] == r["predicted"] for (s, _), r in stored.items() if s == "test"
    ]
    assert average.test.value == pytest.approx(np.mean(right))
    # Its control: the heads of the twins, averaged the same way.
    assert all("random:0" in m.encoder for m in averages[True].members)
    again = run(
        folder,
        store,
        backbones=[C5, F6],
        heads=["logistic:C=0.1", "knn:k=5"],
        ensemble="average",
        calibration="none",
    )
    assert all(step.cached for step in again.steps)


def test_sql_tells_joints_and_members(folder: Path, store: Store):
    record = run(folder, store, backbones=[BOTH, C5], ensemble="greedy", controls=False)
    (greedy,) = [r for r in record.results if r.members]
    rows = query.ask(
        store,
        "SELECT e.backbone, e.layer, e.weights_sha256 FROM metrics m "
        "JOIN encoders e USING (encoder_key) WHERE m.encoder LIKE '% + %' "
        "AND m.split = 'test' AND m.metric = 'accuracy' AND m.family = 'logistic'",
    ).to_pylist()
    assert rows == [
        {"backbone": "lenet5 + lenet5", "layer": "c5 + f6", "weights_sha256": None}
    ]
    told = query.ask(store, "FROM members ORDER BY member").to_pylist()
    keys = {r.evaluation: r.encoder_key for r in record.results}
    expected = [
        {"evaluation": greedy.evaluation, "member": m.evaluation, "encoder": m.encoder}
        | {"encoder_key": keys[m.evaluation], "control": False}
        | {"head": m.head, "times": m.times}
        for m in sorted(greedy.members, key=lambda m: m.evaluation)
    ]
    assert told == expected
    tested = query.ask(store, "FROM predictions WHERE split = 'test'")
    assert len(tested) == 3 * record.best.test_images


@pytest.fixture
def averaged(folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> RunRecord:
    """A run whose best is an average of a joint's head and others."""

    def last(candidates: list[choice.Candidate], *_: object) -> choice.Choice:
        return choice.Choice(len(candidates) - 1, "by this test")

    monkeypatch.setattr(choice, "chosen", last)
    return run(
        folder,
        store,
        backbones=[BOTH, C5],
        heads=["logistic:C=0.1", "knn:k=5"],
        ensemble="average",
    )


def test_a_model_of_several_heads_predicts_what_was_stored(
    folder: Path, store: Store, averaged: RunRecord, tmp_path: Path
):
    """From the files, where the folder was moved to; each network decodes no twice."""
    encoders = {"lenet5/c5 LETTERS + lenet5/f6 LETTERS", "lenet5/c5 LETTERS"}
    assert {m.encoder for m in averaged.best.members} == encoders
    assert [m.times for m in averaged.best.members] == [1, 1]
    # against the twins' heads averaged
    (control,) = [r for r in averaged.results if r.role == "control" and r.members]
    assert averaged.best.untrained == control.evaluation
    over = averaged.best.test.value - control.test.value
    assert gain(averaged) == pytest.approx(over)
    moved = tmp_path / "elsewhere"
    shutil.copytree(store.root / "models" / averaged.registered.model, moved)
    model = open_model(moved)
    assert len(model.members) == 2
    assert [encoder.layer for encoder in model.encoders] == ["c5", "f6"]
    manifest = tables.read(MANIFEST, store.root / "manifests" / averaged.manifest)
    uris = dict(tables.values(manifest, "image_id", "uri"))
    stored = predictions(store, averaged.best)
    tested = [image_id for split, image_id in stored if split == "test"]
    found = predict(model, [folder / uris[image_id] for image_id in tested])
    for image_id, said in zip(tested, found, strict=True):
        row = stored["test", image_id]
        assert said.label == row["predicted"]
        assert said.confidence == pytest.approx(row["confidence"], abs=1e-5)


@pytest.mark.exhaustive  # a refused image: next to it
def test_a_broken_file_is_refused_alone(
    averaged: RunRecord, store: Store, folder: Path
):
    broken = folder / "broken.jpg"
    broken.write_bytes(b"no image")
    image = next(folder.glob("flower/*"))
    model = index.load_model(store, averaged.dataset)
    found = predict(model, [image, broken, image])
    assert [said.refused is None for said in found] == [True, False, True]
    assert found[0] == found[2]


@pytest.mark.exhaustive  # models of one head: test_store_commands.py
def test_models_and_their_parts_are_listed_and_kept(averaged: RunRecord, store: Store):
    """What a kept run or a registered model is made of is no garbage."""
    (row,) = index.models(store)
    assert row["head"] == "average of 2 heads"
    assert row["encoder"] == (
        "lenet5/c5 LETTERS + lenet5/f6 LETTERS, lenet5/c5 LETTERS"
    )
    assert row["test_accuracy"] == averaged.best.test.value
    assert not gc.find(store, retention_days=0).garbage
    for record in (store.root / "runs").glob("*/*.json"):
        record.unlink()  # now the model alone reaches anything
    gone = {g.item.key for g in gc.find(store, retention_days=0).garbage}
    model = index.load_model(store, "photos")
    live = gc_roots.survey(store).live_keys
    for member in model.about["members"]:
        for key in (member["head"], member["evaluation"], *member["encoder_keys"]):
            assert key in live
            assert key not in gone
    users = {e["encoder"]: e["used_by"] for e in inventory.take(store).encoders}
    assert users["lenet5/f6 LETTERS"] == ["model photos version 1"]
    assert users["lenet5/f6 random:0"] == []


def test_an_image_that_one_encoder_refused_is_left_out(folder: Path, store: Store):
    first = run(folder, store, backbones=[C5], controls=False)
    stored = predictions(store, first.best)
    lost = next(i for split, i in stored if split == "test")
    prepared = work(folder, store, backbones=[C5, F6, BOTH], ensemble="average")
    refusing = next(e for e in prepared.encoders if e.label == "lenet5/f6 LETTERS")
    seen = EmbeddingFolder(store, refusing.key)
    seen.path.mkdir(parents=True)
    seen.refuse([(lost, "too_large", "for this test")])
    record = wiring.run(prepared)
    images = {r.encoder: r.test_images for r in record.results if r.role != "control"}
    everything = first.best.test_images
    assert images["lenet5/c5 LETTERS"] == everything
    assert images["lenet5/c5 LETTERS + lenet5/f6 LETTERS"] == everything - 1
    assert images["3 encoders"] == everything - 1
    (step, _) = [s for s in record.steps if s.stage == "average"]
    assert step.reason == (
        "new: 3 of 3 heads; 1 images that not all of them scored left out"
    )
    average = next(r for r in record.results if r.members and r.role != "control")
    assert ("test", lost) not in predictions(store, average)


def test_the_first_encoder_may_be_joint_where_near_duplicates_are_looked_for(
    folder: Path, store: Store
):
    record = run(folder, store, backbones=[BOTH], controls=False)
    assert record.split_report
    assert record.split_report.near_duplicates
    assert record.split_report.near_duplicates.encoder == record.best.encoder


@pytest.mark.parametrize(
    ("ensemble", "heads", "said"),
    [
        ("greedy", ["knn"], "averages heads, and this run has one"),
        ("average", ["knn", "lda"], "this run has one encoder"),
    ],
)
def test_an_ensemble_of_one_is_refused(
    folder: Path, store: Store, ensemble: str, heads: list[str], said: str
):
    with pytest.raises(InvalidSpec, match=said):
        work(folder, store, ensemble=ensemble, heads=heads)


def test_another_head_changes_the_average_and_says_so(folder: Path, store: Store):
    fields: dict[str, Any] = {"ensemble": "average", "controls": False}
    run(folder, store, backbones=[C5, F6], **fields)
    steps = wiring.plan(work(folder, store, backbones=[C5, F6, BOTH], **fields))
    (step,) = [step for step in steps if step.stage == "average"]
    assert (step.cached, step.reason) == (False, "evaluations changed")


def test_a_model_of_a_later_format_is_refused(folder: Path, store: Store):
    record = run(folder, store, controls=False)
    place = store.root / "models" / record.registered.model
    about = json.loads((place / "model.json").read_text())
    assert about["format"] == 1
    assert "members" not in about
    (place / "model.json").write_text(json.dumps({**about, "format": 3}))
    with pytest.raises(StoreError, match="formats 1 and 2, not 3"):
        open_model(place)


def test_a_member_predicts_with_the_weights_that_the_store_keeps(
    folder: Path, store: Store, tmp_path: Path
):
    import torch

    weights = tmp_path / "own.pth"
    torch.save(LeNet5(3).state_dict(), weights)
    run(folder, store, backbones=[[f"lenet5:weights={weights}", F6]], controls=False)
    image = next(folder.glob("flower/*"))

    def said() -> Prediction:
        return predict(index.load_model(store, "photos"), [image])[0]

    before = said()
    assert (before.label in ("china", "flower"), before.refused) == (True, None)
    torch.save(LeNet5(3).state_dict(), weights)
    assert said().confidence == before.confidence
    weights.unlink()
    assert said().confidence == before.confidence


def test_metrics_of_an_average_are_of_one_chosen_head(folder: Path, store: Store):
    record = run(folder, store, backbones=[C5, F6], ensemble="greedy", controls=False)
    (greedy,) = [r for r in record.results if r.members]
    place = store.root / "evaluations" / greedy.evaluation
    rows = tables.read(METRICS, place).to_pylist()
    assert {(r["split"], r["chosen"], r["family"]) for r in rows} == {
        ("folds", True, "greedy"),
        ("test", True, "greedy"),
    }
    validated = [r["metric"] for r in rows if r["split"] == "folds"]
    assert len(validated) == len(set(validated)) >= 4
    chosen = json.loads((place / "chosen.json").read_text())
    assert chosen["classes"] == ["china", "flower"]
    assert [m["times"] for m in chosen["members"]] == [m.times for m in greedy.members]

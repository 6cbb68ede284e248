"""Versions and the champion: what is new, what takes over, what a person decides."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.exhaustive import more
from tests.submissions import right, submitted
from tl_pipeline.config.specs import GateSpec
from tl_pipeline.errors import DamagedArtifact, InvalidSpec, UnknownName
from tl_pipeline.evaluation import operating_point
from tl_pipeline.registry import connection, index, model_folder, registration
from tl_pipeline.registry.registration import Registration
from tl_pipeline.store.artifacts import Store


def register(store: Store, *given: Any, **options: Any) -> Registration:
    return registration.register(store, submitted(store, *given, **options))


def champion(store: Store, name: str = "photos") -> int:
    found = index.find(store, name).champion
    assert found is not None
    return found.number


def versions(store: Store) -> list[tuple[int, str | None]]:
    return [(v.number, v.head) for v in index.find(store, "photos").versions]


# What is a version


def test_the_same_model_is_no_new_version(store: Store):
    """Another grid, or another name of the weights, gives another evaluation only."""
    first = register(store, "ridge", right(50))
    again = register(store, "ridge", right(50), grid="C=0.1/1/10")
    assert (first.version, again.version) == (1, 1)
    assert again.champion
    assert again.model == first.model
    assert versions(store) == [(1, "ridge")]


@pytest.mark.parametrize("change", [{"head": "lda"}, {"point": '{"error": 0.1}'}])
def test_what_predicts_otherwise_is_a_new_version(store: Store, change: dict[str, str]):
    register(store, "ridge", right(50))
    head = change.pop("head", "ridge")
    assert register(store, head, right(50), grid="2", **change).version == 2


def test_a_version_whose_folder_is_gone_gets_the_one_of_the_same_content(store: Store):
    first = register(store, "ridge", right(50))
    (store.root / "models" / first.model / "model.json").unlink()
    again = register(store, "ridge", right(50), grid="2")
    assert (again.version, again.model != first.model) == (1, True)
    (version,) = index.find(store, "photos").versions
    assert version.model == again.model


def test_the_name_of_the_operating_point_is_what_evaluation_says():
    assert model_folder._POINT == operating_point.FILE


def test_a_settled_registry_is_asked_without_mlflow(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    register(store, "ridge", right(50))
    register(store, "poor", right(50, wrong=5))
    database = (store.root / "mlflow.db").read_bytes()
    monkeypatch.setattr(connection, "_client", None)
    again = register(store, "poor", right(50, wrong=5))
    assert (again.version, again.champion) == (2, False)
    assert (store.root / "mlflow.db").read_bytes() == database


# Who is champion


def test_a_model_that_is_as_good_takes_over_and_a_worse_one_does_not(store: Store):
    register(store, "ridge", right(50, wrong=5))
    worse = register(store, "poor", right(50, wrong=6))
    assert (worse.version, worse.champion, worse.comparable) == (2, False, True)
    assert worse.reason.startswith(
        "-2.00% on 50 held-out images in common with version 1 [-6.00%, +0.00%]"
    )
    equal = register(store, "lda", right(50, wrong=5))
    assert (equal.version, equal.champion) == (3, True)
    assert champion(store) == 3


def evidence(store: Store, number: int) -> dict[str, Any]:
    file = registration.evidence_file(store, "photos", number)
    return json.loads(file.read_text())


def test_a_worse_model_is_refused_with_its_evidence(store: Store):
    register(store, "ridge", right(200, wrong=2))
    worse = register(store, "poor", right(200, wrong=40))
    assert (worse.version, worse.champion) == (2, False)
    said = "good -19.0 points on 200 images"
    assert worse.reason.endswith(f"; known to have a lower recall: {said}")
    found = evidence(store, 2)
    assert (found["promoted"], found["candidate"], found["champion"]) == (False, 2, 1)
    assert found["reason"] == worse.reason
    assert found["difference"]["value"] == pytest.approx(-0.19)
    rules = {one["rule"]: one["kept"] for one in found["findings"]}
    assert rules == {"accuracy": False, "classes": False}


def test_a_class_that_gets_worse_is_refused_though_all_in_all_it_is_better(
    store: Store,
):
    """20 of 30 bad images are lost, 25 of 170 good ones won."""
    bad = [f"image {n}" for n in range(30)]
    before = {f"image {n}": not 100 <= n < 125 for n in range(200)}
    after = {f"image {n}": n >= 20 for n in range(200)}
    register(store, "ridge", before, bad=bad)
    other = register(store, "lda", after, bad=bad)
    assert not other.champion
    assert other.reason.startswith("+2.50% on 200 held-out images")
    assert "known to have a lower recall: bad -66.7 points on 30 images" in other.reason
    off = register(store, "lda2", after, bad=bad, gate=GateSpec(classes=False))
    assert off.champion
    assert evidence(store, 3)["promoted"]


def test_the_gate_judges_by_the_metric_of_the_run(store: Store):
    """20 of 30 bad images are lost, 25 of 170 good ones won: by costs it is worse."""
    bad = [f"image {n}" for n in range(30)]
    before = {f"image {n}": not 100 <= n < 125 for n in range(200)}
    after = {f"image {n}": n >= 20 for n in range(200)}
    costs = {"bad": {"good": 10.0}}
    rules = {"gate": GateSpec(classes=False), "metric": "cost", "costs": costs}
    register(store, "ridge", before, bad=bad, **rules)
    other = register(store, "lda", after, bad=bad, **rules)
    assert not other.champion
    assert other.reason.startswith("-0.8750 by cost on 200 held-out images")
    first = evidence(store, 2)["findings"][0]
    assert (first["rule"], first["kept"]) == ("cost", False)


@pytest.mark.parametrize(
    ("gate", "champion"),
    [
        (GateSpec(), False),  # one image fewer is right
        (GateSpec(margin=0.05), True),
        (GateSpec(margin=0.01), False),  # it may be 2.5 points worse
        (GateSpec(margin=0.05, class_drop=0.004), False),
    ],
)
def test_a_margin_lets_in_what_is_not_known_to_be_worse(
    store: Store, gate: GateSpec, champion: bool
):
    register(store, "ridge", right(200, wrong=4))
    after = right(200, wrong=6) | {"image 197": True}
    assert register(store, "lda", after, gate=gate).champion == champion


def test_versions_are_compared_as_the_gate_would(store: Store):
    register(store, "ridge", right(200, wrong=2))
    register(store, "poor", right(200, wrong=40))
    found = registration.compare(store, "photos", 1, 2, GateSpec())
    assert found.promote
    assert found.evidence is not None
    assert found.evidence.difference.value == pytest.approx(0.19)
    costs = {"good": {"bad": 3.0}}
    found = registration.compare(store, "photos", 1, 2, GateSpec(), "cost", costs)
    assert found.evidence is not None
    assert found.evidence.difference.value == pytest.approx(3 * 0.19)
    with pytest.raises(UnknownName, match="7"):
        registration.compare(store, "photos", 1, 7, GateSpec())


def test_a_bad_night_makes_no_champion_and_a_good_one_undoes_what_one_did(store: Store):
    """Nine of ten files are gone for a night, and come back."""
    register(store, "poor", right(50, wrong=10), train=200)
    good = register(store, "good", right(50, wrong=3), train=200)
    assert (good.version, good.champion) == (2, True)
    bad = register(store, "bad", right(5), train=20)
    assert (bad.version, bad.champion, bad.comparable) == (3, False, False)
    assert bad.reason == (
        "it is not compared with version 2, the champion: the dataset shrank from 250 "
        "to 25 images to learn from. If that is as it should be: `tl models promote "
        "photos 3`"
    )
    assert champion(store) == 2
    again = register(store, "good", right(50, wrong=3), train=200)
    assert (again.version, again.champion) == (2, True)
    assert again.reason.endswith(
        "+14.00% on 50 held-out images in common with version 1 [+6.00%, +24.00%]"
    )


def test_a_champion_of_a_bad_night_goes_with_the_next_good_one(store: Store):
    """An older version made it one; the good model is cached, the decision is not."""
    register(store, "good", right(50, wrong=3), train=200)
    register(store, "bad", right(5), train=20)
    client = connection._client(connection.uri(store))
    client.set_registered_model_alias("photos", "champion", "2")
    client.delete_registered_model_tag("photos", "champions")  # nor had it any history
    assert champion(store) == 2
    again = register(store, "good", right(50, wrong=3), train=200)
    assert (again.version, again.champion) == (1, True)
    assert "+0.00% on 5 held-out images in common with version 2" in again.reason
    assert champion(store) == 1


@pytest.mark.parametrize(
    ("validation", "options", "said"),
    [
        (right(50, first=50), {}, "only 0 of 50 held-out images scored both"),
        *more((right(50, first=26), {}, "only 24 of 50 held-out images scored both")),
        (right(50), {"train": 84}, "shrank from 150 to 134 images to learn from"),
        (
            right(50),
            {"classes": ("good", "new")},
            "1 of its 2 classes are gone (bad)",
        ),
    ],
)
def test_what_cannot_be_compared_is_not_promoted_and_says_why(
    store: Store, validation: dict[str, bool], options: dict[str, Any], said: str
):
    register(store, "ridge", right(50, wrong=10))
    other = register(store, "better", validation, **options)
    assert (other.version, other.champion, other.comparable) == (2, False, False)
    assert said in other.reason
    assert champion(store) == 1


@pytest.mark.parametrize(
    ("validation", "options"),
    [
        (right(50, first=25), {}),  # half of them are left
        (right(50), {"train": 85}),  # nine tenths of all
        *more(
            (right(300), {"train": 700}),  # it grew
            (right(50), {"classes": ("bad", "good", "new")}),
        ),
    ],
)
def test_what_can_just_be_compared_is(
    store: Store, validation: dict[str, bool], options: dict[str, Any]
):
    register(store, "ridge", right(50, wrong=10))
    other = register(store, "better", validation, **options)
    assert (other.version, other.champion, other.comparable) == (2, True, True)


def test_a_champion_whose_evaluation_is_gone_stays(store: Store):
    first = submitted(store, "ridge", right(50))
    registration.register(store, first)
    folder = store.path(first.best)
    folder.rename(folder.with_name("elsewhere"))
    other = register(store, "better", right(50))
    assert (other.champion, other.comparable) == (False, False)
    assert "its evaluation is not in the store any more" in other.reason


def test_labels_of_today_count_for_both(store: Store):
    """The champion was right by labels that were wrong."""
    register(store, "old", right(50))
    made = register(store, "new", right(50), bad=[f"image {n}" for n in range(10)])
    assert "+20.00% on 50 held-out images in common" in made.reason
    assert made.champion


def test_the_latest_evaluation_of_the_champion_counts(store: Store):
    """It was scored anew on the images of last night, which are compared by."""
    register(store, "ridge", right(50))
    register(store, "ridge", right(50, wrong=1, first=40), grid="2")
    other = register(store, "lda", right(50, first=40))
    assert "+2.00% on 50 held-out images in common with version 1" in other.reason


# What a person decides


def test_promote_by_hand_is_kept_until_something_newer_is_as_good(store: Store):
    register(store, "ridge", right(50))
    register(store, "poor", right(50, wrong=5))
    registration.promote(store, "photos", 2, "it is smaller")
    assert champion(store) == 2
    known = register(store, "ridge", right(50))
    assert (known.version, known.champion, known.comparable) == (1, False, True)
    assert "version 2 was chosen by hand" in known.reason
    assert "(it is smaller)" in known.reason
    assert "`tl models promote photos 1`" in known.reason
    newer = register(store, "lda", right(50))
    assert (newer.version, newer.champion) == (3, True)


def test_an_alias_set_in_mlflow_is_a_persons_choice(store: Store):
    register(store, "ridge", right(50))
    register(store, "lda", right(50))
    client = connection._client(connection.uri(store))
    client.set_registered_model_alias("photos", "champion", "1")
    again = register(store, "lda", right(50))
    assert (again.version, again.champion) == (2, False)
    assert "(the alias was set in MLflow)" in again.reason
    assert champion(store) == 1


def test_rollback_goes_back_one_champion_at_a_time(store: Store):
    for head in ("one", "two", "three"):
        register(store, head, right(50))
    register(store, "poor", right(50, wrong=5))
    assert champion(store) == 3
    registration.roll_back(store, "photos", "it is slow")
    assert champion(store) == 2
    history = index.find(store, "photos").history
    assert history[-1].reason == "rolled back from version 3: it is slow"
    assert not register(store, "three", right(50)).champion
    registration.roll_back(store, "photos", "")
    assert champion(store) == 1
    with pytest.raises(InvalidSpec, match="no earlier champion of photos is known"):
        registration.roll_back(store, "photos", "")


def test_rollback_after_promote_by_hand_undoes_it(store: Store):
    register(store, "one", right(50))
    register(store, "poor", right(50, wrong=5))
    registration.promote(store, "photos", 2, "by hand")
    registration.roll_back(store, "photos", "")
    assert champion(store) == 1


def test_only_what_is_there_can_be_promoted(store: Store):
    first = register(store, "ridge", right(50))
    register(store, "lda", right(50))
    with pytest.raises(
        UnknownName, match=r"version of model 'photos' '7'.*Known: 1, 2"
    ):
        registration.promote(store, "photos", 7, "by hand")
    with pytest.raises(UnknownName, match="Did you mean 'photos'"):
        registration.promote(store, "photo", 1, "by hand")
    (store.root / "models" / first.model / "model.json").unlink()
    with pytest.raises(DamagedArtifact, match=r"version 1 of photos cannot be used"):
        registration.promote(store, "photos", 1, "by hand")


def test_a_champion_whose_folder_is_gone_says_what_helps(store: Store):
    first = register(store, "ridge", right(50))
    (store.root / "models" / first.model).rename(store.root / "models" / ".gone")
    with pytest.raises(DamagedArtifact) as error:
        index.load_model(store, "photos")
    assert str(error.value) == (
        "version 1 of photos, the champion, cannot be used: "
        f"{store.root / 'models' / first.model} is gone or damaged. A run on the same "
        "images makes it again; `tl models rollback photos` or `tl models promote "
        "photos VERSION` chooses another version"
    )


# What the registry shows


def test_candidates_are_child_runs_with_metrics_on_the_dataset(store: Store):
    given = submitted(store, "ridge", right(50, wrong=5), others=("lda", "svm"))
    registration.register(store, given)
    client = connection._client(connection.uri(store))
    experiment = client.get_experiment_by_name("photos")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    children = {r.data.params["head"]: r for r in runs if r is not parent}
    assert set(children) == {"ridge", "lda", "svm"}
    for run in children.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == "FINISHED"
        (given_input,) = run.inputs.dataset_inputs
        assert given_input.dataset.name == "photos"
        assert given_input.dataset.digest == given.manifest
    best = children["ridge"]
    assert best.data.tags["role"] == "best"
    assert best.data.metrics["test_accuracy"] == 0.9
    assert parent.data.params == {"seed": "0", "search": "s"}
    (made,) = client.search_logged_models([experiment.experiment_id])
    assert made.source_run_id == best.info.run_id
    assert {m.key: m.value for m in made.metrics}["validation_accuracy"] == 0.9
    assert {m.dataset_digest for m in made.metrics} == {given.manifest}
    version = client.get_model_version_by_alias("photos", "champion")
    assert version.run_id == best.info.run_id
    assert made.tags["mlflow.modelVersions"] == '[{"name": "photos", "version": 1}]'
    assert version.source == made.artifact_location
    assert Path(made.artifact_location[7:], "MLmodel").is_file()


def test_a_new_candidate_that_is_worse_is_shown_beside_the_same_version(store: Store):
    register(store, "ridge", right(50))
    again = register(store, "ridge", right(50), others=("lda",))
    assert (again.version, again.champion) == (1, True)
    client = connection._client(connection.uri(store))
    experiment = client.get_experiment_by_name("photos")
    found = client.search_runs([experiment.experiment_id], "params.head = 'lda'")
    assert len(found) == 1

"""How a configuration is chosen: by folds, in rounds, by chance, and then refitted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tl_pipeline import heads
from tl_pipeline.config.specs import HeadConfig, HeadSpec, RunSpec, SearchSpec
from tl_pipeline.errors import DatasetError, InvalidSpec
from tl_pipeline.heads import HEADS, cross_validation, folds, grids, search
from tl_pipeline.heads.fitting import build
from tl_pipeline.heads.folds import divided, stratified_group_folds
from tl_pipeline.heads.grids import LabelledRows
from tl_pipeline.heads.search import Rung, candidates, ranked, rungs
from tl_pipeline.pipeline import wiring
from tl_pipeline.pipeline.wiring import Work
from tl_pipeline.runs.planning import Step
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.embeddings import Places
from tl_pipeline.store.tables import METRICS, PREDICTIONS, SEARCH, TRIAL


def rows(
    n: int = 240, width: int = 8, classes: int = 3, groups: int = 0
) -> LabelledRows:
    chance = np.random.default_rng(0)
    y = np.arange(n) % classes
    x = chance.normal(size=(n, width)) + np.eye(classes, width)[y] * 2
    names = np.array([f"class {k}" for k in y])
    of = np.arange(n) // (n // groups) if groups else None
    return LabelledRows(x.astype(np.float32), names, None, of)


def grid(text: str) -> list[HeadConfig]:
    return list(heads.grid(heads.complete(HeadSpec.parse(text))))


# --- folds ---------------------------------------------------------------------------


def test_groups_are_left_out_whole_and_every_class_stays_learnable():
    y = np.repeat([0, 1, 2], 40)
    groups = np.arange(120) // 4
    part = stratified_group_folds(y, 5, 0, groups)
    assert set(part) == set(range(5))
    for group in np.unique(groups):
        assert len(set(part[groups == group])) == 1
    for fold in range(5):
        assert set(y[part != fold]) == {0, 1, 2}


def test_a_class_of_one_group_is_never_left_out():
    y = np.array([0] * 10 + [1] * 10 + [2] * 4)
    groups = np.array([*range(20), *[20] * 4])
    part = stratified_group_folds(y, 4, 0, groups)
    assert (part[y == 2] == -1).all()
    assert (part[y != 2] >= 0).all()


def test_groups_of_one_row_each_are_as_if_there_were_none():
    y = np.arange(30) % 3
    np.testing.assert_array_equal(
        stratified_group_folds(y, 3, 7), stratified_group_folds(y, 3, 7, np.arange(30))
    )


HOLDING = [name for name, row in HEADS.items() if row.takes_groups]


def test_exactly_the_heads_that_say_so_take_groups_and_weights():
    from sklearn.utils.validation import has_fit_parameter

    for name, row in HEADS.items():
        config = grid(name)[0]
        model = build(config, 0, Places(2) if row.takes_places else None)
        last = getattr(model, "steps", [("", model)])[-1][1]
        assert has_fit_parameter(last, "groups") == row.takes_groups, name
        assert has_fit_parameter(last, "sample_weight") == row.takes_weights, name
        assert hasattr(last, "patience") == row.stops_early, name


@pytest.mark.parametrize("name", HOLDING)
def test_a_head_that_holds_rows_out_is_told_their_groups(name: str):
    """Eight copies of each row: alone they tell nothing new, so groups matter."""
    few = rows(30)
    copied = LabelledRows(
        np.repeat(few.x, 8, axis=0),
        np.repeat(few.labels, 8),
        None,
        np.repeat(np.arange(30), 8),
    )
    config = grid(name)[0]
    told = next(grids.fit([config], 0, copied)).estimator
    alone = LabelledRows(copied.x, copied.labels)
    untold = next(grids.fit([config], 0, alone)).estimator
    assert not np.allclose(told.predict_proba(few.x), untold.predict_proba(few.x))


# --- fitting a grid ------------------------------------------------------------------

TOGETHER = [
    "logistic:C=0.001/0.1/1",
    "ridge:alpha=1/100",
    "ridge:class_weight=balanced",
]
ALONE = [
    "logistic:C=0.01/1,class_weight=balanced",
    "logistic:pca=4",
    "knn:k=3/9",
    "lda",
]


@pytest.mark.parametrize("text", TOGETHER + ALONE)
def test_fits_of_a_grid_are_those_of_each_configuration_by_itself(text: str):
    there, configs = rows(), grid(text)
    part = stratified_group_folds(np.unique(there.labels, return_inverse=True)[1], 3, 0)
    for parts in (None, part):
        found = {(fit.at, fit.fold): fit for fit in grids.fit(configs, 0, there, parts)}
        assert len(found) == len(configs) * (1 if parts is None else 3)
        for (at, fold), fit in found.items():
            learned = there if fold is None else there.take(part != fold)
            model = build(configs[at], 0).fit(learned.x, learned.labels)
            np.testing.assert_allclose(
                fit.estimator.predict_proba(there.x),
                model.predict_proba(there.x),
                atol=2e-3,
            )


# --- out of fold ---------------------------------------------------------------------


def test_cross_validation_scores_as_scikit_learn_does():
    there = rows(groups=40)
    configs = grid("logistic:C=0.01/1")
    targets = np.unique(there.labels, return_inverse=True)[1]
    part = divided(targets, 4, 3, there.groups)
    found = dict(cross_validation.cross_validated(configs, 3, there, part))
    cuts = StratifiedGroupKFold(4, shuffle=True, random_state=3)
    for at, config in enumerate(configs):
        expected = []
        for learned, held in cuts.split(there.x, targets, there.groups):
            model = make_pipeline(
                StandardScaler(), LogisticRegression(C=config.params["C"])
            )
            model.fit(there.x[learned], there.labels[learned])
            expected.append(model.score(there.x[held], there.labels[held]))
        assert [one.score().accuracy for one in found[at]] == pytest.approx(expected)
        for one in found[at]:
            assert (part[one.rows] == one.fold).all()
            assert (there.labels[one.rows] == one.labels).all()


def test_few_rows_have_more_folds_and_of_many_one_part_is_held_out():
    for images, number in ((499, 10), (500, 5), (199_999, 5)):
        part = divided(np.arange(images) % 7, None, 0)
        assert set(part.tolist()) == set(range(number))
    part = divided(np.arange(200_000) % 7, None, 0)
    assert set(part.tolist()) == {-1, 0}
    assert (part == 0).sum() == 40_000


def test_a_class_that_no_fold_can_learn_is_counted_as_wrong():
    there = rows(60)
    held = LabelledRows(
        there.x, np.where(there.labels == "class 0", "unknown", there.labels)
    )
    ((_, (one,)),) = cross_validation.held_out(grid("logistic:C=1"), 0, there, held)
    score = one.score()
    assert score.accuracy < 0.7
    assert score.log_loss > 5  # a third of the rows cost -log of the least number


def test_what_cannot_be_divided_says_so():
    there, part = rows(3), divided(np.arange(3), 5, 0)
    with pytest.raises(ValueError, match="no class has two images"):
        list(cross_validation.cross_validated(grid("logistic:C=1"), 0, there, part))


# --- which configurations ------------------------------------------------------------


def test_rounds_of_halving_begin_with_a_part_and_end_with_everything():
    assert rungs(27, 27_000, 10) == [
        Rung(27, 3000),
        Rung(9, 9000),
        Rung(3, 27_000),
    ]
    assert rungs(27, 500, 43) == [Rung(27, 500)]
    assert rungs(2, 10_000, 2) == [Rung(2, 10_000)]


def test_ranks_go_by_accuracy_then_by_log_loss_then_in_order():
    assert ranked([(0.8, 0.5), (0.9, 0.9), (0.9, 0.4), (0.9, 0.4)]) == [2, 3, 1, 0]


def drawn(text: str, configurations: int, seed: int = 0) -> list[HeadConfig]:
    how = SearchSpec(strategy="random", configurations=configurations)
    return candidates(heads.complete(HeadSpec.parse(text)), how, seed)


def test_a_wider_random_search_begins_with_the_narrower_one():
    text = "mlp:hidden=64/128/256,dropout=0.2/0.5,learning_rate=0.001/0.01"
    few, many = drawn(text, 4), drawn(text, 9)
    assert many[:4] == few
    assert len({heads.label(config) for config in many}) == 9
    assert len(drawn(text, 1000)) == 12
    assert drawn(text, 4, seed=1) != few


def test_ranges_are_drawn_from_evenly_over_their_orders_of_magnitude():
    found = [c.params["C"] for c in drawn("logistic:C=0.0001..100", 300)]
    assert min(found) >= 1e-4
    assert max(found) <= 100
    middle = np.median(np.log10(np.array(found, float)))
    assert -1.6 < middle < -0.4
    hidden = {c.params["hidden"] for c in drawn("mlp:hidden=16..64", 40)}
    assert all(isinstance(units, int) and 16 <= units <= 64 for units in hidden)
    assert [c.params["C"] for c in drawn("logistic:C=0.0001..100", 5)] == found[:5]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("logistic:C=1..0.1", "the smaller first"),
        ("logistic:C=a..b", "no range"),
        ("logistic:C=0..1", "must lie between"),
        ("mlp:batch_norm=0..1", "no range"),
        ("knn:k=1.5..3", "whole number"),
    ],
)
def test_a_wrong_range_is_refused(text: str, said: str):
    with pytest.raises(InvalidSpec, match=said):
        heads.complete(HeadSpec.parse(text))


def test_a_range_without_a_random_search_is_refused_before_anything_is_done(
    folder: Path, tmp_path: Path
):
    spec = RunSpec.model_validate(
        {"dataset": str(folder), "heads": ["logistic:C=0.1..1"]}
    )
    with pytest.raises(InvalidSpec, match="strategy=random"):
        wiring.prepare(spec, Store.open(tmp_path / "store"))


@pytest.mark.parametrize(
    "text",
    [
        "validation",
        "cross_validation",
        "cross_validation:folds=3",
        "validation:refit=false",
        "validation:strategy=random,configurations=7",
    ],
)
def test_a_search_is_written_as_it_is_read(text: str):
    assert SearchSpec.parse(SearchSpec.parse(text).short()) == SearchSpec.parse(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("guess", "Known parameters"),
        ("cross_validation:folds=1", "Known parameters"),
        ("validation:k=3", "Known parameters"),
    ],
)
def test_an_impossible_search_is_refused(text: str, said: str):
    with pytest.raises(InvalidSpec, match=said):
        SearchSpec.parse(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("validation:folds=5", "folds goes with cross_validation"),
        ("cross_validation:refit=false", "refit=false goes with validation"),
    ],
)
def test_what_does_not_go_together_is_refused_but_read_in_old_records(
    folder: Path, store: Store, text: str, said: str
):
    search = SearchSpec.parse(text)
    spec = RunSpec(dataset=str(folder), search=search)
    assert RunSpec.model_validate_json(spec.model_dump_json()).search == search
    with pytest.raises(InvalidSpec, match=said):
        wiring.prepare(spec, store)


# --- in a run ------------------------------------------------------------------------


def work(folder: Path, root: Path, how: str, *wanted: str) -> Work:
    spec = RunSpec.model_validate(
        {
            "dataset": str(folder),
            "heads": wanted,
            "search": how,
            "controls": False,
        }
    )
    return wiring.prepare(spec, Store.open(root))


def steps(record: RunRecord, stage: str) -> list[Step]:
    return [step for step in record.steps if step.stage == stage]


def searched(record: RunRecord, root: Path) -> list[dict[str, Any]]:
    (step,) = steps(record, "train")
    place = root / "searches" / step.keys["search"]
    return tables.read(SEARCH, place).to_pylist()


def test_a_wider_grid_tries_only_what_is_new(folder: Path, tmp_path: Path):
    root = tmp_path / "store"
    how = "cross_validation:folds=3"
    first = wiring.run(work(folder, root, how, "logistic:C=0.01/0.1"))
    found = searched(first, root)
    assert [row["folds"] for row in found] == [3, 3]
    assert sum(row["chosen"] for row in found) == 1
    wider = work(folder, root, how, "logistic:C=0.01/0.1/1")
    (planned,) = [step for step in wiring.plan(wider) if step.stage == "train"]
    assert planned.units == 1
    assert "1 of 3 configurations" in planned.reason
    second = wiring.run(wider)
    assert len(list((root / "trials").iterdir())) == 3
    again = searched(second, root)
    before = [row["trial"] for row in found]
    assert [row["trial"] for row in again[:2]] == before
    # what was chosen is fitted once, on all rows
    (head,) = {steps(record, "train")[0].keys["fitted"] for record in (first, second)}
    assert [place.name for place in (root / "heads").iterdir()] == [head]
    assert all(step.cached for step in wiring.plan(wider))


def test_the_choice_is_that_of_the_trials(folder: Path, tmp_path: Path):
    root = tmp_path / "store"
    wanted = "logistic:C=0.000001/0.1"
    record = wiring.run(work(folder, root, "cross_validation:folds=4", wanted))
    found = searched(record, root)
    for row in found:
        place = root / "trials" / row["trial"]
        trial = tables.read(TRIAL, place).to_pydict()
        mean = np.average(trial["accuracy"], weights=trial["rows"])
        assert row["accuracy"] == pytest.approx(mean)
    best = min(found, key=lambda row: (-row["accuracy"], row["log_loss"]))
    assert best["chosen"]
    assert record.best.head == best["head"]


def test_halving_ends_with_few_configurations_on_all_images(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(search, "_LEAST", 2)
    root = tmp_path / "store"
    wanted = "logistic:C=0.0001/0.001/0.01/0.1/1"
    for how in ("validation", "cross_validation"):
        record = wiring.run(work(folder, root, f"{how}:strategy=halving", wanted))
        found = searched(record, root)
        assert [row["round"] for row in found] == [0, 0, 0, 0, 0, 1, 1]
        sizes = {row["round"]: row["images"] for row in found}
        assert sizes[0] == -(-sizes[1] // 3)
        last = [row for row in found if row["round"] == 1]
        assert sum(row["chosen"] for row in last) == 1
        assert record.best.head in {row["head"] for row in last}
        assert all(
            step.cached
            for step in wiring.plan(
                work(folder, root, f"{how}:strategy=halving", wanted)
            )
        )


def test_refit_learns_from_validation_before_test_and_not_before_validation(
    folder: Path, tmp_path: Path
):
    root = tmp_path / "store"
    without = "validation:refit=false"
    plain = wiring.run(work(folder, root, without, "logistic:C=0.1"))
    refit = wiring.run(work(folder, root, "validation", "logistic:C=0.1"))
    store = Store.open(root)

    def head(record: RunRecord) -> dict[str, Any]:
        place = root / "evaluations" / record.best.evaluation / "chosen.json"
        return store.provenance(
            Artifact("heads", json.loads(place.read_text())["head"], "")
        )

    assert head(plain)["inputs"] != head(refit)["inputs"]
    assert head(plain)["params"] == head(refit)["params"]

    def of(record: RunRecord, split: str) -> list[Any]:
        place = root / "evaluations" / record.best.evaluation
        found = tables.read(PREDICTIONS, place).to_pylist()
        return [row["probabilities"] for row in found if row["split"] == split]

    assert of(plain, "validation") == of(refit, "validation")
    assert of(plain, "test") != of(refit, "test")
    place = root / "evaluations" / refit.best.evaluation
    rows = tables.read(METRICS, place).to_pylist()
    assert {(row["split"], row["chosen"]) for row in rows} == {
        ("train", True),
        ("validation", True),
        ("test", True),
    }


def test_images_that_cannot_be_divided_are_said_by_the_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(folds, "divided", lambda *_: np.array([-1]))
    with pytest.raises(DatasetError, match="cannot be cross-validated"):
        wiring.run(work(folder, tmp_path / "s", "cross_validation", "logistic:C=1"))

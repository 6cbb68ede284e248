"""Scores as scikit-learn has them; intervals as known values and resampling say."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    log_loss,
    matthews_corrcoef,
    precision_score,
    recall_score,
    roc_auc_score,
    top_k_accuracy_score,
)

from tl_pipeline.evaluation.costs import Costs
from tl_pipeline.evaluation.metrics import METRICS, decision_scores, scores
from tl_pipeline.evaluation.predicted_rows import PredictedRows
from tl_pipeline.score import Score

CASES = 150
SIGNED = {"mcc", "kappa"}


def score(
    labels: np.ndarray,
    classes: list[str],
    probabilities,
    seed: int = 0,
    units=None,
    costs: Costs = {"c0": {"c1": 3.0}},  # noqa: B006 - read only
) -> dict[str, Score]:
    units = np.arange(len(labels)) if units is None else units
    rows = PredictedRows(labels, classes, probabilities, units, costs)
    found = scores(rows, seed)
    ranked = {"roc_auc", "average_precision"}
    some = sum(name in set(labels) for name in classes) > 0
    some &= len(set(labels)) > 1
    expected = [
        metric
        for metric in METRICS
        if (metric != "top_5_accuracy" or len(classes) > 5)
        and (metric not in ranked or some)
    ]
    assert list(found) == expected
    return found


def problem(seed: int, rows: int, k: int, skill: float = 1.0):
    """Labels, class names, and probabilities that are right more often than not."""
    chance = np.random.default_rng(seed)
    classes = [f"c{i}" for i in range(k)]
    truth = chance.integers(0, k, rows)
    logits = chance.normal(size=(rows, k))
    logits[np.arange(rows), truth] += skill
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return np.array(classes)[truth], classes, probabilities.astype(np.float32)


problems = st.builds(
    problem, st.integers(0, 10_000), st.integers(1, 60), st.integers(2, 6)
)


@settings(deadline=None, max_examples=40)
@given(problems)
def test_scores_are_those_of_scikit_learn(case):
    labels, classes, probabilities = case
    predicted = np.array(classes)[probabilities.argmax(axis=1)]
    # scikit-learn warns of predicted labels that are nowhere true, and of a single one
    plain = set(predicted) <= set(labels) and len(set(labels)) > 1
    found = score(labels, classes, probabilities)
    assert found["accuracy"].value == pytest.approx(accuracy_score(labels, predicted))
    assert found["macro_f1"].value == pytest.approx(
        f1_score(labels, predicted, average="macro")
    )
    recalls = [np.mean(predicted[labels == name] == name) for name in set(labels)]
    assert found["balanced_accuracy"].value == pytest.approx(np.mean(recalls))
    if plain:
        assert found["balanced_accuracy"].value == pytest.approx(
            balanced_accuracy_score(labels, predicted)
        )
    assert found["log_loss"].value == pytest.approx(
        log_loss(labels, probabilities, labels=classes), rel=1e-4
    )


def test_every_score_is_that_of_scikit_learn_in_hundreds_of_cases():
    seen = dict.fromkeys(METRICS, 0)
    for seed in range(CASES):
        rows, k = 2 + seed % 58, 2 + seed % 7
        labels, classes, wide = problem(seed, rows, k, skill=seed % 4)
        wide = wide.astype(np.float64)
        wide /= wide.sum(axis=1, keepdims=True)
        predicted = np.array(classes)[wide.argmax(axis=1)]
        both = (labels, predicted)
        prices = 9 * np.random.default_rng(seed).random((k, k)) * (1 - np.eye(k))
        costs = {
            of: {at: prices[row, column] for column, at in enumerate(classes)}
            for row, of in enumerate(classes)
        }
        errors = confusion_matrix(*both, labels=classes)

        def averaged(
            score: Callable[..., Any], average: str, both: tuple[Any, Any] = both
        ) -> float:
            return score(*both, average=average, zero_division=0)

        expected = {
            "accuracy": accuracy_score(*both),
            "macro_precision": averaged(precision_score, "macro"),
            "macro_recall": averaged(recall_score, "macro"),
            "macro_f1": averaged(f1_score, "macro"),
            "weighted_precision": averaged(precision_score, "weighted"),
            "weighted_f1": averaged(f1_score, "weighted"),
            "mcc": matthews_corrcoef(*both),
            "cost": (errors * prices).sum() / rows,
            "brier": brier_score_loss(
                labels, wide, labels=classes, scale_by_half=False
            ),
            "log_loss": log_loss(labels, wide, labels=classes),
        }
        assert averaged(recall_score, "weighted") == pytest.approx(expected["accuracy"])
        if set(labels) | set(predicted) > {labels[0]}:
            expected["kappa"] = cohen_kappa_score(*both)
        if set(predicted) <= set(labels):
            expected["balanced_accuracy"] = balanced_accuracy_score(*both)
        if k > 5:
            expected["top_5_accuracy"] = top_k_accuracy_score(
                labels, wide, k=5, labels=classes
            )
        if k > 2 and set(labels) == set(classes):
            expected["roc_auc"] = roc_auc_score(labels, wide, multi_class="ovr")
            hot = labels[:, None] == np.array(classes)
            expected["average_precision"] = average_precision_score(hot, wide)
        if k == 2 and len(set(labels)) == 2:
            expected["roc_auc"] = roc_auc_score(labels == "c1", wide[:, 1])
        found = score(labels, classes, wide, costs=costs)
        for metric, value in expected.items():
            seen[metric] += 1
            assert found[metric].value == pytest.approx(value, abs=1e-9), metric
    assert min(n for metric, n in seen.items() if metric != "ece") > 15


@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_hold_the_truth_as_often_as_they_say(grouped: bool):
    """Of groups of four rows that are alike, and of independent rows."""
    chance = np.random.default_rng(3)

    def sample(groups: int, seed: int) -> dict[str, Score]:
        units = np.repeat(np.arange(groups), 4)
        rows, k = len(units), 6
        truth = chance.integers(0, k, rows)
        common = chance.normal(size=groups)[units] if grouped else np.zeros(rows)
        logits = 1.3 * chance.normal(size=(rows, k))
        logits[np.arange(rows), truth] += 1.6 + 1.2 * common
        proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        of = units if grouped else np.arange(rows)
        classes = [f"c{at}" for at in range(k)]
        return score(np.array(classes)[truth], classes, proba, seed=seed, units=of)

    truth = {metric: one.value for metric, one in sample(10_000, 0).items()}
    drawn = [sample(60, seed) for seed in range(100)]
    for metric in set(truth) - {"ece"}:
        held = [d[metric].low <= truth[metric] <= d[metric].high for d in drawn]
        assert np.mean(held) >= 0.87, metric  # 100 draws: four deviations below 0.95
        width = np.mean([d[metric].high - d[metric].low for d in drawn])
        spread = np.std([d[metric].value for d in drawn])
        assert width < 6 * spread, metric


@settings(deadline=None, max_examples=40)
@given(problems, st.integers(1, 5))
def test_a_label_that_the_head_cannot_name_is_an_error(case, strangers: int):
    labels, classes, probabilities = case
    labels = np.concatenate([labels, ["stranger"] * strangers])
    extra = np.full((strangers, len(classes)), 1 / len(classes), np.float32)
    probabilities = np.concatenate([probabilities, extra])
    predicted = np.array(classes)[probabilities.argmax(axis=1)]
    found = score(labels, classes, probabilities)
    assert found["accuracy"].value == pytest.approx(accuracy_score(labels, predicted))
    assert found["macro_f1"].value == pytest.approx(
        f1_score(labels, predicted, average="macro")
    )
    recalls = [np.mean(predicted[labels == name] == name) for name in set(labels)]
    assert found["balanced_accuracy"].value == pytest.approx(np.mean(recalls))
    known = log_loss(labels[:-strangers], probabilities[:-strangers], labels=classes)
    worst = -np.log(np.finfo(np.float32).eps)
    total = (known * (len(labels) - strangers) + worst * strangers) / len(labels)
    assert found["log_loss"].value == pytest.approx(total, rel=1e-4)


@settings(deadline=None, max_examples=40)
@given(problems)
def test_every_score_is_inside_its_range_and_its_interval_is_ordered(case):
    others = score(*case)
    ece = others.pop("ece")
    assert ece.low is ece.high is None
    assert 0 <= ece.value <= 1
    for metric, found in others.items():
        assert found.low is not None
        assert found.high is not None
        assert (-1 if metric in SIGNED else 0) <= found.low <= found.high
        if metric in {"accuracy", "log_loss", "brier"}:
            assert found.low <= found.value <= found.high
        if metric not in {"log_loss", "brier", "cost"}:
            assert found.high <= 1


@pytest.mark.parametrize(
    ("right", "rows", "low", "high"),
    [
        (90, 100, 0.8256, 0.9448),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 1, 0.2065, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I
        (15, 148, 0.0624, 0.1605),
    ],
)
def test_the_interval_of_accuracy_is_wilsons(right: int, rows: int, low, high):
    labels = np.array(["a"] * right + ["b"] * (rows - right))
    probabilities = np.tile(np.float32([0.9, 0.1]), (rows, 1))
    found = score(labels, ["a", "b"], probabilities)["accuracy"]
    assert found.value == pytest.approx(right / rows)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_the_multinomial_bootstrap_is_the_bootstrap_over_rows():
    labels, classes, probabilities = problem(3, rows=600, k=4)
    predicted = np.array(classes)[probabilities.argmax(axis=1)]
    chance = np.random.default_rng(11)
    drawn = {"balanced_accuracy": [], "macro_f1": []}
    for _ in range(1000):
        sample = chance.integers(0, len(labels), len(labels))
        truth, given = labels[sample], predicted[sample]
        drawn["balanced_accuracy"].append(balanced_accuracy_score(truth, given))
        drawn["macro_f1"].append(f1_score(truth, given, average="macro"))
    found = score(labels, classes, probabilities)
    for metric, values in drawn.items():
        low, high = np.quantile(values, [0.025, 0.975])
        assert high - low > 0.05  # else 0.01 would say nothing
        assert found[metric].low == pytest.approx(low, abs=0.01)
        assert found[metric].high == pytest.approx(high, abs=0.01)


def test_the_interval_of_log_loss_is_the_normal_one_of_a_mean():
    labels, classes, probabilities = problem(5, rows=200, k=3)
    column = np.searchsorted(classes, labels)
    losses = -np.log(probabilities[np.arange(200), column].astype(np.float64))
    margin = 1.959964 * losses.std(ddof=1) / np.sqrt(200)
    found = score(labels, classes, probabilities)["log_loss"]
    assert found.low == pytest.approx(losses.mean() - margin, rel=1e-5)
    assert found.high == pytest.approx(losses.mean() + margin, rel=1e-5)


def test_a_sure_and_wrong_head_has_a_finite_log_loss():
    found = score(np.array(["a"]), ["a", "b"], np.float32([[0, 1]]))["log_loss"]
    assert found.value == pytest.approx(-np.log(np.finfo(np.float32).eps))


def test_intervals_depend_on_the_seed_alone():
    case = problem(1, rows=100, k=3)
    assert score(*case, seed=4) == score(*case, seed=4)
    assert score(*case, seed=4) != score(*case, seed=5)


def test_the_order_of_the_rows_does_not_matter():
    labels, classes, probabilities = problem(2, rows=80, k=3)
    order = np.random.default_rng(0).permutation(80)
    shuffled = score(labels[order], classes, probabilities[order])
    for metric, before in score(labels, classes, probabilities).items():
        after = shuffled[metric]
        assert after.value == pytest.approx(before.value, rel=1e-12)
        if metric != "ece":
            assert (after.low, after.high) == pytest.approx((before.low, before.high))


def test_a_thousand_classes_resample_only_the_cells_that_occur():
    """A table of a thousand squared for each of 2,000 draws took 43 s and 0.8 GB."""
    labels, classes, probabilities = problem(4, rows=300, k=1000)
    sizes = []

    class Counting(np.random.Generator):
        def multinomial(self, n, shares, size=None):
            sizes.append(len(shares))
            return super().multinomial(n, shares, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "default_rng", lambda s: Counting(np.random.PCG64(s)))
        found = score(labels, classes, probabilities)
    assert set(sizes) <= set(range(301))
    assert 0 <= found["macro_f1"].low <= found["macro_f1"].high <= 1


def test_groups_widen_every_interval_and_change_no_value():
    labels, classes, probabilities = problem(6, rows=120, k=3)
    copied = [np.repeat(part, 10, axis=0) for part in (labels, probabilities)]
    units = np.repeat(np.arange(120), 10)
    apart = score(copied[0], classes, copied[1])
    together = score(copied[0], classes, copied[1], units=units)
    single = score(labels, classes, probabilities)
    for metric in set(together) - {"ece"}:
        one, many, few = together[metric], apart[metric], single[metric]
        assert one.value == pytest.approx(many.value)
        assert one.high - one.low > 2.5 * (many.high - many.low)
        assert one.high - one.low == pytest.approx(few.high - few.low, rel=0.25)


@settings(deadline=None, max_examples=40)
@given(problems)
def test_the_brier_score_is_that_of_scikit_learn(case):
    labels, classes, probabilities = case
    # in float64, as scikit-learn wants the sum of a row to be
    wide = probabilities.astype(np.float64)
    wide /= wide.sum(axis=1, keepdims=True)
    expected = brier_score_loss(labels, wide, labels=classes, scale_by_half=False)
    assert score(labels, classes, wide)["brier"].value == pytest.approx(expected)


def test_the_brier_score_of_a_label_that_the_head_cannot_name():
    """Its own probability is 0: 0.6 squared + 0.4 squared + 1."""
    found = score(np.array(["x"]), ["a", "b"], np.float32([[0.6, 0.4]]))["brier"]
    assert found.value == pytest.approx(0.36 + 0.16 + 1)


def test_the_calibration_error_is_the_gap_of_confidence_and_accuracy_in_each_bin():
    """Of four rows in one bin, at 0.62, three are right; one row at 0.9 is wrong."""
    probabilities = np.float32([[0.62, 0.38]] * 4 + [[0.1, 0.9]])
    found = score(np.array(list("aaaba")), ["a", "b"], probabilities)["ece"]
    assert found.value == pytest.approx((4 * (0.75 - 0.62) + 0.9) / 5, abs=1e-6)


def test_opposite_gaps_in_different_bins_do_not_cancel():
    probabilities = np.float32([[0.6, 0.4]] * 10 + [[0.8, 0.2]] * 10)
    labels = np.array(["a"] * 8 + ["b"] * 2 + ["a"] * 6 + ["b"] * 4)
    assert score(labels, ["a", "b"], probabilities)["ece"].value == pytest.approx(0.2)


def test_decisions_are_scored_as_they_are_counted():
    right = np.array([True, True, False, False, True])
    held = np.array([True, True, True, False, True])
    accepted = np.array([True, True, True, False, False])
    sizes = np.array([1, 1, 3, 2, 3])
    found = decision_scores(right, held, sizes, accepted, np.arange(5))
    assert {name: s.value for name, s in found.items()} == pytest.approx(
        {
            "set_coverage": 0.8,
            "set_size": 2,
            "accepted": 0.6,
            "error_of_accepted": 1 / 3,
        }
    )
    wilson = stats.binomtest(1, 3).proportion_ci(method="wilson")
    kept = found["error_of_accepted"]
    assert (kept.low, kept.high) == pytest.approx((wilson.low, wilson.high))


def test_nothing_accepted_has_no_rate_of_error():
    none = np.zeros(3, bool)
    found = decision_scores(~none, ~none, np.ones(3), none, np.arange(3))
    assert list(found) == ["set_coverage", "set_size", "accepted"]
    assert found["accepted"].value == 0


def test_intervals_hold_the_truth_where_classes_have_four_images():
    """Of 100 classes: percentiles alone hold a macro F1 in next to no sample."""
    chance, k, rows = np.random.default_rng(0), 100, 400
    rate = chance.uniform(0.3, 0.95, k)

    def sample(number: int) -> tuple[np.ndarray, np.ndarray]:
        truth = chance.integers(0, k, number)
        wrong = (truth + chance.integers(1, 6, number)) % k
        return truth, np.where(chance.random(number) < rate[truth], truth, wrong)

    expected = f1_score(*sample(300_000), average="macro")
    held = 0
    for seed in range(20):
        truth, given = sample(rows)
        classes = [f"c{at}" for at in range(k)]
        labels = np.array(classes)[truth]
        rows_of = PredictedRows(labels, classes, np.eye(k)[given], np.arange(rows))
        found = scores(rows_of, seed)["macro_f1"]
        held += found.low <= expected <= found.high
    assert held >= 16

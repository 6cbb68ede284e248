"""Scores of each class: as scikit-learn has them, with intervals that hold."""

import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    precision_recall_fscore_support,
    roc_auc_score,
)

from tl_pipeline.evaluation import intervals, one_vs_rest
from tl_pipeline.evaluation.class_scores import METRICS, class_scores
from tl_pipeline.evaluation.predicted_rows import PredictedRows

CASES = 300
Row = dict[str, float]


def by_class(labels, classes, probabilities, units=None) -> dict[str, dict[str, Row]]:
    """Class -> metric -> its row."""
    units = np.arange(len(labels)) if units is None else units
    found: dict[str, dict[str, Row]] = {}
    rows = PredictedRows(labels, classes, probabilities, units)
    for row in class_scores(rows).to_pylist():
        found.setdefault(row["label"], {})[row["metric"]] = row
    return found


def case(seed: int) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Rows of few classes; some scores are equal, some labels are of no column."""
    chance = np.random.default_rng(seed)
    rows, k = chance.integers(2, 60), chance.integers(2, 6)
    classes = [f"c{at}" for at in range(k)]
    labels = np.array([*classes, "stranger"])[chance.integers(0, k + seed % 2, rows)]
    scores = chance.random((rows, k)).round(chance.integers(1, 5))
    return labels, classes, scores.astype(np.float32)


def test_scores_of_each_class_are_those_of_scikit_learn():
    for seed in range(CASES):
        labels, classes, scores = case(seed)
        predicted = np.array(classes)[scores.argmax(axis=1)]
        names = [*classes, "stranger"]
        expected = precision_recall_fscore_support(
            labels,
            predicted,
            labels=names,
            zero_division=np.nan,  # pyright: ignore[reportArgumentType] - as documented
        )
        found = by_class(labels, classes, scores)
        for at, name in enumerate(names):
            own = labels == name
            told: dict[str, float] = dict(
                zip(METRICS[:3], np.array(expected[:3])[:, at], strict=True)
            )
            if name in classes and 0 < own.sum() < len(own):
                told["roc_auc"] = roc_auc_score(own, scores[:, at])
                told["average_precision"] = average_precision_score(own, scores[:, at])
            told = {
                metric: value for metric, value in told.items() if not np.isnan(value)
            }
            rows = found.get(name, {})
            assert {m: row["value"] for m, row in rows.items()} == pytest.approx(told)
            for row in rows.values():
                assert 0 <= row["low"] <= row["value"] + 1e-12
                assert row["value"] <= row["high"] + 1e-12 <= 1 + 1e-9
                assert row["images"] == own.sum()


def test_more_levels_than_are_compared_one_by_one_give_the_same():
    chance = np.random.default_rng(5)
    truth = chance.integers(0, 2, 900)
    scores = chance.random((900, 2)).round(3).astype(np.float32)
    for one in one_vs_rest.ranked(truth, scores):
        own = truth == one.at
        assert one.values[0] == pytest.approx(roc_auc_score(own, scores[:, one.at]))
        assert one.values[1] == pytest.approx(
            average_precision_score(own, scores[:, one.at])
        )


def test_the_influence_of_a_row_is_what_a_little_more_weight_of_it_changes():
    chance = np.random.default_rng(1)
    truth = chance.integers(0, 2, 40)
    score = chance.random(40).round(1)
    scores = np.stack([1 - score, score], axis=1)
    *_, one = one_vs_rest.ranked(truth, scores)
    unbiased = np.where(truth == 1, truth.sum(), 40 - truth.sum())
    for at, metric in enumerate((roc_auc_score, average_precision_score)):
        for row in range(40):
            weights = np.ones(40)
            weights[row] += 1e-6
            more = float(metric(truth, score, sample_weight=weights))
            change = more - float(metric(truth, score))
            factor = 1.0 if at else (unbiased[row] / (unbiased[row] - 1)) ** 0.5
            assert one.influence[at][row] == pytest.approx(
                change / 1e-6 * factor, abs=1e-5
            )


def test_recall_and_precision_have_wilsons_interval():
    labels = np.array(["a"] * 20 + ["b"] * 80)
    scores = np.tile(np.float32([0.1, 0.9]), (100, 1))
    scores[:15] = np.float32([0.9, 0.1])
    found = by_class(labels, ["a", "b"], scores)["a"]
    assert (found["recall"]["low"], found["recall"]["high"]) == pytest.approx(
        (0.5313, 0.8881), abs=5e-5
    )
    # all 15 predictions are right: 15 / (15 + 1.96^2)
    assert found["precision"]["low"] == pytest.approx(15 / (15 + 1.959964**2))
    # 15 of 20 rows are hits: F1 = 2 J / (1 + J)
    for end in ("low", "high"):
        share = found["recall"][end]
        assert float(found["f1"][end]) == pytest.approx(2 * share / (1 + share))


def test_shares_of_several_sets_are_those_of_each_alone():
    for seed in range(100):
        chance = np.random.default_rng(seed)
        rows = chance.integers(1, 60)
        units = chance.integers(0, chance.integers(1, rows + 2), rows)
        right, sets = chance.random(rows) < 0.7, chance.integers(0, 3, rows)
        found = intervals.shares(right, sets, 4, units)
        for number in range(4):
            own = sets == number
            if own.any():
                assert found.at(number) == intervals.share(right[own], units[own])
            else:
                assert np.isnan(np.array(found)[:, number]).all()


@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_hold_the_truth_as_often_as_they_say(grouped: bool):
    """Of rows that are alike in groups of five, and of independent ones."""
    chance = np.random.default_rng(7)

    def sample(groups: int) -> dict[str, Row]:
        units = np.repeat(np.arange(groups), 5)
        common = chance.normal(size=groups)[units] if grouped else 0.0
        alone = chance.normal(size=len(units))
        truth = np.arange(len(units)) % 5 < 2
        logit = 0.6 * alone + 0.8 * common + 1.2 * truth - 0.6
        one = 1 / (1 + np.exp(-logit))
        labels = np.where(truth, "b", "a")
        scores = np.stack([1 - one, one], axis=1)
        groups_of = units if grouped else np.arange(len(units))
        return by_class(labels, ["a", "b"], scores, groups_of)["b"]

    truth = {metric: row["value"] for metric, row in sample(20_000).items()}
    drawn = [sample(40) for _ in range(150)]
    for metric in METRICS:
        held = [d[metric]["low"] <= truth[metric] <= d[metric]["high"] for d in drawn]
        assert np.mean(held) >= 0.90, metric
        width = np.mean([d[metric]["high"] - d[metric]["low"] for d in drawn])
        spread = np.std([d[metric]["value"] for d in drawn])
        assert width < 6.5 * spread, metric

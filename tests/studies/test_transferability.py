"""LogME: against a direct maximisation of the evidence, and by its properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from scipy.optimize import minimize
from scipy.stats import ortho_group

from tl_pipeline.studies.transferability import logme

SHAPES = [(40, 5), (12, 30), (25, 25), (60, 3)]


def problem(
    rows: int, width: int, classes: int = 3, signal: float = 1.0, seed: int = 0
):
    """Features of which the first ones lean towards the class, and labels."""
    chance = np.random.default_rng([seed, rows, width])
    labels = chance.permutation(np.arange(rows) % classes)
    features = chance.normal(size=(rows, width))
    for number in range(min(classes, width)):
        features[labels == number, number] += signal
    return features, labels.astype(str)


def direct(features: np.ndarray, target: np.ndarray) -> float:
    """The largest log density of ``target`` over (alpha, beta), per row, by search.

    The target is normal with covariance I / beta + F F' / alpha: no algebra is shared
    with the code under test.
    """
    rows = len(target)
    outer, identity = features @ features.T, np.eye(rows)

    def loss(logs: np.ndarray) -> float:
        covariance = np.exp(-logs[1]) * identity + np.exp(-logs[0]) * outer
        factor = linalg.cholesky(covariance, lower=True)
        whitened = linalg.solve_triangular(factor, target, lower=True)
        determinant = np.log(np.diagonal(factor)).sum()
        return (whitened @ whitened / 2 + determinant) / rows + np.log(2 * np.pi) / 2

    starts = [(a, b) for a in (-2.0, 2.0, 6.0) for b in (0.0, 3.0)]
    limits = [(-8, 14), (-8, 14)]
    found = [minimize(loss, s, method="L-BFGS-B", bounds=limits) for s in starts]
    return -min(one.fun for one in found)


@pytest.mark.parametrize("signal", [0.0, 1.0, 3.0])
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_it_is_the_maximum_of_the_evidence(rows: int, width: int, signal: float):
    features, labels = problem(rows, width, signal=signal)
    found = logme(features, labels)
    assert found.converged
    expected = [direct(features, (labels == name) * 1.0) for name in ("0", "1", "2")]
    assert found.per_class == pytest.approx(expected, abs=1e-5)
    assert found.score == pytest.approx(np.mean(expected), abs=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from(SHAPES))
def test_rotated_shifted_in_order_and_scaled_features_score_the_same(seed, shape):
    features, labels = problem(*shape, seed=seed)
    turn = ortho_group(dim=shape[1], seed=seed).rvs()
    order = np.random.default_rng(seed).permutation(len(labels))
    score = logme(features, labels).score
    assert logme(features @ turn, labels).score == pytest.approx(score, abs=1e-7)
    assert logme(1e4 * features, labels).score == pytest.approx(score, abs=1e-7)
    assert logme(features[order], labels[order]).score == pytest.approx(score, abs=1e-7)


def test_the_score_rises_with_what_the_features_tell():
    scores = [logme(*problem(200, 20, signal=s)).score for s in (0.0, 0.5, 1.0, 2.0)]
    assert scores == sorted(scores)
    assert scores[-1] > scores[0] + 0.1


def test_noise_columns_lower_the_score():
    features, labels = problem(120, 6)
    noise = np.random.default_rng(5).normal(size=(120, 200))
    assert (
        logme(features, labels).score
        > logme(np.hstack([features, noise]), labels).score
    )


def test_columns_of_zeros_change_nothing():
    features, labels = problem(50, 8)
    wider = np.hstack([features, np.zeros((50, 3))])
    assert logme(wider, labels).score == pytest.approx(logme(features, labels).score)


def test_two_classes_are_two_targets():
    features, labels = problem(40, 5, classes=2)
    found = logme(features, labels)
    assert len(found.per_class) == 2
    assert found.score == pytest.approx(np.mean(found.per_class))


def test_features_that_are_all_zero_are_noise_alone():
    labels = np.array(["a"] * 3 + ["b"] * 7)
    found = logme(np.zeros((10, 4)), labels)
    # the density of a normal variable without mean, at its best variance
    expected = [-0.5 * (np.log(2 * np.pi * share) + 1) for share in (0.3, 0.7)]
    assert found.per_class == pytest.approx(expected)


def test_a_constant_feature_explains_the_mean_and_nothing_else():
    features, labels = np.ones((30, 1)), np.array(["a", "b", "c"] * 10)
    found = logme(features, labels)
    expected = direct(features, (labels == "a") * 1.0)
    assert found.per_class == pytest.approx([expected] * 3, abs=1e-6)


@pytest.mark.parametrize("rank", [1, 3])
def test_duplicated_rows_and_columns_are_no_trouble(rank: int):
    features, labels = problem(15, rank)
    rows = logme(np.tile(features, (2, 1)), np.tile(labels, 2))
    assert rows.converged
    assert np.isfinite(rows.score)
    columns = logme(np.hstack([features, features]), labels)
    assert columns.score == pytest.approx(logme(features, labels).score, abs=1e-7)


def test_features_that_are_the_label_score_high_and_finite():
    """The evidence has no maximum there: it is that at the border of the search."""
    labels = np.array(["a", "b"] * 20)
    found = logme(np.eye(2)[np.arange(40) % 2], labels)
    assert found.converged
    assert 5 < found.score < 100


def test_more_columns_than_rows_can_fit_exactly_and_still_converge():
    chance = np.random.default_rng(0)
    labels = np.array(["a", "b", "c", "d"] * 5)
    found = logme(chance.normal(size=(20, 500)), labels)
    assert found.converged
    assert np.isfinite(found.per_class).all()


def test_the_evidence_never_falls_on_the_way(monkeypatch: pytest.MonkeyPatch):
    """Stopped after one more step each time, the score can only rise."""
    features, labels = problem(40, 60, signal=0.3)
    scores = []
    for steps in range(1, 12):
        monkeypatch.setattr("tl_pipeline.studies.transferability.ITERATIONS", steps)
        found = logme(features, labels)
        scores.append(found.per_class)
        assert found.iterations <= steps
    assert (np.diff(np.array(scores), axis=0) >= 0).all()
    assert scores[-1] > scores[0]


@pytest.mark.parametrize(
    ("features", "labels", "said"),
    [
        (np.ones((3, 2)), ["a", "a", "a"], "two classes"),
        (np.ones((3, 2)), ["a", "b"], "one label a row"),
        (np.ones((0, 2)), [], "one label a row"),
        (np.ones(3), ["a", "b", "a"], "one label a row"),
        (np.full((2, 2), np.nan), ["a", "b"], "finite"),
    ],
)
def test_what_cannot_be_scored_is_refused(features, labels, said: str):
    with pytest.raises(ValueError, match=said):
        logme(features, np.array(labels))

"""`logistic` and `ridge` find what scikit-learn finds, for all penalties and folds."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from tests.exhaustive import more
from tl_pipeline.heads.linear import (
    design_matrix,
    preconditioner,
    regularization_path,
    row_space,
)
from tl_pipeline.heads.linear import objective as objectives
from tl_pipeline.heads.linear.design_matrix import moments
from tl_pipeline.heads.linear.lbfgs import LBFGS, Pair
from tl_pipeline.heads.linear.logistic import LogisticHead
from tl_pipeline.heads.linear.objective import Objective
from tl_pipeline.heads.linear.regularization_path import PathHead, fit_path
from tl_pipeline.heads.ridge import RidgeHead, decompose

CS = [1e-3, 0.03, 1.0, 30.0]


def rows(
    n: int = 300, width: int = 20, classes: int = 4, dtype: Any = np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping clusters with correlated features of very different scales."""
    chance = np.random.default_rng(n + width + classes)
    y = np.arange(n) % classes
    mixing = chance.normal(size=(width, width)) / width**0.5
    x = chance.normal(size=(classes, width))[y] + chance.normal(size=(n, width)) * 1.5
    x = x @ mixing * np.logspace(-1, 2, width) + np.linspace(-50, 50, width)
    return x.astype(dtype), np.array([f"class {k}" for k in y])


def reference(x: np.ndarray, y: np.ndarray, c: float, weights: Any = None) -> Any:
    """scikit-learn's optimum, far beyond its default tolerance."""
    model = LogisticRegression(C=c, tol=1e-13, max_iter=20_000)
    return make_pipeline(StandardScaler(), model).fit(
        x.astype(np.float64),
        y,
        standardscaler__sample_weight=weights,
        logisticregression__sample_weight=weights,
    )


def objective(x: np.ndarray, y: np.ndarray, c: float, model: Any, coef: Any) -> float:
    loss = log_loss(y, model.predict_proba(x), normalize=False)
    return c * loss + (coef**2).sum() / 2


def probabilities(head: PathHead, x: np.ndarray) -> np.ndarray:
    return softmax(head.decision_function(x.astype(np.float64)), axis=1)


@pytest.mark.parametrize("c", [CS[0], CS[-1], *more(*CS[1:-1])])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("n", "width", "classes"),
    [(300, 20, 4), (300, 20, 2), (60, 90, 5), (60, 500, 5), (60, 500, 2)],
)
def test_one_head_is_the_optimum_of_scikit_learn(
    n: int, width: int, classes: int, dtype: Any, c: float
):
    x, y = rows(2 * n, width, classes, dtype)
    x, y, new = x[:n], y[:n], x[n:]
    expected = reference(x, y, c)
    found = LogisticHead(c).fit(x, y)
    ours = objective(x, y, c, found, found.coef_)
    theirs = objective(x, y, c, expected, expected[-1].coef_)
    assert ours == pytest.approx(theirs, rel=1e-4)
    for where in (x, new):
        np.testing.assert_allclose(
            found.predict_proba(where), expected.predict_proba(where), atol=1e-3
        )
    assert found.coef_.shape == expected[-1].coef_.shape
    assert found.converged_
    assert found.gap_ <= found.tol


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("c", [1e4, *more(1e2, 1e3)])
def test_a_weak_penalty_on_separable_rows_ends_at_the_optimum_too(
    c: float, dtype: Any, classes: int
):
    """The optimum runs away as C grows, and float32 loses the curvature."""
    x, y = rows(200, 150, classes, dtype)
    x, y, new = x[:100], y[:100], x[100:]
    found = LogisticHead(c).fit(x, y)
    expected = reference(x, y, c)
    # float32 probabilities near 1 are too coarse for a loss times C
    ours = objective(x.astype(np.float64), y, c, found, found.coef_)
    theirs = objective(x, y, c, expected, expected[-1].coef_)
    assert found.converged_
    assert found.score(x, y) == 1
    assert ours == pytest.approx(theirs, rel=1e-4)
    np.testing.assert_allclose(
        found.predict_proba(new), expected.predict_proba(new), atol=1e-3
    )


@pytest.mark.parametrize(
    ("n", "width", "classes"),
    [(300, 20, 4), (80, 600, 2), *more((300, 20, 2), (80, 600, 4))],
)
def test_every_c_and_fold_of_a_path_is_the_optimum_of_its_own_rows(
    n: int, width: int, classes: int
):
    x, y = rows(n, width, classes)
    folds = np.random.default_rng(0).integers(-1, 3, len(y))
    path = fit_path(x, y, [1.0, 1e-3, 30.0, 0.03], folds, fold_tol=1e-9)
    assert path.cs == CS
    assert [(h.c, h.fold) for h in path.heads] == [(c, f) for c in CS for f in range(3)]
    for head in path.heads:
        held = folds == head.fold
        expected = reference(x[~held], y[~held], head.c)
        np.testing.assert_allclose(
            probabilities(head, x), expected.predict_proba(x), atol=1e-3
        )


def test_wide_rows_are_solved_in_their_own_space_block_by_block(
    monkeypatch: pytest.MonkeyPatch,
):
    """And come to what the solver finds on all columns."""
    x, y = rows(60, 500)
    folds = np.arange(60) // 4 % 3
    monkeypatch.setattr(row_space, "COLUMNS", 128)
    monkeypatch.setattr(regularization_path, "prepare", seen := Prepared())
    found = fit_path(x, y, CS, folds, fold_tol=1e-9)
    assert seen.shapes == [(60, 40)] * 3
    monkeypatch.setattr(regularization_path, "WIDE", 10.0)
    expected = fit_path(x, y, CS, folds, fold_tol=1e-9)
    assert seen.shapes[3:] == [(60, 500)]
    for one, other in zip(found.heads, expected.heads, strict=True):
        assert (one.c, one.fold) == (other.c, other.fold)
        np.testing.assert_allclose(
            probabilities(one, x), probabilities(other, x), atol=1e-3
        )
        scale = np.abs(other.coef).max()
        np.testing.assert_allclose(one.coef, other.coef, atol=1e-2 * scale)


class Prepared:
    """``prepare``, and the shapes that it was given."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, x: np.ndarray, *given: Any, **named: Any) -> Any:
        self.shapes.append(x.shape)
        return design_matrix.prepare(x, *given, **named)


def test_a_head_sees_nothing_of_the_rows_that_it_leaves_out():
    """Neither in its coefficients nor in its mean and scale."""
    x, y = rows()
    folds = np.arange(len(y)) // 4 % 3
    before = fit_path(x, y, CS, folds, fold_tol=1e-9).heads
    changed = np.where((folds == 1)[:, None], x + x.std(axis=0) / 3, x)
    after = fit_path(changed, y, CS, folds, fold_tol=1e-9).heads
    for one, other in zip(before, after, strict=True):
        same = np.allclose(one.mean, other.mean) and np.allclose(one.scale, other.scale)
        assert same == (one.fold == 1)
        if one.fold == 1:
            np.testing.assert_allclose(
                probabilities(one, x), probabilities(other, x), atol=1e-3
            )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [20, 400])
def test_steps_by_their_change_in_bfloat16_end_at_the_same_optimum(
    monkeypatch: pytest.MonkeyPatch, width: int, dtype: Any
):
    """On any processor, all of which can compute it, also at weak penalties."""
    x, y = rows(300, width, 5, dtype)
    cs, folds = [1e-3, 1.0, 1e3], np.arange(len(y)) // 5 % 3
    counts = np.random.default_rng(0).uniform(0, 2, len(y))
    found, steps = [], []
    after = objectives.Objective.after

    def counted(self: Any, *args: Any, **named: Any) -> Any:
        steps.append(self)
        return after(self, *args, **named)

    monkeypatch.setattr(objectives.Objective, "after", counted)
    monkeypatch.setattr(objectives, "WORTH", 0)
    for half in (False, True):
        monkeypatch.setattr(objectives, "has_bfloat16", lambda _, half=half: half)
        found.append(fit_path(x, y, cs, folds, counts, fold_tol=1e-9))
        assert bool(steps) == half
    exact, changed = found
    assert all(head.converged for head in changed.heads)
    for one, other in zip(exact.heads, changed.heads, strict=True):
        np.testing.assert_allclose(
            probabilities(one, x), probabilities(other, x), atol=1e-3
        )


def test_heads_of_folds_stop_earlier_and_score_the_same():
    x, y = rows()
    folds = np.arange(len(y)) // 4 % 3
    near = fit_path(x, y, CS, folds, fold_tol=1e-9)
    usual = fit_path(x, y, CS, folds)
    for one, other in zip(near.heads, usual.heads, strict=True):
        assert one.gap <= 1e-9
        assert other.gap <= 1e-7
        assert other.converged
    steps = [sum(head.iterations for head in path.heads) for path in (usual, near)]
    assert steps[0] < steps[1]
    for one, other in zip(near.heads, usual.heads, strict=True):
        held = folds == one.fold
        losses = [log_loss(y[held], probabilities(h, x[held])) for h in (one, other)]
        assert losses[1] == pytest.approx(losses[0], rel=5e-3)
    assert fit_path(x, y, [1.0], tol=1e-9).heads[0].gap <= 1e-9
    loose = fit_path(x, y, [1.0], folds, tol=1e-3).heads
    assert all(head.converged for head in loose)
    assert max(head.gap for head in loose) > 1e-7


def test_shares_of_several_threads_change_nothing(monkeypatch: pytest.MonkeyPatch):
    x, y = rows()
    folds = np.arange(len(y)) // 4 % 3
    alone = fit_path(x, y, CS, folds, fold_tol=1e-9)
    monkeypatch.setattr(design_matrix, "WORTH_SHARING", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        shared, again = (fit_path(x, y, CS, folds, fold_tol=1e-9) for _ in range(2))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    for one, other, same in zip(alone.heads, shared.heads, again.heads, strict=True):
        np.testing.assert_array_equal(other.coef, same.coef)
        np.testing.assert_allclose(
            probabilities(one, x), probabilities(other, x), atol=1e-3
        )


@pytest.mark.parametrize(("n", "width"), [(300, 20), (40, 900)])
def test_weights_count_rows(n: int, width: int):
    """Rows that stand there twice are dependent, and nothing in itself."""
    x, y = rows(n, width)
    counts = np.random.default_rng(0).integers(0, 4, len(y))
    weighted = LogisticHead(0.1).fit(x, y, counts).predict_proba(x)
    repeated = np.repeat(np.arange(len(y)), counts)
    as_rows = LogisticHead(0.1).fit(x[repeated], y[repeated]).predict_proba(x)
    np.testing.assert_allclose(weighted, as_rows, atol=1e-3)
    expected = reference(x, y, 0.1, counts.astype(float)).predict_proba(x)
    np.testing.assert_allclose(weighted, expected, atol=1e-3)


@pytest.mark.parametrize(("n", "width"), [(300, 20), (80, 600)])
def test_a_class_without_a_training_row_is_never_expected(n: int, width: int):
    x, y = rows(n, width)
    folds = np.where(y == "class 2", 0, np.arange(len(y)) % 3)
    path = fit_path(x, y, CS, folds, fold_tol=1e-9)
    without = [head for head in path.heads if head.fold == 0]
    for head in without:
        found = probabilities(head, x)
        assert (found[:, 2] == 0).all()
        kept = folds != 0
        expected = reference(x[kept], y[kept], head.c).predict_proba(x)
        np.testing.assert_allclose(found[:, [0, 1, 3]], expected, atol=1e-3)


def test_heads_that_do_not_converge_say_so():
    x, y = rows()
    with pytest.warns(ConvergenceWarning, match=r"heads did not converge within 2 "):
        path = fit_path(x, y, CS, max_iter=2)
    left = [head for head in path.heads if not head.converged]
    assert left
    assert all(head.gap > 1e-9 and head.iterations == 2 for head in left)


def test_neither_blocks_nor_few_directions_change_the_optimum(
    monkeypatch: pytest.MonkeyPatch,
):
    x, y = rows()
    folds = np.arange(len(y)) % 3
    whole = fit_path(x, y, CS, folds, fold_tol=1e-9)
    monkeypatch.setattr(design_matrix, "BLOCK", 37)
    monkeypatch.setattr(preconditioner, "DIRECTIONS", 5)
    parts = fit_path(x, y, CS, folds, fold_tol=1e-9)
    for one, other in zip(whole.heads, parts.heads, strict=True):
        np.testing.assert_allclose(
            probabilities(one, x), probabilities(other, x), atol=1e-3
        )


@pytest.mark.parametrize("alpha", [0.1, 10.0, 1000.0])
@pytest.mark.parametrize(
    ("n", "width", "classes"), [(300, 20, 4), (300, 20, 2), (60, 90, 5)]
)
def test_ridge_is_the_ridge_of_scikit_learn(
    n: int, width: int, classes: int, alpha: float
):
    x, y = rows(n, width, classes, np.float64)
    counts = np.random.default_rng(0).integers(1, 4, n).astype(float)
    scaler = StandardScaler().fit(x, sample_weight=counts)
    expected = RidgeClassifier(alpha).fit(scaler.transform(x), y, counts)
    found = RidgeHead(alpha).fit(x, y, counts)
    np.testing.assert_allclose(
        found.decision_function(x),
        expected.decision_function(scaler.transform(x)),
        atol=1e-8,
    )
    assert (found.predict(x) == expected.predict(scaler.transform(x))).all()
    winners = found.classes_[found.predict_proba(x).argmax(axis=1)]
    assert (winners == found.predict(x)).all()


@pytest.mark.parametrize(("n", "width"), [(40, 6), (30, 50)])
def test_left_out_decisions_are_those_of_ridges_fitted_without_the_row(
    n: int, width: int
):
    x, y = rows(n, width, 3, np.float64)
    signs = np.where(y[:, None] == np.unique(y), 1.0, -1.0)
    weights = np.random.default_rng(0).uniform(0.5, 2, n)
    found = decompose(x, signs, weights, moments(x, weights)[1])
    left_out = found.left_out(x, signs, weights, 3.0)
    standard = (x - found.mean) / found.scale
    for row in (0, n // 2, n - 1):
        kept = np.arange(n) != row
        model = RidgeClassifier(3.0).fit(standard[kept], y[kept], weights[kept])
        expected = model.decision_function(standard[[row]])[0]
        np.testing.assert_allclose(left_out[row], expected, atol=1e-8)


def test_ridge_probabilities_do_not_boast_of_rows_learned_by_heart():
    """Random labels, more features than rows: training rows fit, new ones do not."""
    chance = np.random.default_rng(0)
    x, y = chance.normal(size=(100, 200)), chance.integers(0, 3, 100)
    head = RidgeHead(1e-3).fit(x, y)
    assert head.score(x, y) == 1
    new = chance.normal(size=(500, 200))
    loss = log_loss(chance.integers(0, 3, 500), head.predict_proba(new))
    assert loss < 1.15  # log 3 = 1.10 is what one can know
    separable = np.repeat(np.eye(3), 20, axis=0) + chance.normal(size=(60, 3)) / 9
    labels = np.repeat([0, 1, 2], 20)
    sure = RidgeHead(1e-3).fit(separable, labels).predict_proba(separable)
    assert log_loss(labels, sure) < 0.05


LEFT_OUT = (
    "a row of weight 2 is left out as a whole to find the factor, and of two equal "
    "rows only one"
)


# tol is less than float64 can reach: as near to the optimum as it comes
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks([LogisticHead(tol=1e-18)])
def test_the_linear_head_is_a_classifier_of_scikit_learn(estimator: Any, check: Any):
    check(estimator)


@pytest.mark.exhaustive
@parametrize_with_checks(
    [RidgeHead()],
    expected_failed_checks=lambda _: {
        "check_sample_weight_equivalence_on_dense_data": LEFT_OUT
    },
)
def test_ridge_is_a_classifier_of_scikit_learn(estimator: Any, check: Any):
    check(estimator)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("seed", "n", "width", "classes"),
    [(1, 200, 12, 3), (29, 400, 30, 6), (39, 300, 20, 4)],
)
def test_rounding_in_the_last_steps_of_a_weak_penalty_leads_nowhere(
    seed: int, n: int, width: int, classes: int
):
    """Steps so small that their curvature was rounding once made weights of NaN."""
    chance = np.random.default_rng(seed)
    y = np.arange(n) % classes
    noise = chance.normal(size=(classes, width))[y], chance.normal(size=(n, width))
    x = (noise[0] + noise[1] * (0.5 + seed % 5 * 0.2)).astype(np.float32)
    cs, folds = [1.0, 1e2, 1e3, 1e4], np.arange(n) // classes % 3
    found = fit_path(x, y, cs, folds, fold_tol=1e-8)
    exact = fit_path(x.astype(np.float64), y, cs, folds, fold_tol=1e-8)
    assert all(np.isfinite(head.coef).all() for head in found.heads)
    for one, other in zip(found.heads, exact.heads, strict=True):
        held = folds == one.fold
        losses = [log_loss(y[held], probabilities(h, x[held])) for h in (one, other)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_a_direction_that_is_not_downhill_gives_way_to_the_gradient():
    x, y = rows()
    ready = design_matrix.prepare(
        x,
        np.unique(y, return_inverse=True)[1],
        np.ones(len(x)),
        None,
        standardise=True,
    )
    solver = LBFGS(Objective(ready.rows), preconditioner.basis(ready.rows), 1.0, 1e-9)
    w = torch.zeros(1, x.shape[1] + 1, 4)
    _, g, solved, _ = solver._begin(w)
    solver.pairs = [Pair(g, g, solved, torch.tensor([np.inf]))]
    torch.testing.assert_close(solver._direction(g, solved), -solved)
    solver.pairs = []
    solver._remember(solved, 1e-9 * g, 1e9 * solved)
    assert solver.pairs[0].inverse.item() == 0

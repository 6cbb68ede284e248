"""The classical heads find what scikit-learn finds, or what their docstrings say."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.svm import SVC, LinearSVC

from tl_pipeline.heads import cosine, predictors
from tl_pipeline.heads.calibrated_svm import CalibratedSVM
from tl_pipeline.heads.classical import NaiveBayes
from tl_pipeline.heads.cosine import CentroidHead, NeighbourHead
from tl_pipeline.heads.discriminant import DiscriminantHead
from tl_pipeline.heads.fitting import in_numbers
from tl_pipeline.heads.folds import stratified_group_folds
from tl_pipeline.heads.linear.logistic import LogisticHead
from tl_pipeline.heads.linear.temperature import fit_inverse_temperature, probabilities
from tl_pipeline.heads.preparation import Components
from tl_pipeline.heads.ridge import RidgeHead
from tl_pipeline.heads.support_vectors import LinearSVMHead


def rows(
    n: int = 200, width: int = 12, classes: int = 4, spread: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping clusters of unequal size."""
    chance = np.random.default_rng(n + width + classes)
    shares = np.arange(1, classes + 1) / (classes * (classes + 1) / 2)
    y = chance.choice(classes, n, p=shares)
    y[: 2 * classes] = np.arange(2 * classes) % classes
    x = chance.normal(size=(classes, width))[y] + spread * chance.normal(
        size=(n, width)
    )
    return x * np.linspace(0.5, 3, width) + 2, np.array([f"class {k}" for k in y])


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(("n", "width"), [(200, 12), (30, 60)])
@pytest.mark.parametrize("shrinkage", [0.05, 0.5, 1.0])
def test_lda_is_that_of_scikit_learn(
    n: int, width: int, classes: int, shrinkage: float
):
    x, y = rows(n, width, classes)
    scaled = StandardScaler().fit_transform(x)
    expected = LinearDiscriminantAnalysis("lsqr", shrinkage=shrinkage).fit(scaled, y)
    found = DiscriminantHead(shrinkage).fit(x, y)
    np.testing.assert_allclose(
        found.predict_proba(x), expected.predict_proba(scaled), atol=1e-6
    )


@pytest.mark.parametrize(("n", "width"), [(200, 12), (30, 60)])
def test_lda_shrinks_as_ledoit_and_wolf(n: int, width: int):
    from sklearn.covariance import ledoit_wolf_shrinkage

    x, y = rows(n, width)
    scaled = StandardScaler().fit_transform(x)
    within = scaled - np.stack([scaled[y == name].mean(axis=0) for name in y])
    expected = ledoit_wolf_shrinkage(within, assume_centered=True)
    assert DiscriminantHead().fit(x, y).shrinkage_ == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "head",
    [
        DiscriminantHead(),
        LinearSVMHead(folds=0, tol=1e-12),
        Components(3, whiten=True),
        LogisticHead(0.1, class_weight="balanced", tol=1e-12),
    ],
    ids=lambda head: type(head).__name__,
)
def test_a_weight_of_2_is_a_row_that_is_there_twice(head):
    x, y = rows()
    weights = np.random.default_rng(0).integers(0, 3, len(y))
    at = np.repeat(np.arange(len(y)), weights)

    def said(fitted_head):
        if hasattr(fitted_head, "predict_proba"):
            return fitted_head.predict_proba(x)
        return fitted_head.transform(x)

    weighted = said(head.fit(x, y, sample_weight=weights.astype(float)))
    np.testing.assert_allclose(weighted, said(head.fit(x[at], y[at])), atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_nearest_centroid_is_the_mean_direction(weighted: bool):
    x, y = rows()
    weights = np.random.default_rng(0).uniform(0.5, 2, len(y)) if weighted else None
    head = CentroidHead().fit(x, y, weights)
    unit = normalize(x)
    means = np.stack(
        [
            np.average(
                unit[y == name],
                axis=0,
                weights=None if weights is None else weights[y == name],
            )
            for name in head.classes_
        ]
    )
    np.testing.assert_allclose(head.centroids_, normalize(means), atol=1e-12)
    nearest = head.classes_[(unit @ normalize(means).T).argmax(axis=1)]
    assert (head.predict(x) == nearest).all()


def test_the_inverse_temperature_of_centroids_is_that_of_rows_left_out(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(cosine, "BLOCK", 7)
    x, y = rows(40, 5, 3, spread=2.0)
    unit, names = normalize(x), np.unique(y)
    scores = np.empty((len(y), len(names)))
    for row in range(len(y)):
        kept = np.arange(len(y)) != row
        for k, name in enumerate(names):
            mean = unit[kept & (y == name)].mean(axis=0)
            scores[row, k] = unit[row] @ mean / np.linalg.norm(mean)
    alone = np.array([(y == name).sum() == 1 for name in y])
    expected = fit_inverse_temperature(
        scores[~alone], np.searchsorted(names, y)[~alone], np.ones((~alone).sum())
    )
    assert CentroidHead().fit(x, y).inverse_temperature_ == pytest.approx(
        expected, rel=1e-3
    )


def test_decisions_without_an_error_give_no_boundless_certainty():
    scores = np.eye(3)[np.arange(60) % 3]
    for count in (6, 60):
        factor = fit_inverse_temperature(
            scores[:count], np.arange(count) % 3, np.ones(count)
        )
        (sure, *_) = probabilities(scores[:1], factor)[0]
        assert sure == pytest.approx((count + 1) / (count + 3), abs=1e-3)
    wrong = fit_inverse_temperature(scores, (np.arange(60) + 1) % 3, np.ones(60))
    assert wrong == pytest.approx(1e-3, rel=0.1)
    assert fit_inverse_temperature(scores[:0], np.arange(0), np.ones(0)) == 1


@pytest.mark.parametrize("k", [1, 5, 1000])
def test_neighbours_vote_by_their_cosine(k: int, monkeypatch: pytest.MonkeyPatch):
    x, y = rows()
    x, y, new = x[:150], y[:150], x[150:]
    found = NeighbourHead(k, temperature=0.1).fit(x, y).predict_proba(new)
    monkeypatch.setattr(predictors, "PRODUCTS", 1000)
    blocks = NeighbourHead(k, temperature=0.1).fit(x, y).predict_proba(new)
    np.testing.assert_allclose(found, blocks, atol=1e-12)
    names, shares = np.unique(y, return_counts=True)
    for row, said in zip(normalize(new), found, strict=True):
        cosines = normalize(x) @ row
        nearest = np.argsort(-cosines)[:k]
        votes = np.exp(cosines[nearest] / 0.1)
        expected = votes.min() * shares / shares.sum()
        for at, vote in zip(nearest, votes, strict=True):
            expected[np.flatnonzero(names == y[at])[0]] += vote
        np.testing.assert_allclose(said, expected / expected.sum(), atol=1e-10)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("c", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize(("n", "width"), [(200, 12), (60, 90)])
def test_the_linear_svm_is_no_worse_than_liblinear(
    n: int, width: int, classes: int, c: float
):
    """On its own objective, plus what liblinear's penalty on the intercept costs."""
    x, y = rows(2 * n, width, classes, spread=2.0)
    x, y, new = x[:n], y[:n], x[n:]
    found = LinearSVMHead(c, random_state=0).fit(x.astype(np.float32), y)
    assert found.converged_
    scaler = StandardScaler().fit(x)
    scaled = scaler.transform(x)
    theirs = LinearSVC(
        C=c, dual=False, tol=1e-9, intercept_scaling=1000, max_iter=100_000
    ).fit(scaled, y)
    kinds = found.classes_[1 if len(found.classes_) == 2 else 0 :]
    signs = np.where(y[:, None] == kinds, 1, -1)

    def objective(model, where: np.ndarray) -> float:
        scores = model.decision_function(where).reshape(len(y), -1)
        short = np.maximum(1 - signs * scores, 0)
        return c * (short**2).sum() + (model.coef_**2).sum() / 2

    assert objective(found, x) <= objective(theirs, scaled) * (1 + 1e-4)
    np.testing.assert_allclose(
        found.decision_function(new),
        theirs.decision_function(scaler.transform(new)),
        atol=0.02,
    )


def test_a_linear_svm_that_does_not_converge_says_so():
    x, y = rows()
    with pytest.warns(ConvergenceWarning, match=r"did not converge within 3 iter"):
        head = LinearSVMHead(1.0, max_iter=3).fit(x, y)
    assert not head.converged_
    assert head.gap_ > head.tol


@pytest.mark.parametrize(
    "head",
    [LinearSVMHead(0.01, random_state=0), CalibratedSVM(SVC(C=10), random_state=0)],
    ids=lambda head: type(head).__name__,
)
def test_margins_do_not_boast_of_rows_learned_by_heart(head):
    """Random labels, more features than rows: training rows fit, new ones do not."""
    chance = np.random.default_rng(0)
    x, y = chance.normal(size=(100, 200)), chance.integers(0, 3, 100)
    head.fit(x, y)
    assert head.score(x, y) > 0.9
    new = chance.normal(size=(500, 200))
    loss = log_loss(chance.integers(0, 3, 500), head.predict_proba(new))
    assert loss < 1.2  # log 3 = 1.10 is what one can know
    assert (head.predict(new) == head.predict_proba(new).argmax(axis=1)).all()


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_an_svm_in_numbers_decides_as_that_of_scikit_learn(
    classes: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(predictors, "PRODUCTS", 1000)
    x, y = rows(classes=classes, spread=2.0)
    head = CalibratedSVM(SVC(C=3), random_state=0).fit(x, y)
    np.testing.assert_allclose(
        head.decision_function(x), head.machine_.decision_function(x), atol=1e-9
    )
    assert len(head.machine_.support_vectors_) > 50


@pytest.mark.parametrize("classes", [2, 4])
def test_naive_bayes_in_numbers_is_that_of_scikit_learn(classes: int):
    x, y = rows(classes=classes)
    model = NaiveBayes().fit(x, y)
    _, found = in_numbers(model)
    np.testing.assert_allclose(found.predict_proba(x), model.predict_proba(x))


def test_folds_of_many_small_classes_are_of_one_size():
    """Each class used to begin with the first fold: 200, 200, 100, 100, 100."""
    part = stratified_group_folds(np.repeat(np.arange(100), 7), 5, 0)
    assert np.bincount(part).tolist() == [140] * 5
    for k in range(100):
        assert sorted(np.bincount(part[7 * k : 7 * k + 7], minlength=5)) == [
            1,
            1,
            1,
            2,
            2,
        ]


def test_a_class_of_one_row_is_in_every_fit_and_left_out_of_none():
    targets = np.array([0, 0, 0, 0, 1, 2, 2])
    part = stratified_group_folds(targets, 3, 0)
    assert part[4] == -1
    assert sorted(part[:4]) == [0, 0, 1, 2]
    assert part[5] != part[6]
    assert (stratified_group_folds(np.arange(5), 3, 0) == -1).all()


@pytest.mark.parametrize(("n", "width"), [(200, 12), (30, 60)])
@pytest.mark.parametrize("whiten", [False, True])
def test_components_are_those_of_scikit_learn(n: int, width: int, whiten: bool):
    x, _ = rows(n, width)
    theirs = PCA(5, whiten=whiten, svd_solver="full").fit_transform(x)
    found = Components(5, whiten=whiten).fit_transform(x)
    ratio = np.sqrt((n - 1) / n) if whiten else 1.0  # of the variance of a sample
    np.testing.assert_allclose(np.abs(found) * ratio, np.abs(theirs), atol=1e-6)


def test_a_share_keeps_as_few_components_as_hold_it():
    x, _ = rows()
    for share in (0.3, 0.8, 0.95):
        expected = PCA(share, svd_solver="full").fit(x).n_components_
        assert len(Components(share).fit(x).components_) == expected


def test_whitening_keeps_no_component_that_is_rounding():
    """20 rows have 19 directions; a 20th, scaled to deviation 1, would be noise."""
    x, _ = rows(20, 50)
    for dtype in (np.float32, np.float64):
        found = Components(0, whiten=True).fit(x.astype(dtype))
        assert len(found.components_) == 19
        assert len(Components(500).fit(x.astype(dtype)).components_) == 19
    spread = found.transform(x).std(axis=0)
    np.testing.assert_allclose(spread, 1, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 4])
def test_balanced_classes_are_those_of_scikit_learn(classes: int):
    x, y = rows(classes=classes)
    ours = LogisticHead(0.1, class_weight="balanced", tol=1e-12).fit(x, y)
    model = LogisticRegression(
        C=0.1, class_weight="balanced", tol=1e-10, max_iter=10_000
    )
    theirs = make_pipeline(StandardScaler(), model).fit(x, y)
    np.testing.assert_allclose(
        ours.predict_proba(x), theirs.predict_proba(x), atol=1e-5
    )
    ours = RidgeHead(10.0, class_weight="balanced").fit(x, y)
    theirs = make_pipeline(
        StandardScaler(), RidgeClassifier(10.0, class_weight="balanced")
    ).fit(x, y)
    np.testing.assert_allclose(
        ours.decision_function(x), theirs.decision_function(x), atol=1e-8
    )

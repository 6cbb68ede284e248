"""Calibrations against scikit-learn, against the truth of simulations, and by rules."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from scipy.special import softmax
from sklearn.metrics import log_loss

from tl_pipeline.evaluation import calibration
from tl_pipeline.evaluation.calibration import METHODS, Calibration

ADAPTER = TypeAdapter(Calibration)
every_method = pytest.mark.parametrize("method", METHODS)
every_map = pytest.mark.parametrize("method", [m for m in METHODS if m != "none"])


def overconfident(rows: int, k: int, seed: int = 0, factor: float = 3.0):
    """Probabilities that would be right if their logits were ``factor`` times less."""
    chance = np.random.default_rng(seed)
    logits = 1.5 * chance.normal(size=(rows, k))
    honest = softmax(logits, axis=1)
    targets = (honest.cumsum(axis=1) < chance.random((rows, 1))).sum(axis=1)
    return softmax(factor * logits, axis=1).astype(np.float32), targets, honest


def normal(probabilities: np.ndarray) -> np.ndarray:
    """In float64, as scikit-learn wants the sum of a row to be."""
    wide = probabilities.astype(np.float64)
    return wide / wide.sum(axis=1, keepdims=True)


def small(seed: int, rows: int, k: int, unknown: int):
    """Few rows, some of labels that the head cannot name, and classes without rows."""
    chance = np.random.default_rng(seed)
    probabilities = chance.dirichlet(np.full(k, 0.3), rows).astype(np.float32)
    targets = chance.integers(0, max(k - 1, 1), rows)
    targets[:unknown] = -1
    return probabilities, targets


smalls = st.builds(
    small,
    st.integers(0, 10_000),
    st.integers(1, 40),
    st.integers(2, 8),
    st.integers(0, 3),
)


@every_map
@pytest.mark.parametrize("k", [2, 6])
def test_an_overconfident_head_becomes_about_as_sure_as_it_is_right(method: str, k):
    learned, targets, _ = overconfident(3000, k)
    new, right, honest = overconfident(3000, k, seed=1)
    found = calibration.fit(method, learned, targets).apply(new)
    labels = np.arange(k)
    before, after, best = (
        log_loss(right, normal(p), labels=labels) for p in (new, found, honest)
    )
    assert before > best + 0.2  # else there was nothing to mend
    assert after < best + 0.03
    assert np.abs(found - honest).mean() < 0.25 * np.abs(new - honest).mean()


@settings(deadline=None, max_examples=60)
@given(smalls, st.sampled_from(list(METHODS)))
def test_rows_are_probabilities_whatever_was_learned_from(case, method: str):
    probabilities, targets = case
    found = calibration.fit(method, probabilities, targets).apply(probabilities)
    assert found.dtype == np.float32
    assert found.shape == probabilities.shape
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert found.sum(axis=1) == pytest.approx(1, abs=1e-5)


@settings(deadline=None, max_examples=60)
@given(smalls, st.sampled_from(list(METHODS)))
def test_what_is_written_as_json_is_read_back_equal(case, method: str):
    probabilities, targets = case
    made = calibration.fit(method, probabilities, targets)
    again = ADAPTER.validate_json(made.model_dump_json())
    assert again == made
    assert np.array_equal(again.apply(probabilities), made.apply(probabilities))


@settings(deadline=None, max_examples=60)
@given(smalls, st.sampled_from(list(METHODS)))
def test_no_decision_changes(case, method: str):
    probabilities, targets = case
    found = calibration.fit(method, probabilities, targets).apply(probabilities)
    best = probabilities.argmax(axis=1)
    own = np.take_along_axis(found, best[:, None], axis=1)[:, 0]
    assert np.array_equal(own, found.max(axis=1))


@every_map
def test_two_classes_are_mapped_alike_whichever_is_first(method: str):
    probabilities, targets, _ = overconfident(500, 2)
    found = calibration.fit(method, probabilities, targets).apply(probabilities)
    turned = calibration.fit(method, probabilities[:, ::-1], 1 - targets)
    mirrored = turned.apply(probabilities[:, ::-1])[:, ::-1]
    assert mirrored == pytest.approx(found, abs=2e-4)


@every_method
def test_a_class_without_validation_rows_is_still_predicted(method: str):
    probabilities, targets, _ = overconfident(2000, 5)
    seen = targets != 4
    made = calibration.fit(method, probabilities[seen], targets[seen])
    sure = np.float32([[0.01, 0.01, 0.01, 0.01, 0.96]])
    assert made.apply(sure).argmax() == 4


@every_map
def test_labels_that_the_head_cannot_name_lower_its_confidence(method: str):
    probabilities, targets, _ = overconfident(1000, 4, factor=1)
    strange = np.where(np.arange(1000) % 3, targets, -1)
    plain = calibration.fit(method, probabilities, targets).apply(probabilities)
    wary = calibration.fit(method, probabilities, strange).apply(probabilities)
    assert wary.max(axis=1).mean() < plain.max(axis=1).mean() - 0.02


@every_method
def test_no_rows_teach_nothing(method: str):
    made = calibration.fit(method, np.empty((0, 3), np.float32), np.empty(0, int))
    given_ = np.float32([[0.2, 0.3, 0.5]])
    assert np.array_equal(made.apply(given_), given_)


@every_map
def test_a_cross_fitted_row_does_not_know_its_label(method: str):
    """Turning the label of one row changes others and not that row."""
    probabilities, targets, _ = overconfident(120, 3)
    units = np.arange(120)
    targets = np.sort(targets)
    row = int((targets == 0).sum()) - 1
    turned = targets.copy()
    turned[row] = 1  # last of its class, it becomes first of the next: the parts stay
    before = calibration.cross_fitted(method, probabilities, targets, units)
    after = calibration.cross_fitted(method, probabilities, turned, units)
    changed = (before != after).any(axis=1)
    assert not changed[row]
    assert changed.any()


@every_map
def test_a_cross_fitted_unit_does_not_know_its_labels(method: str):
    probabilities, targets, _ = overconfident(200, 2)
    units = np.arange(200) // 10
    targets = np.where(units < 10, 0, 1)  # whole units of one class
    mixed = targets.copy()
    mixed[91:100] = 1  # all of unit 9 but its first row, which gives it its part
    before = calibration.cross_fitted(method, probabilities, targets, units)
    after = calibration.cross_fitted(method, probabilities, mixed, units)
    assert np.array_equal(before[90:100], after[90:100])
    assert not np.array_equal(before, after)


@every_method
def test_one_unit_alone_is_left_as_it_is(method: str):
    probabilities, targets, _ = overconfident(30, 3)
    found = calibration.cross_fitted(method, probabilities, targets, np.zeros(30))
    assert np.array_equal(found, probabilities)


@pytest.mark.parametrize(
    "text",
    [
        '{"method": "magic"}',
        '{"factor": 1}',
        '{"method": "isotonic", "x": [0], "y": [0.5]}',
        '{"method": "temperature"}',
        '{"method": "temperature", "factor": 0}',
        '{"method": "temperature", "factor": -1}',
        '{"method": "temperature", "factor": NaN}',
        '{"method": "temperature", "factor": Infinity}',
        '{"method": "temperature", "factor": 1, "more": 2}',
    ],
)
def test_nonsense_is_not_read(text: str):
    with pytest.raises(ValidationError):
        ADAPTER.validate_json(text)

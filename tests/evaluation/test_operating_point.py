"""An operating point: learned, written, read back, and refused where it is nonsense."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from tl_pipeline.errors import DamagedArtifact, StoreError
from tl_pipeline.evaluation import operating_point
from tl_pipeline.evaluation.calibration import METHODS, cross_fitted
from tl_pipeline.evaluation.operating_point import FILE, OperatingPoint


def rows(number: int, k: int = 4, seed: int = 0):
    """Probabilities of a head twice as sure as it should be, and the right classes."""
    chance = np.random.default_rng(seed)
    logits = 2.5 * chance.normal(size=(number, k))
    drawn = softmax(logits, axis=1).cumsum(axis=1)
    targets = (drawn < chance.random((number, 1))).sum(axis=1)
    return softmax(2 * logits, axis=1).astype(np.float32), targets


def learned(
    method: str, p: np.ndarray, targets: np.ndarray, units: np.ndarray, error: float
) -> tuple[OperatingPoint, np.ndarray]:
    """An operating point, and the cross-fitted probabilities behind it."""
    crossed = cross_fitted(method, p, targets, units)
    return operating_point.fit(method, p, crossed, targets, units, error), crossed


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("error", [0.1, 0.3])
def test_what_it_promises_holds_on_new_rows(method: str, error: float):
    probabilities, targets = rows(2000)
    found, crossed = learned(method, probabilities, targets, np.arange(2000), error)
    assert crossed.shape == probabilities.shape
    new, right = rows(20_000, seed=1)
    calibrated = found.calibration.apply(new)
    held = operating_point.covered(found.sets(calibrated), right)
    assert 1 - error - 0.02 < held.mean()
    accepted = found.accepted(calibrated)
    wrong = calibrated.argmax(axis=1) != right
    assert accepted.mean() > 0.2
    assert wrong[accepted].mean() < error
    assert found.shortage is None


def test_it_is_read_back_as_it_was_written(tmp_path: Path):
    probabilities, targets = rows(300)
    for method in METHODS:
        made, _ = learned(method, probabilities, targets, np.arange(300), 0.05)
        made.write(tmp_path)
        again = OperatingPoint.read(tmp_path)
        assert again is not None
        assert again == made
        assert np.array_equal(again.sets(probabilities), made.sets(probabilities))


def test_older_models_have_none(tmp_path: Path):
    assert OperatingPoint.read(tmp_path) is None


def test_thresholds_are_exact_through_json(tmp_path: Path):
    """The row that a threshold was taken from is accepted by what is read back."""
    probabilities, targets = rows(3000)
    made, crossed = learned("none", probabilities, targets, np.arange(3000), 0.2)
    made.write(tmp_path)
    again = OperatingPoint.read(tmp_path)
    assert again is not None
    assert (crossed.max(axis=1) == np.float32(made.least_confidence)).any()
    edge = crossed[crossed.max(axis=1) == np.float32(made.least_confidence)]
    assert again.accepted(edge).all()
    assert (crossed == np.float32(made.least_probability)).any()


def test_too_few_rows_promise_nothing_and_say_so():
    probabilities, targets = rows(15)
    found, _ = learned("temperature", probabilities, targets, np.arange(15), 0.05)
    assert found.sets(probabilities).all()
    assert not found.accepted(probabilities).any()
    assert found.shortage == (
        "prediction sets hold all labels: an error rate of 5 % needs 19 held-out "
        "images (or groups), there are 15; every prediction is rejected: to show an "
        "error rate of 5 % takes 86 held-out images (or groups) without an error, "
        "there are 15"
    )


def test_enough_rows_that_are_too_often_wrong_are_not_called_too_few():
    probabilities, targets = rows(860)
    chance = np.random.default_rng(1)
    targets = np.where(chance.random(860) < 0.3, (targets + 1) % 4, targets)
    found, crossed = learned(
        "temperature", probabilities, targets, np.arange(860), 0.05
    )
    assert found.least_confidence is None
    order = np.argsort(-crossed.max(axis=1), kind="stable")
    wrong = (crossed.argmax(axis=1) != targets)[order]
    shares = np.cumsum(wrong) / np.arange(1, 861)
    assert found.surest_error == pytest.approx(shares[85:].min())
    assert found.shortage == (
        "every prediction is rejected: at no confidence is it shown that fewer than "
        f"5 % of them are wrong; at best {100 * found.surest_error:.1f} % of the "
        f"{found.surest:,} surest of the held-out images are"
    )


@pytest.mark.parametrize(
    "older",
    [
        {"method": "sigmoid", "slope": 1.0, "intercept": 0.0},
        {"method": "isotonic", "x": [0.0], "y": [0.5]},
    ],
)
def test_a_calibration_that_is_no_more_is_said(tmp_path: Path, older: dict):
    probabilities, targets = rows(300)
    made, _ = learned("temperature", probabilities, targets, np.arange(300), 0.05)
    document = {**json.loads(made.model_dump_json()), "calibration": older}
    (tmp_path / FILE).write_text(json.dumps(document))
    with pytest.raises(StoreError, match=f"by {older['method']}.* --calibration temp"):
        OperatingPoint.read(tmp_path)


def test_an_operating_point_of_version_0_1_is_read(tmp_path: Path):
    probabilities, targets = rows(300)
    made, _ = learned("temperature", probabilities, targets, np.arange(300), 0.05)
    document = json.loads(made.model_dump_json())
    del document["surest"], document["surest_error"]
    (tmp_path / FILE).write_text(json.dumps(document))
    found = OperatingPoint.read(tmp_path)
    assert found == made.model_copy(update={"surest": None, "surest_error": None})


def test_groups_count_as_one():
    """300 rows of 15 films are 15 units: too few for an error rate of 5 %."""
    probabilities, targets = rows(300)
    films = np.arange(300) // 20
    found, _ = learned("temperature", probabilities, targets, films, 0.05)
    assert (found.rows, found.units) == (300, 15)
    assert found.least_probability == 0
    assert found.least_confidence is None


def test_labels_that_the_head_cannot_name_are_errors():
    probabilities, targets = rows(2000, k=3)
    strange = np.where(np.arange(2000) % 5 == 0, -1, targets)
    plain, _ = learned("none", probabilities, targets, np.arange(2000), 0.3)
    wary, _ = learned("none", probabilities, strange, np.arange(2000), 0.3)
    assert plain.least_confidence is not None
    assert wary.least_confidence is not None
    assert wary.least_confidence > plain.least_confidence
    assert wary.least_probability < plain.least_probability


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format"),
        ({"error": 0}, "error"),
        ({"error": 1}, "error"),
        ({"calibration": {"method": "pickle"}}, "calibration"),
        ({"calibration": {"method": "temperature", "factor": -1}}, "factor"),
        ({"least_probability": 1.5}, "least_probability"),
        ({"least_confidence": "0.5; import os"}, "least_confidence"),
        ({"rows": -1}, "rows"),
        ({"code": "print()"}, "code"),
    ],
)
def test_nonsense_is_a_damaged_artifact(tmp_path: Path, change: dict, said: str):
    probabilities, targets = rows(300)
    made, _ = learned("temperature", probabilities, targets, np.arange(300), 0.05)
    document = {**json.loads(made.model_dump_json()), **change}
    (tmp_path / FILE).write_text(json.dumps(document))
    with pytest.raises(DamagedArtifact, match=rf"calibration\.json: .*{said}"):
        OperatingPoint.read(tmp_path)


def test_half_a_file_is_a_damaged_artifact(tmp_path: Path):
    (tmp_path / FILE).write_text('{"format": 1, "err')
    with pytest.raises(DamagedArtifact, match="run again"):
        OperatingPoint.read(tmp_path)


def test_no_set_holds_a_label_that_the_head_cannot_name():
    sets = np.array([[True, False], [True, True], [True, True]])
    assert operating_point.covered(sets, np.array([1, 1, -1])).tolist() == [
        False,
        True,
        False,
    ]

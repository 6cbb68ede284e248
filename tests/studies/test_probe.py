"""The quick probe: folds, and the head."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tl_pipeline.studies.probe import divide, judge, probed


def rows_of(units: int, each: int = 1, classes: int = 2):
    """Rows of ``units`` units of ``each`` rows; units take turns in their class."""
    labels = [f"c{unit % classes}" for unit in range(units) for _ in range(each)]
    return divide(
        labels, [f"u{unit:03d}" for unit in range(units) for _ in range(each)]
    )


assigned = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 9)), min_size=4, max_size=60
)


@settings(deadline=None, max_examples=100)
@given(assigned)
def test_every_row_is_judged_once_and_never_beside_its_unit(pairs):
    labels, units = [p[0] for p in pairs], [f"u{p[1]}" for p in pairs]
    kept = probed(labels, units)
    labels, units = [labels[i] for i in kept], [units[i] for i in kept]
    if len(set(labels)) < 2:
        with pytest.raises(ValueError, match="two classes"):
            divide(labels, units)
        return
    rows = divide(labels, units)
    judged = np.concatenate([fold[1] for fold in rows.folds])
    assert sorted(judged) == list(range(len(labels)))
    for learned, held in rows.folds:
        assert not set(rows.units[learned]) & set(rows.units[held])
    right = judge(np.random.default_rng(0).normal(size=(len(labels), 3)), rows)
    assert right.shape == (len(labels),)


def test_a_class_of_one_unit_cannot_be_probed():
    labels, units = ["a", "a", "b", "b", "c"], ["1", "1", "2", "3", "4"]
    assert probed(labels, units) == [2, 3]
    with pytest.raises(ValueError, match="two units in each"):
        divide(labels, units)


def test_what_tells_the_classes_apart_is_found_and_noise_is_not():
    rows, chance = rows_of(300, classes=3), np.random.default_rng(0)
    noise = chance.normal(size=(300, 10))
    telling = noise + 3 * np.eye(3, 10)[np.arange(300) % 3]
    assert judge(telling, rows).mean() > 0.9
    assert judge(noise, rows).mean() < 0.45


@pytest.mark.parametrize("width", [20, 700])
@pytest.mark.parametrize("classes", [2, 5])
def test_it_is_scikit_learns_ridge_of_the_rows_that_each_fold_learns(
    width: int, classes: int
):
    rows, chance = rows_of(300, classes=classes), np.random.default_rng(3)
    vectors = chance.gamma(1.0, size=(300, width)).astype(np.float32)
    vectors[np.arange(300), np.arange(300) % classes] += 1.5
    expected = np.zeros(300, bool)
    for learned, judged in rows.folds:
        head = make_pipeline(StandardScaler(), RidgeClassifier(alpha=width))
        head.fit(vectors[learned].astype(np.float64), rows.labels[learned])
        found = head.predict(vectors[judged].astype(np.float64))
        expected[judged] = found == rows.labels[judged]
    assert 0.3 < expected.mean() < 0.95
    assert list(judge(vectors, rows)) == list(expected)


def test_a_column_that_never_changes_is_no_trouble():
    rows = rows_of(40)
    vectors = np.c_[np.ones(40), np.arange(40) % 2].astype(np.float32)
    assert judge(vectors, rows).all()


def test_what_only_names_the_group_is_not_taken_for_knowledge():
    """Each unit has features of its own: perfect by memory, worthless for new ones."""
    rows = rows_of(40, each=10)
    own = np.repeat(np.random.default_rng(1).normal(size=(40, 200)), 10, axis=0)
    assert rows.grouped
    assert judge(own, rows).mean() < 0.7
    mixed = np.random.default_rng(2).permutation(400)
    alone = divide(list(rows.labels[mixed]), [str(i) for i in range(400)])
    assert judge(own[mixed], alone).mean() > 0.99

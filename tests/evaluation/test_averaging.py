"""Means of probabilities, and greedy selection against its definition."""

import numpy as np
import pyarrow as pa
import pytest

from tl_pipeline.evaluation.averaging import (
    ROUNDS,
    Predictions,
    aligned,
    averaged,
    greedy,
    shared,
)


def said(
    ids: str, labels: str, classes: str, probabilities: list[list[float]]
) -> Predictions:
    """One letter each for an image, a label, a class."""
    return Predictions(
        pa.array(list(ids)),
        pa.array(list(labels)),
        list(classes),
        np.array(probabilities, np.float32),
    )


def test_classes_meet_by_name():
    found = aligned(np.array([[0.25, 0.75]]), ["c", "a"], ["a", "b", "c"])
    assert found.tolist() == [[0.75, 0, 0.25]]


def test_a_mean_is_of_the_images_that_all_scored_and_of_all_classes():
    one = said("pqr", "aab", "ab", [[0.5, 0.5], [1, 0], [0.25, 0.75]])
    other = said("qrs", "abc", "abc", [[0, 0.5, 0.5], [0, 1, 0], [0, 0, 1]])
    assert shared([one, other]).to_pylist() == ["q", "r"]
    mean = averaged([one, other], [3, 1])
    assert mean.image_ids.to_pylist() == ["q", "r"]
    assert mean.labels.to_pylist() == ["a", "b"]
    assert mean.classes == ["a", "b", "c"]
    expected = [[0.75, 0.125, 0.125], [0.1875, 0.8125, 0]]
    np.testing.assert_allclose(mean.probabilities, expected, rtol=1e-6)
    assert mean.probabilities.dtype == np.float32


def test_no_image_in_common_is_an_empty_mean():
    mean = averaged(
        [said("p", "a", "ab", [[1, 0]]), said("q", "a", "ab", [[1, 0]])], [1, 1]
    )
    assert mean.probabilities.shape == (0, 2)


def test_the_truth_that_a_head_does_not_know_has_no_probability():
    one = said("pq", "ca", "ab", [[0.5, 0.5], [0.75, 0.25]])
    assert one.of_truth().tolist() == [0, 0.75]


def drawn(heads: int, images: int, classes: int, seed: int) -> list[Predictions]:
    """Heads that know something, of different worth."""
    chance = np.random.default_rng(seed)
    truth = chance.integers(0, classes, images)
    names = [f"class {c}" for c in range(classes)]
    found = []
    for head in range(heads):
        logits = chance.normal(size=(images, classes))
        logits[np.arange(images), truth] += 0.5 + head / heads
        odds = np.exp(logits)
        found.append(
            Predictions(
                pa.array([f"{i:05d}" for i in range(images)]),
                pa.array(np.array(names)[truth]),
                names,
                (odds / odds.sum(1, keepdims=True)).astype(np.float32),
            )
        )
    return found


def loss(mean: Predictions) -> float:
    """The Brier score."""
    truth = mean.names()[:, None] == np.array(mean.classes)
    return float(((mean.probabilities - truth) ** 2).sum(axis=1).mean())


def by_definition(heads: list[Predictions]) -> list[int]:
    """Every ensemble is averaged as a whole, in every round, for every head."""
    times = np.zeros(len(heads), int)
    best = (np.inf, times)
    for _ in range(ROUNDS):
        grown = [times + np.eye(len(heads), dtype=int)[i] for i in range(len(heads))]
        losses = [loss(averaged(heads, one.tolist())) for one in grown]
        times = grown[int(np.argmin(losses))]
        best = min(best, (min(losses) + 1e-9, times), key=lambda pair: pair[0])
    return best[1].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_greedy_selection_is_that_of_its_definition(seed: int):
    heads = drawn(5, 80, 4, seed)
    assert greedy(heads) == by_definition(heads)


def test_greedy_selection_is_no_worse_than_the_best_head_or_the_mean_of_all():
    heads = drawn(6, 200, 5, 7)
    chosen = greedy(heads)
    assert np.count_nonzero(chosen) > 1
    assert 1 < sum(chosen) <= ROUNDS
    found = loss(averaged(heads, chosen))
    assert found < min(loss(averaged(heads, row)) for row in np.eye(6, dtype=int))
    assert found < loss(averaged(heads, [1] * 6))


def test_greedy_selection_leaves_out_what_is_wrong():
    worse, good = drawn(2, 100, 2, 1)
    wrong = np.round(1 - good.probabilities)
    misled = Predictions(good.image_ids, good.labels, good.classes, wrong)
    assert greedy([misled, worse, good])[0] == 0


def test_one_head_is_chosen_once():
    assert greedy(drawn(1, 20, 2, 0)) == [1]

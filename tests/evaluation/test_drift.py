"""Drift: batches that are like the reference seldom trip, and others do."""

import numpy as np
import pytest

from tl_pipeline.evaluation import drift
from tl_pipeline.evaluation.drift import Sample

WIDTH, IMAGES = 24, 120


def sample(seed: int, images: int = IMAGES, **more: float) -> Sample:
    """Images of two classes; ``refused`` and ``second`` are shares of them."""
    rng = np.random.default_rng(seed)
    second = rng.random(images) < more.get("second", 0.5)
    centre = np.where(second, 1.0, -1.0)[:, None]
    vectors = centre + more.get("shift", 0.0) + rng.normal(size=(images, WIDTH))
    return Sample(
        vectors.astype(np.float32),
        rng.normal(size=images) - more.get("far", 0.0),
        np.where(second, "b", "a"),
        rng.random(images) >= more.get("refused", 0.1),
    )


def test_like_batches_trip_in_the_stated_share():
    """Of 200 batches a share of 0.2 at most: 52 are the 99 % quantile of 0.2."""
    tripped = [
        any(
            one.tripped
            for one in drift.compare(
                sample(seed, 30), sample(seed + 1_000, 40), 0.2, seed
            )
        )
        for seed in range(200)
    ]
    assert 10 <= sum(tripped) <= 54


@pytest.mark.parametrize(
    ("changed", "tripped"),
    [
        ({}, []),
        ({"shift": 0.5}, ["embeddings"]),
        ({"second": 0.9}, ["classes", "embeddings"]),
        ({"far": 1.0}, ["novelty"]),
        ({"refused": 0.4}, ["not_accepted"]),
    ],
)
def test_what_changed_trips_and_nothing_else(
    changed: dict[str, float], tripped: list[str]
):
    found = drift.compare(sample(1, IMAGES, **changed), sample(2), 0.02, seed=0)
    assert sorted(one.statistic for one in found if one.tripped) == tripped
    assert {one.limit for one in found} == {0.005}
    assert [one.tripped for one in found] == [one.p < one.limit for one in found]


def test_values_are_shares_and_distances_as_they_are_defined():
    ours, usual = sample(3, 40, second=0.9, refused=0.3), sample(4)
    found = {one.statistic: one for one in drift.compare(ours, usual, 0.01, seed=0)}
    shares = [np.mean(one.labels == "b") for one in (ours, usual)]
    assert found["classes"].value == pytest.approx(abs(shares[0] - shares[1]), rel=1e-5)
    for one, value in ((ours, "value"), (usual, "reference")):
        assert one.accepted is not None
        refused = 1 - one.accepted.mean()
        assert getattr(found["not_accepted"], value) == pytest.approx(refused)
    assert found["novelty"].reference == 0.05


def test_what_is_not_known_is_not_compared():
    ours, usual = sample(5)._replace(accepted=None), sample(6)
    names = [one.statistic for one in drift.compare(ours, usual, 0.01, seed=0)]
    assert names == ["embeddings", "classes", "novelty"]


def test_images_that_all_lie_equally_near_are_no_drift():
    same = np.ones(IMAGES)
    ours, usual = (sample(s)._replace(similarities=same) for s in (7, 8))
    found = {one.statistic: one for one in drift.compare(ours, usual, 0.01, seed=0)}
    assert found["novelty"].p == 1.0


def test_the_smallest_error_that_may_be_asked_for_can_be_reached():
    found = drift.compare(sample(1, 30, shift=3.0), sample(2, 30), 0.001, seed=0)
    assert "embeddings" in {one.statistic for one in found if one.tripped}


def test_novelty_is_the_rank_among_the_reference():
    reference = np.array([0.5, 0.6, 0.7, 0.9])
    found = drift.novelty(np.array([0.4, 0.5, 0.65, 0.95]), reference)
    assert found.tolist() == [0.2, 0.4, 0.6, 1.0]

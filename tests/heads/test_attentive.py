"""The head that attends to places, against its formula in numpy."""

import numpy as np
import pytest
from scipy.special import softmax

from tl_pipeline import heads
from tl_pipeline.config.specs import HeadSpec, SearchSpec
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.heads import fitting
from tl_pipeline.heads.search import candidates
from tl_pipeline.store.embeddings import Embeddings, Places

PLACES, CHANNELS = 5, 6


def corners(classes: int = 3, each: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Noise (n, places, channels) in which one place, anywhere, tells the class."""
    chance = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), each)
    rows = chance.normal(size=(len(labels), PLACES, CHANNELS))
    rows[np.arange(len(labels)), chance.integers(PLACES, size=len(labels)), labels] += 9
    return rows.astype(np.float32), labels.astype(str)


def fitted(places: Places, rows: np.ndarray, labels: np.ndarray, **params: object):
    spec = HeadSpec.model_validate({"name": "attentive", "params": params})
    (config,) = heads.grid(heads.complete(spec))
    ids = [f"{at:03d}" for at in range(len(rows))]
    given = Embeddings("0123", ids, rows.reshape(len(rows), -1), places)
    return fitting.fit(config, 0, given, labels), given


def test_the_head_is_the_formula_of_its_docstring():
    rows, labels = corners()
    head, given = fitted(
        Places(PLACES), rows, labels, queries=2, values=8, max_epochs=30
    )
    learned = head.predictor.tensors()
    assert learned["places"].tolist() == [PLACES, 0]
    assert learned["0.queries"].shape == (2, CHANNELS)
    assert learned["0.values"].shape == (2, CHANNELS, 4)
    flat = rows.reshape(-1, CHANNELS)
    np.testing.assert_allclose(learned["mean"], flat.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(learned["scale"], flat.std(axis=0), atol=1e-6)
    x = (rows - learned["mean"]) / learned["scale"]
    parts = []
    for query, values in zip(learned["0.queries"], learned["0.values"], strict=True):
        weights = softmax(x @ query / CHANNELS**0.5, axis=1)
        # each place by the map, then the weighted mean
        parts.append((weights[:, :, None] * (x @ values)).sum(axis=1))
    taken = np.concatenate(parts, axis=1)
    logits = taken @ learned["1.weight"].T + learned["1.bias"]
    np.testing.assert_allclose(
        head.predict_proba(given), softmax(logits, axis=1), atol=1e-5
    )


def test_cells_of_a_grid_are_the_same_places_with_channels_first():
    rows, labels = corners()
    how = {"queries": 2, "values": 8, "max_epochs": 5}
    tokens, given = fitted(Places(PLACES), rows, labels, **how)
    cells, grid = fitted(
        Places(PLACES, channels_first=True), rows.transpose(0, 2, 1), labels, **how
    )
    np.testing.assert_allclose(
        cells.predict_proba(grid), tokens.predict_proba(given), atol=1e-6
    )


def test_it_finds_what_the_mean_of_all_places_drowns():
    """Nine deviations in one of five places are less than two in their mean."""
    rows, labels = corners(each=80)
    head, given = fitted(Places(PLACES), rows, labels, learning_rate=0.02)
    found = np.array(head.classes)[head.predict_proba(given).argmax(axis=1)]
    assert (found == labels).mean() > 0.97


def test_embeddings_without_places_are_refused():
    rows, labels = corners(each=4)
    config = next(heads.grid(heads.complete(HeadSpec(name="attentive"))))
    given = Embeddings("0", list(map(str, range(len(rows)))), rows[:, 0])
    with pytest.raises(
        InvalidSpec, match="one vector an image; embed with pool=tokens"
    ):
        fitting.fit(config, 0, given, labels)


def test_values_that_queries_cannot_share_are_refused():
    spec = HeadSpec(name="attentive", params={"queries": 3, "values": 8})
    with pytest.raises(InvalidSpec, match="values must be a multiple of queries"):
        candidates(heads.complete(spec), SearchSpec(), 0)

"""Every head as tensors says what it says in numpy; how models are fed."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tl_pipeline import heads
from tl_pipeline.config.specs import HeadSpec
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.evaluation.calibration import Temperature
from tl_pipeline.export import classifier
from tl_pipeline.heads import HEADS, fitting
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.inputs.vectors import VectorInput
from tl_pipeline.store.embeddings import Embeddings, Places

NAMES = [row.name for row in HEADS.values() if not row.control]
PREPARED = {"l2": True, "pca": 3, "whiten": True}
HOW = Preprocess(resize=32, crop=32, mean=(0.5,), std=(0.5,))


def rows(classes: int) -> tuple[Embeddings, np.ndarray]:
    chance = np.random.default_rng(classes)
    targets = np.arange(90) % classes
    vectors = chance.normal(size=(classes, 12))[targets] + chance.normal(size=(90, 12))
    ids = [f"{number:03d}" for number in range(90)]
    labels = np.array([f"class {target}" for target in targets])
    places = Places(3, channels_first=classes == 2)
    return Embeddings("key", ids, vectors.astype(np.float32), places), labels


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("name", NAMES)
def test_a_head_as_tensors_says_the_same(name: str, classes: int, prepared: bool):
    row, (given, labels) = HEADS[name], rows(classes)
    small = {"max_epochs": 5, "hidden": "8x6", "batch_norm": True, "gamma": 0.05}
    small |= {"queries": 2, "values": 8, "learning_rate": 0.02}
    params = {key: value for key, value in small.items() if key in row.parameters}
    if prepared:
        params |= {k: v for k, v in PREPARED.items() if k in row.parameters}
    spec = HeadSpec(name=name, params=params)
    config = next(heads.grid(heads.complete(spec)))
    head = fitting.fit(config, 0, given, labels)
    assert head.predict_proba(given).std() > 0.002
    form = torch.nn.Sequential(
        classifier._Prepared(head.preparation),
        classifier._form(head.predictor, name),
    )
    found = form(torch.from_numpy(given.vectors)).detach().numpy()
    assert np.abs(found - head.predict_proba(given)).max() < 1e-5


def test_calibration_says_the_same():
    said = np.array([[1, 0, 0], [0.2, 0.3, 0.5], [0, 1e-9, 1]], np.float32)
    how = Temperature(factor=1.7)
    found = classifier.calibrated(torch.from_numpy(said), how).numpy()
    assert np.abs(found - how.apply(said)).max() < 1e-6


def fake(*ways: Any) -> Any:
    encoders = [SimpleNamespace(preprocess=how, label=f"e{how}") for how in ways]
    return SimpleNamespace(encoders=encoders)


def test_a_graph_takes_images_that_are_fed_in_one_way():
    assert classifier.fed(fake(HOW, HOW)) == HOW
    with pytest.raises(InvalidSpec, match="takes no images"):
        classifier.fed(fake(VectorInput()))
    other = HOW.model_copy(update={"crop": 28})
    with pytest.raises(InvalidSpec, match="fed in different ways"):
        classifier.fed(fake(HOW, other))


def test_a_head_without_a_form_is_refused_by_name():
    with pytest.raises(InvalidSpec, match="kind 'majority' cannot be exported"):
        classifier._form(SimpleNamespace(), "majority")

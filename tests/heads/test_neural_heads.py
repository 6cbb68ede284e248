"""The heads softmax, mlp and cosine: how they learn, and what they promise."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone

from tests.exhaustive import more
from tl_pipeline import heads
from tl_pipeline.config.specs import HeadConfig, HeadSpec, SearchSpec
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.heads import fitted, fitting
from tl_pipeline.heads.neural.classifiers import NeuralHead
from tl_pipeline.heads.neural.layers import Cosine, initialise, network
from tl_pipeline.heads.neural.training import (
    Course,
    Examples,
    _batches,
    _Trainer,
    mixed,
    train,
)
from tl_pipeline.heads.search import candidates
from tl_pipeline.store.embeddings import Embeddings

COURSE = {
    "optimiser": "adamw",
    "learning_rate": 0.01,
    "weight_decay": 0.0,
    "schedule": "constant",
    "max_epochs": 30,
    "patience": 30,
    "refined": False,
    "batch_size": 16,
    "dropout": 0.0,
    "label_smoothing": 0.0,
    "mixup": 0.0,
    "seed": 0,
}
KINDS: dict[str, dict[str, Any]] = {
    "softmax": {"hidden": 0},
    "mlp": {"hidden": 16, "dropout": 0.1},
    "two layers": {"hidden": "16x8", "dropout": 0.1},
    "batch norm": {"hidden": 16, "batch_norm": True},
    "cosine": {"hidden": 0, "cosine": True},
    "fixed sharpness": {"hidden": 0, "cosine": True, "sharpness": 20.0},
}
EXTRA = ({"label_smoothing": 0.1}, {"mixup": 0.4}, {"standardise": False})
every_kind = pytest.mark.parametrize("kind", list(KINDS))


def clusters(
    classes: int = 4, per_class: int = 40, width: int = 8, spread: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(0)
    targets = np.repeat(np.arange(classes), per_class)
    chance.shuffle(targets)
    x = chance.normal(size=(classes, width))[targets]
    x += chance.normal(scale=spread, size=x.shape)
    return x.astype(np.float32), targets


def head(kind: str, **params: Any) -> NeuralHead:
    quick = {"learning_rate": 0.02, "max_epochs": 60, "batch_size": 16}
    return NeuralHead(**{**quick, **KINDS[kind], **params})


def examples(x: np.ndarray, y: np.ndarray, factors: Any = None) -> Examples:
    return Examples(torch.from_numpy(x), torch.from_numpy(y), factors)


OPTIMISERS, SCHEDULES = ("adamw", "adam", "sgd"), ("cosine", "step", "constant")
# One of each of a kind of head, and each of them for two kinds.
USUAL = list(zip(KINDS, OPTIMISERS * 2, SCHEDULES * 2, strict=True))


@pytest.mark.parametrize(
    ("kind", "optimiser", "schedule"),
    [
        *USUAL,
        *more(*sorted({*product(KINDS, OPTIMISERS, SCHEDULES)} - {*USUAL})),
    ],
)
def test_separable_classes_are_learned(kind: str, optimiser: str, schedule: str):
    x, y = clusters()
    model = head(kind, optimiser=optimiser, schedule=schedule).fit(x[:120], y[:120])
    assert model.score(x[120:], y[120:]) > 0.9


@every_kind
def test_more_epochs_lower_the_loss(kind: str):
    x, y = clusters(spread=1.0)

    def loss(epochs: int) -> float:
        model = head(kind, max_epochs=epochs, patience=100, learning_rate=0.005)
        found = model.fit(x, y).predict_proba(x)
        return -np.log(found[np.arange(len(y)), y]).mean()

    assert loss(40) < 0.9 * loss(1)


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        *((kind, {}) for kind in KINDS),
        *(("mlp", extra) for extra in EXTRA),
        *more(*((kind, extra) for kind in KINDS if kind != "mlp" for extra in EXTRA)),
    ],
)
def test_a_fit_is_a_function_of_its_seed(kind: str, extra: dict[str, Any]):
    x, y = clusters(spread=1.0)
    model = head(kind, max_epochs=5, **extra)
    found = [clone(model).fit(x, y).predict_proba(x) for _ in range(2)]
    np.testing.assert_array_equal(*found)
    other = clone(model).set_params(random_state=1).fit(x, y).predict_proba(x)
    assert np.abs(other - found[0]).max() > 1e-6


@every_kind
def test_the_threads_of_torch_change_rounding_only(kind: str):
    x, y = clusters(spread=1.0)
    usual, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(head(kind).fit(x, y).predict_proba(x))
    finally:
        torch.set_num_threads(usual)
    np.testing.assert_allclose(*found, atol=1e-4)


@every_kind
def test_float64_and_text_labels_and_a_constant_feature(kind: str):
    x, y = clusters()
    x[:, 0] = 0.1
    names = np.array(["ant", "bee", "cat", "dog"])[y]
    plain = head(kind).fit(x, y)
    model = head(kind).fit(x.astype(np.float64), names)
    assert list(model.classes_) == ["ant", "bee", "cat", "dog"]
    found = model.predict_proba(x.astype(np.float64))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, plain.predict_proba(x))
    assert set(model.predict(x)) <= set(names)
    x[:, 0] += 1e-3  # of a feature that never varied nothing was learned
    np.testing.assert_allclose(model.predict_proba(x), found, atol=0.05)


@every_kind
def test_two_classes_of_one_row_each(kind: str):
    x, y = np.eye(2, 3, dtype=np.float32), np.array(["a", "b"])
    assert list(head(kind).fit(x, y).predict(x)) == ["a", "b"]


@pytest.mark.parametrize(
    "spec",
    [
        "softmax",
        "cosine",
        "cosine:sharpness=20",
        "mlp:hidden=16x8,batch_norm=true",
        "mlp:batch_norm=true,l2=true,pca=3",
    ],
)
def test_a_saved_head_comes_back_the_same(spec: str, tmp_path: Any):
    x, y = clusters()
    embeddings = Embeddings("0123", [f"{i:03d}" for i in range(len(x))], x)
    config = next(heads.grid(heads.complete(HeadSpec.parse(spec))))
    config = HeadConfig(name=config.name, params={**config.params, "max_epochs": 5})
    model = fitting.fit(config, 0, embeddings, y.astype(str))
    fitted.save(model, tmp_path)
    np.testing.assert_array_equal(
        fitted.load(tmp_path).predict_proba(embeddings),
        model.predict_proba(embeddings),
    )


def test_an_mlp_of_one_hidden_layer_keeps_the_names_of_its_tensors():
    """Heads in stores of earlier versions must be read."""
    x, y = clusters()
    found = head("mlp", max_epochs=1).fit(x, y).predictor().tensors()
    names = {"0.0.weight", "0.0.bias", "1.weight", "1.bias", "mean", "scale"}
    assert set(found) == names


def test_one_class_of_one_row_does_not_switch_early_stopping_off():
    x, y = clusters(spread=1.0)
    model = head("softmax", max_epochs=500, patience=3, learning_rate=0.05)
    assert clone(model).fit(x, y).n_epochs_ < 500
    x, y = np.vstack([x, 5 * x[:1]]), np.append(y, 99)
    fitted_head = clone(model).fit(x, y)
    assert fitted_head.n_epochs_ < 500
    assert fitted_head.predict(x[-1:]) == [99]
    kept, held = fitted_head._hold_out(np.unique(y, return_inverse=True)[1])
    assert sorted([*kept, *held]) == list(range(len(y)))
    assert len(y) - 1 in kept
    assert len(held) == 16


def test_the_weights_of_the_best_epoch_are_kept():
    """Labels by chance: what is learned soon makes the held-out rows worse."""
    chance = np.random.default_rng(1)
    x = chance.normal(size=(200, 20)).astype(np.float32)
    y = chance.integers(0, 3, 200)
    kept, held = torch.arange(150), torch.arange(150, 200)
    rows = examples(x, y)

    def trained(epochs: int, held: torch.Tensor) -> tuple[int, float]:
        layers = network(20, [32], 3)
        draws = torch.Generator().manual_seed(0)
        initialise(layers, draws)
        course = Course(**{**COURSE, "max_epochs": epochs, "patience": 5})
        done = train(layers.train(), course, rows, kept, held, draws)
        layers.eval()
        with torch.inference_mode():
            found = rows.loss(layers(rows.rows[150:]), torch.arange(150, 200))
        return done, found.item()

    losses = [trained(n, torch.arange(0))[1] for n in range(1, 12)]
    best = int(np.argmin(losses))
    done, loss = trained(30, held)
    assert done == best + 1 + 5 < 30
    assert loss == pytest.approx(losses[best], rel=1e-5)
    assert loss < losses[best + 5]


def test_a_refined_loss_does_not_mind_a_network_that_is_too_sure():
    chance = np.random.default_rng(0)
    x = chance.normal(size=(300, 6)).astype(np.float32)
    y = (x[:, 0] + chance.normal(size=300) > 0).astype(int)
    held = torch.arange(300)
    rows = examples(x, y)
    layers = network(6, [], 2)
    initialise(layers, torch.Generator().manual_seed(0))
    losses = {}
    for refined in (False, True):
        course = Course(**{**COURSE, "refined": refined})
        trainer = _Trainer(layers, course, rows, torch.Generator())
        before = trainer.held_out_loss(held)
        with torch.no_grad():
            for weight in layers.parameters():
                weight.mul_(8)
        losses[refined] = before, trainer.held_out_loss(held)
        with torch.no_grad():
            for weight in layers.parameters():
                weight.div_(8)
    assert losses[True][0] == pytest.approx(losses[True][1], rel=1e-3)
    assert losses[True][0] < losses[False][0] < losses[False][1]


def test_label_smoothing_shares_a_part_of_the_target_among_all_classes():
    rows = examples(np.zeros((2, 1), "f4"), np.array([0, 2]))
    found = rows.soft_targets(torch.tensor([1, 0]), 4, 0.2)
    expected = [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    weighted = examples(np.zeros((2, 1), "f4"), np.array([0, 2]), torch.tensor([3, 1]))
    found = weighted.soft_targets(torch.tensor([0]), 4, 0.2)
    np.testing.assert_allclose(found, [[2.55, 0.15, 0.15, 0.15]], rtol=1e-6)


def test_mixup_mixes_rows_and_targets_alike():
    """Shares 0.75 and 0.25 of rows 0 and 1, worked out by hand."""
    table = torch.tensor([[4.0, 0.0], [0.0, 8.0], [1.0, 1.0]])
    found = mixed(table, torch.tensor([1, 2, 0]), 0.75)
    np.testing.assert_allclose(found, [[3, 2], [0.25, 6.25], [1.75, 0.75]])


@pytest.mark.parametrize("params", [{"mixup": 1.0}, {"label_smoothing": 0.3}])
def test_softened_targets_make_less_certain_heads(params: dict[str, float]):
    x, y = clusters()
    plain = head("softmax").fit(x, y).predict_proba(x).max(axis=1).mean()
    soft = head("softmax", **params).fit(x, y).predict_proba(x).max(axis=1).mean()
    assert soft < plain - 0.02


def test_smoothing_of_next_to_nothing_is_the_plain_loss():
    """The soft targets and the class numbers are two ways through the code."""
    x, y = clusters(spread=1.0)
    weights = np.random.default_rng(0).uniform(0.1, 3, len(y))
    found = [
        head("mlp", label_smoothing=share, max_epochs=10)
        .fit(x, y, sample_weight=weights)
        .predict_proba(x)
        for share in (0.0, 1e-9)
    ]
    np.testing.assert_allclose(*found, atol=1e-4)


def test_batch_norm_predicts_by_its_running_statistics():
    x, y = clusters()
    model = head("batch norm").fit(x, y)
    together = model.predict_proba(x)
    alone = np.concatenate([model.predict_proba(row[None]) for row in x[:20]])
    np.testing.assert_allclose(alone, together[:20], atol=1e-6)
    assert np.abs(model.tensors_["0.1.running_mean"]).max() > 0.01


def test_a_last_batch_of_one_row_is_joined_for_batch_norm_only():
    order = torch.arange(9)
    for joined, sizes in ((False, [4, 4, 1]), (True, [4, 5])):
        parts = list(_batches(order, 4, joined=joined))
        assert [len(part) for part in parts] == sizes
        assert torch.equal(torch.cat(parts), order)
    assert [len(p) for p in _batches(order, 3, joined=True)] == [3, 3, 3]
    x, y = clusters(per_class=8)
    head("batch norm", batch_size=27).fit(x, y)  # 28 rows are not held out


def test_batch_norm_refuses_batches_of_one_row_before_anything_is_embedded():
    spec = heads.complete(HeadSpec.parse("mlp:batch_norm=true,batch_size=1/64"))
    with pytest.raises(InvalidSpec, match="batch_norm needs a batch_size of at least"):
        candidates(spec, SearchSpec(), 0)


@pytest.mark.parametrize("per_class", [1, 40], ids=["nothing held out", "a tenth"])
def test_a_training_that_diverges_is_an_error(per_class: int):
    x, y = clusters(per_class=per_class)
    model = head("mlp", optimiser="sgd", learning_rate=1e30)
    with pytest.raises(InvalidSpec, match=r"diverged at learning_rate 1e\+30 with sgd"):
        model.fit(x, y)


def test_logits_of_a_cosine_layer_are_cosines_times_the_sharpness():
    layer = Cosine(2, 3, 5.0)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 0.5], [-3.0, -3.0]]))
        found = layer(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    expected = [[3.0, 4.0, -7 / math.sqrt(2)], [0, 0, 0]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_sharpness_is_learned_or_stays():
    x, y = clusters()
    learned = head("cosine").fit(x, y).tensors_["0.log_sharpness"]
    assert abs(math.exp(learned) - 10) > 0.5
    fixed = head("fixed sharpness").fit(x, y).tensors_["0.log_sharpness"]
    assert math.exp(fixed) == pytest.approx(20)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [1, 1, 1, 1]),
        ("cosine", [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        ("step", [1, 1, 0.1, 0.01]),
    ],
)
def test_schedules_are_those_of_their_papers(schedule: str, rates: list[float]):
    course = {**COURSE, "schedule": schedule, "max_epochs": 4, "learning_rate": 1.0}
    found = [Course(**course).rate(epoch) for epoch in range(4)]
    assert found == pytest.approx(rates)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [("64", 64), ("512x256", "512x256"), ("0512x256", "512x256"), ("007", 7)],
)
def test_hidden_names_one_width_or_several(text: str, hidden: int | str):
    spec = HeadSpec(name="mlp", params={"hidden": text})
    assert heads.complete(spec).params["hidden"] == hidden
    spec = HeadSpec.parse(f"mlp:hidden=64/{text}")
    assert heads.complete(spec).params["hidden"] == [64, hidden]


@pytest.mark.parametrize("text", ["0x16", "16x0", "16x99999", "16x", "x16", "16x-1"])
def test_widths_that_cannot_be_are_refused(text: str):
    with pytest.raises(InvalidSpec, match="hidden must"):
        heads.complete(HeadSpec.parse(f"mlp:hidden={text}"))

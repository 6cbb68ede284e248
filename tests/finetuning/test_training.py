"""What learns, what stays, and that a broken training goes on as it would have."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from tests.exhaustive import more
from tl_pipeline.config.encoder_specs import EncoderSpec
from tl_pipeline.config.finetune_specs import FinetuneSpec
from tl_pipeline.encoders import resolution
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.finetuning.averaging import calibrated_loss
from tl_pipeline.finetuning.images import Images
from tl_pipeline.finetuning.network import Classifier, LinearHead
from tl_pipeline.finetuning.optimising import optimiser, rate
from tl_pipeline.finetuning.training import Options, Trained, train
from tl_pipeline.store.artifacts import Store

ROWS = 240


@pytest.fixture(scope="module")
def digits() -> Images:
    """Real digits of 32 x 32 pixels, and their numbers."""
    found: Any = load_digits()
    small = np.repeat(np.repeat(found.images[:ROWS], 4, 1), 4, 2)
    pixels = (small * (255 / 16)).astype(np.uint8)[:, None]
    return of(pixels, found.target[:ROWS])


def of(pixels: np.ndarray, targets: np.ndarray) -> Images:
    """Each image in its row."""
    return Images(torch.from_numpy(pixels), targets, np.arange(len(targets)))


@pytest.fixture
def encoder(store: Store) -> Encoder:
    """LeNet-5 as it comes."""
    return resolution.resolve(EncoderSpec.parse("lenet5"), store)


def head(width: int, classes: int = 10) -> LinearHead:
    """A head that knows nothing."""
    chance = np.random.default_rng(0)
    weight = chance.normal(0, 0.01, (classes, width)).astype("f4")
    zeros, ones = np.zeros(width, "f4"), np.ones(width, "f4")
    return LinearHead(weight, np.zeros(classes, "f4"), zeros, ones)


def network(encoder: Encoder, how: FinetuneSpec) -> Classifier:
    """``encoder`` with a head that knows nothing."""
    return Classifier(encoder, head(120), how)


def trained(
    net: Classifier,
    how: FinetuneSpec,
    images: Images,
    file: Path,
    done: Callable[[int], None] = lambda _: None,
    held: Images | None = None,
) -> Trained:
    """``net`` after training, not mirrored."""
    options = Options(how, mirror=False, seed=1, checkpoint=file, held=held)
    return train(net, options, images, images, done)


def test_all_blocks_learn(encoder: Encoder, digits: Images, tmp_path: Path):
    """From a head that knows nothing to most digits, in a curve of each epoch."""
    how = FinetuneSpec(epochs=4, learning_rate=2e-3)
    found = trained(network(encoder, how), how, digits, tmp_path / "c.pt")
    assert [(p.epoch, p.split) for p in found.curve[:3]] == [
        (1, "train"),
        (1, "validation"),
        (2, "train"),
    ]
    scores = [p.accuracy for p in found.curve if p.split == "validation"]
    assert scores[-1] > 0.9 > scores[0]
    assert found.curve[-1].learning_rate < 1e-4  # down the cosine


@pytest.mark.parametrize("blocks", [0, 1])
def test_what_does_not_learn_stays(
    encoder: Encoder, digits: Images, tmp_path: Path, blocks: int
):
    """Bit by bit; the last block of LeNet-5 below the head is c5."""
    how = FinetuneSpec(blocks=blocks, epochs=2)
    net = network(encoder, how)
    before = net.weights()
    trained(net, how, digits, tmp_path / "c.pt")
    moved = {n for n, v in net.weights().items() if not torch.equal(v, before[n])}
    assert moved == ({"c5.weight", "c5.bias"} if blocks else set())


def test_a_lower_block_learns_by_smaller_steps(encoder: Encoder):
    """The k-th block below the head at learning_rate x decay^k."""
    how = FinetuneSpec(decay=0.5, weight_decay=0.2)
    groups = optimiser(
        network(encoder, how), how, torch.device("cpu"), 0.1
    ).param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (rate, decay) for rate in (0.1, 0.05, 0.025, 0.0125) for decay in (0.2, 0.0)
    ]


@pytest.mark.parametrize("norm", ["frozen", "learned"])
def test_statistics_of_batch_normalisation(
    store: Store, digits: Images, tmp_path: Path, norm: str
):
    """Frozen they stay, whatever mode the network is in; their weights learn."""
    spec = EncoderSpec.parse("resnet18:weights=random:0,side=32,precision=fp32")
    small = resolution.resolve(spec, store)
    # 33: a last image alone
    images = of(np.repeat(digits.values[:33].numpy(), 3, 1), digits.targets[:33])
    how = FinetuneSpec.parse(f"blocks=1,norm={norm},epochs=1,batch_size=16")
    net = Classifier(small, head(512), how)
    before = net.weights()
    trained(net, how, images, tmp_path / "c.pt")
    moved = {n for n, v in net.weights().items() if not torch.equal(v, before[n])}
    assert {n.rpartition(".")[0] for n in moved} == {
        f"layer4.1.{name}" for name in ("conv1", "bn1", "conv2", "bn2")
    }
    statistics = {n for n in moved if n.endswith(("running_mean", "running_var"))}
    assert len(statistics) == (4 if norm == "learned" else 0)


@pytest.mark.parametrize(
    "options", [",ema=0.9", ",mixup=0.2,cutmix=1,dropout=0.3", *more("")]
)
def test_a_broken_training_ends_with_the_same_weights(
    encoder: Encoder, digits: Images, tmp_path: Path, options: str
):
    """Broken off in the third of four epochs: weights, average and schedule go on."""
    how = FinetuneSpec.parse(f"all,epochs=4,batch_size=32{options}")
    whole = network(encoder, how)
    curve = trained(whole, how, digits, tmp_path / "whole.pt").curve

    seen = 0

    def stop(number: int) -> None:
        nonlocal seen
        seen += number
        if seen > 2.5 * ROWS:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(network(encoder, how), how, digits, tmp_path / "c.pt", stop)
    again = network(encoder, how)
    found = trained(again, how, digits, tmp_path / "c.pt").curve
    for name, values in whole.state_dict().items():
        assert torch.equal(values, again.state_dict()[name]), name
    assert [(p.split, p.loss) for p in found] == [(p.split, p.loss) for p in curve]


def test_the_average_begins_with_the_weights_that_were_loaded(
    encoder: Encoder, digits: Images, tmp_path: Path
):
    """Eight steps of at most 1e-5 each leave it near them, and not at them."""
    how = FinetuneSpec.parse("all,epochs=1,batch_size=32,lr=1e-5,ema=0.99")
    net = network(encoder, how)
    before = net.weights()
    trained(net, how, digits, tmp_path / "c.pt")
    for name, values in net.weights().items():
        assert 0 < (values - before[name]).abs().max() <= 8e-5, name


@pytest.mark.parametrize("name", ["timm:resnet18", *more("resnet18")])
def test_a_network_of_any_provider_goes_on_from_its_checkpoint(
    store: Store, digits: Images, tmp_path: Path, name: str
):
    """Those of timm name their weights themselves."""
    spec = EncoderSpec.parse(f"{name}:weights=random:0,side=32,precision=fp32")
    small = resolution.resolve(spec, store)
    images = of(np.repeat(digits.values[:32].numpy(), 3, 1), digits.targets[:32])
    how = FinetuneSpec.parse("blocks=1,epochs=1,batch_size=16,ema=0.5")
    first, again = (Classifier(small, head(512), how) for _ in range(2))
    untrained = again.weights()
    for net in (first, again):  # the second finds its only epoch done
        trained(net, how, images, tmp_path / "c.pt")
    for weight, values in first.weights().items():
        assert torch.equal(values, again.weights()[weight]), weight
    assert any(not torch.equal(v, untrained[n]) for n, v in first.weights().items())


def test_cores_do_not_change_what_is_learned(
    encoder: Encoder, digits: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Gradients of shares of a batch add up to those of the batch."""
    how = FinetuneSpec(epochs=1, batch_size=40, precision="fp32")
    found = []
    for cores in ("1", "3"):
        monkeypatch.setenv("TL_CORES", cores)
        net = network(encoder, how)
        trained(net, how, digits, tmp_path / f"{cores}.pt")
        found.append(net.weights())
    for name, values in found[0].items():
        torch.testing.assert_close(values, found[1][name], rtol=1e-4, atol=1e-5)


def test_wise_is_chosen_by_images_left_out(
    encoder: Encoder, digits: Images, tmp_path: Path
):
    """Labels without a meaning: the weights from before are as good or better."""
    chance = np.random.default_rng(0)
    wrong = replace(digits, targets=chance.permutation(digits.targets))
    how = FinetuneSpec(epochs=2, learning_rate=1e-2, wise=True)
    found = trained(network(encoder, how), how, wrong, tmp_path / "c.pt", held=digits)
    assert found.mix is not None
    assert found.mix <= 0.5
    right = trained(network(encoder, how), how, digits, tmp_path / "d.pt", held=digits)
    assert right.mix is not None
    assert right.mix >= 0.7


def test_a_training_that_diverges(encoder: Encoder, digits: Images, tmp_path: Path):
    """It ends at once, with the cure."""
    how = FinetuneSpec(optimiser="sgd", learning_rate=10, warmup=0, epochs=3)
    net = network(encoder, how)
    with torch.no_grad():
        net.head.weight.mul_(1e20)
    with pytest.raises(InvalidSpec, match=r"diverged in epoch 1 at learning_rate 10 "):
        trained(net, how, digits, tmp_path / "c.pt")
    assert not (tmp_path / "c.pt").exists()


def test_dropout_before_what_learns_is_off(store: Store):
    """Of AlexNet up to fc7 that alone learns: what comes before it gives the same."""
    text = "alexnet:weights=random:0,side=64,precision=fp32"
    small = resolution.resolve(EncoderSpec.parse(text), store)
    on = {}
    for how in ("blocks=1", "all"):
        net = Classifier(small, head(4096), FinetuneSpec.parse(how))
        net.train()
        on[how] = [
            name
            for name, module in net.extractor.body.named_modules()
            if isinstance(module, nn.Dropout) and module.training
        ]
    assert on == {"blocks=1": [], "all": ["classifier.0", "classifier.3"]}


def test_frozen_blocks_take_no_gradient(encoder: Encoder):
    """Their modules stay in evaluation too."""
    net = network(encoder, FinetuneSpec(blocks=0))
    net.train()
    assert not any(p.requires_grad for p in net.extractor.parameters())
    assert not any(module.training for module in net.extractor.modules())
    assert isinstance(net.head, nn.Linear)
    assert net.head.weight.requires_grad


@pytest.mark.parametrize(
    ("text", "steps", "expected"),
    [("all", 2000, 1e-3), ("all", 24, 4.8e-5), ("all,lr=0.01", 24, 0.01)],
)
def test_few_steps_are_short(text: str, steps: int, expected: float):
    """Where no rate is given: what a network knew must outlive them."""
    assert rate(FinetuneSpec.parse(text), steps) == pytest.approx(expected)


def test_a_mix_is_judged_at_the_temperature_that_suits_it():
    """How sure the network is does not count; how often it is right does."""
    truth = torch.tensor([0, 1, 0, 1])
    fair = torch.tensor([[0.8, 0.2], [0.2, 0.8], [0.8, 0.2], [0.8, 0.2]]).log()
    best = -(3 * math.log(0.75) + math.log(0.25)) / 4
    losses = [calibrated_loss(k * fair, truth) for k in (1, 2, 8)]
    assert losses == pytest.approx([best] * 3, abs=1e-3)
    wrong = fair.flip(dims=[1])
    assert calibrated_loss(wrong, truth) > best + 0.1

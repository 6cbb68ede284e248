"""Several processes that train together learn what one learns."""

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, nn

from tl_pipeline.config.encoder_specs import EncoderSpec
from tl_pipeline.config.finetune_specs import FinetuneSpec
from tl_pipeline.encoders import resolution
from tl_pipeline.errors import InvalidSpec, MachineError
from tl_pipeline.finetuning import processes
from tl_pipeline.finetuning.images import Images
from tl_pipeline.finetuning.network import Classifier, LinearHead, classifier
from tl_pipeline.finetuning.processes import Inputs
from tl_pipeline.finetuning.training import Options, Point
from tl_pipeline.store.artifacts import Store

pytestmark = pytest.mark.skipif(
    not distributed.is_available(), reason="torch without processes"
)
# Six steps in two epochs; 11 images of a batch cannot be shared out alike.
NUMBER = 22 + 22 + 11
HOW = "all,epochs=2,batch_size=22,lr=0.01,precision=fp32,mixup=0.2,warmup=0,ema=0.9"
Build = Callable[[], Classifier]


def values() -> torch.Tensor:
    """Noise, uint8 (n, 1, 32, 32)."""
    chance = np.random.default_rng(0)
    return torch.from_numpy(chance.integers(0, 256, (NUMBER, 1, 32, 32), np.uint8))


def first_head() -> LinearHead:
    chance = np.random.default_rng(0)
    weight = chance.normal(0, 0.1, (4, 120)).astype("f4")
    zeros, ones = np.zeros(120, "f4"), np.ones(120, "f4")
    return LinearHead(weight, np.zeros(4, "f4"), zeros, ones)


@pytest.fixture
def build(store: Store) -> Build:
    """LeNet-5 with a head that knows nothing, in any process."""
    encoder = resolution.resolve(EncoderSpec.parse("lenet5"), store)
    how = FinetuneSpec.parse(HOW)
    return partial(classifier, encoder, first_head(), how, divided=False)


def learned(
    build: Build, how: str, file: Path, number: int
) -> tuple[dict[str, torch.Tensor], list[Point], int]:
    """Weights and curve after training in ``number`` processes; images learned from."""
    network, seen = build(), list[int]()
    targets, rows = np.arange(NUMBER) % 4, np.arange(NUMBER)
    teacher = np.random.default_rng(1).dirichlet(np.ones(4), NUMBER).astype("f4")
    images = Images(values(), targets, rows, None, teacher)
    inputs = Inputs(build, values, images, images)
    options = Options(FinetuneSpec.parse(how), mirror=True, seed=1, checkpoint=file)
    curves = list[list[Point]]()
    found = processes.train(
        network, inputs, options, seen.append, lambda c: curves.append(list(c)), number
    )
    assert len(curves[-1]) == len(found.curve)
    return dict(network.state_dict()), found.curve, sum(seen)


def killed(build: Build, passes: int) -> Classifier:
    """A network whose second process is killed after so many passes forward."""
    network, left = build(), iter(range(passes))

    def count(*_: object) -> None:
        second = distributed.is_initialized() and distributed.get_rank() == 1
        if second and next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    network.head.register_forward_hook(count)
    return network


def diverging(build: Build) -> Classifier:
    network = build()
    with torch.no_grad():
        network.head.weight.mul_(float("inf"))
    return network


@pytest.mark.exhaustive  # that two give what one does: test_finetune.py
def test_two_processes_learn_what_one_learns(build: Build, tmp_path: Path):
    """After six steps of the same batches. One is killed: run again it ends the same.

    It ends the training with a message, and the other with it.
    """
    one, curve, seen = learned(build, HOW, tmp_path / "one.pt", 1)
    two, found, also = learned(build, HOW, tmp_path / "two.pt", 2)
    assert seen == also == 2 * NUMBER
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=1e-5, atol=1e-5)
    assert [(p.epoch, p.split) for p in found[:2]] == [(1, "train"), (1, "validation")]
    for point, other in zip(found, curve, strict=True):
        assert point.loss == pytest.approx(other.loss, rel=1e-5)
        assert point.accuracy == other.accuracy

    file = tmp_path / "checkpoint.pt"
    told = r"process 2 of 2 that train together was ended by SIGKILL.* Run again"
    with pytest.raises(MachineError, match=told):
        learned(partial(killed, build, 5), HOW, file, 2)
    assert torch.load(file, weights_only=True)["epochs"] == 1
    again, resumed, _ = learned(build, HOW, file, 2)
    for name, weights in two.items():
        assert torch.equal(again[name], weights), name
    assert [p.loss for p in resumed] == [p.loss for p in found]


@pytest.mark.exhaustive  # beside the one above
def test_what_ends_a_process_on_purpose_is_told_as_it_is(build: Build, tmp_path: Path):
    """As of one process: that it diverged, and the cure."""
    with pytest.raises(InvalidSpec, match=r"diverged in epoch 1 .* longer warmup"):
        learned(partial(diverging, build), HOW, tmp_path / "c.pt", 2)


def test_what_needs_whole_batches_learns_in_one_process(
    build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """And it is said, with what would let it use all."""
    network = build()
    network.dropout = nn.Dropout(0.5)
    images = Images(values(), np.arange(NUMBER) % 4, np.arange(NUMBER))
    options = Options(FinetuneSpec.parse(HOW), True, 1, tmp_path / "c.pt")
    inputs = Inputs(build, values, images, None)
    processes.train(network, inputs, options, lambda _: None, lambda _: None, 2)
    said = capsys.readouterr()
    assert "one GPU of 2 is used; all are with norm=frozen" in said.out + said.err

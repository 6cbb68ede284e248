"""Several processes that train together learn what one learns."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from tl_pipeline.config.encoder_specs import EncoderSpec
from tl_pipeline.config.finetune_specs import FinetuneSpec
from tl_pipeline.encoders import resolution
from tl_pipeline.finetuning.network import Classifier, LinearHead
from tl_pipeline.finetuning.training import Images, train
from tl_pipeline.store.artifacts import Store

PROCESSES = 2
# Five steps in an epoch; 13 images of a batch cannot be shared out alike.
NUMBER = 4 * 13 + 8
HOW = "all,epochs=1,batch_size=13,lr=0.01,precision=fp32,mixup=0.2,warmup=0"


def learned(place: Path) -> dict[str, torch.Tensor]:
    """The weights of LeNet-5 after five steps, and its losses."""
    encoder = resolution.resolve(EncoderSpec.parse("lenet5"), Store.open(place / "st"))
    chance = np.random.default_rng(0)
    zeros, ones = np.zeros(120, "f4"), np.ones(120, "f4")
    weight = chance.normal(0, 0.1, (4, 120)).astype("f4")
    head = LinearHead(weight, np.zeros(4, "f4"), zeros, ones)
    how = FinetuneSpec.parse(HOW)
    network = Classifier(encoder, head, how)
    pixels = chance.integers(0, 256, (NUMBER, 1, 32, 32)).astype(np.uint8)
    images = Images(torch.from_numpy(pixels), np.arange(NUMBER) % 4, np.arange(NUMBER))
    found = train(
        network,
        how,
        images,
        {"validation": images},
        mirror=True,
        seed=1,
        checkpoint=place / "checkpoint.pt",
    )
    losses = torch.tensor([[p.loss, p.accuracy] for p in found.curve])
    return {**network.state_dict(), "losses": losses}


def one_of_several(process: int, place: Path) -> None:
    """What each process does; each has a folder to write to."""
    meeting = f"file://{place / 'meeting'}"
    distributed.init_process_group(
        "gloo", init_method=meeting, rank=process, world_size=PROCESSES
    )
    own = place / str(process)
    own.mkdir()
    torch.save(learned(own), own / "weights.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="torch without processes")
def test_two_processes_learn_what_one_learns(tmp_path: Path):
    """After five steps of the same batches; the first alone keeps a checkpoint."""
    spawn(one_of_several, (tmp_path,), nprocs=PROCESSES)
    alone = tmp_path / "alone"
    alone.mkdir()
    expected = learned(alone)
    for process in range(PROCESSES):
        found = torch.load(tmp_path / str(process) / "weights.pt")
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            torch.testing.assert_close(found[name], values, rtol=1e-5, atol=1e-5)
    assert (tmp_path / "0" / "checkpoint.pt").exists()
    assert not (tmp_path / "1" / "checkpoint.pt").exists()

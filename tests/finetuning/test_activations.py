"""What frozen blocks give is computed once, and the tail learns as ever."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.exhaustive import more
from tl_pipeline.config.encoder_specs import EncoderSpec
from tl_pipeline.config.finetune_specs import FinetuneSpec
from tl_pipeline.encoders import resolution
from tl_pipeline.errors import MachineError
from tl_pipeline.finetuning import activations, pixels
from tl_pipeline.finetuning.images import Images
from tl_pipeline.finetuning.network import Classifier, LinearHead
from tl_pipeline.finetuning.training import Options, train
from tl_pipeline.store.artifacts import Store

NUMBER = 48
REFERENCES = [(f"{number:032x}", f"{number}.jpg") for number in range(NUMBER)]
FP32 = "weights=random:0,precision=fp32"


def classifier(text: str, how: str, store: Store, width: int) -> Classifier:
    """A network with a head of four classes that knows nothing."""
    encoder = resolution.resolve(EncoderSpec.parse(text), store)
    chance = np.random.default_rng(0)
    zeros, ones = np.zeros(width, "f4"), np.ones(width, "f4")
    weight = chance.normal(0, 0.1, (4, width)).astype("f4")
    head = LinearHead(weight, np.zeros(4, "f4"), zeros, ones)
    return Classifier(encoder, head, FinetuneSpec.parse(how))


def photos(channels: int, side: int) -> np.ndarray:
    """Noise about four means, uint8 (n, channels, side, side)."""
    chance = np.random.default_rng(0)
    noise = chance.integers(0, 100, (NUMBER, channels, side, side))
    return (noise + 30 * (np.arange(NUMBER) % 4)[:, None, None, None]).astype(np.uint8)


def decoder(found: np.ndarray) -> Callable[[Sequence[tuple[str, str]]], np.ndarray]:
    """Decodes ``REFERENCES`` to ``found``."""
    return lambda some: found[[int(one, 16) for one, _ in some]]


def kept(folder: Path, found: np.ndarray, prefix: nn.Module) -> torch.Tensor:
    """What ``prefix`` gives in float32."""
    decode = decoder(found)
    arguments = (REFERENCES, decode, found.shape[1:], prefix, torch.float32)
    return activations.keep(folder, *arguments).opened()


@pytest.mark.parametrize(
    ("text", "how", "width", "shape"),
    [
        ("lenet5", "blocks=1", 120, (16, 5, 5)),
        (f"resnet18:{FP32},side=64", "blocks=1", 512, (512, 2, 2)),
        (f"resnet18:{FP32},side=64", "head", 512, (512,)),
        (f"squeezenet1_0:{FP32},side=64", "blocks=2", 512, (384, 7, 7)),
        (f"timm:resnet18:{FP32},side=64", "blocks=3", 512, (256, 4, 4)),
        *more(
            (f"densenet121:{FP32},side=64", "blocks=1", 1024, (512, 2, 2)),
            (f"efficientnet_b0:{FP32},side=64", "blocks=2", 1280, (192, 2, 2)),
            (f"swin_t:{FP32}", "blocks=2", 768, (7, 7, 768)),
            (f"vit_b_32:{FP32}", "blocks=2", 768, (50, 768)),
            (f"timm:vit_tiny_patch16_224:{FP32}", "blocks=2", 192, (197, 192)),
            (f"timm:convnext_atto:{FP32}", "blocks=1", 320, (320, 7, 7)),
        ),
    ],
)
def test_a_network_is_the_two_halves_one_after_the_other(
    store: Store, text: str, how: str, width: int, shape: tuple[int, ...]
):
    """Bit by bit, in training too, and its weights keep their names."""
    net = classifier(text, how, store, width)
    net.train()
    channels, side = net._image[0], net._image[1]
    batch = torch.from_numpy(photos(channels, side)[:3]).float() / 255
    torch.manual_seed(0)  # stochastic depth draws
    whole, before = net(batch).detach(), net.weights()
    prefix = net.divided()
    assert prefix is not None
    net.train()
    found = prefix(batch)
    assert found.shape[1:] == shape
    torch.manual_seed(0)
    assert torch.equal(net(found), whole)
    assert not any(p.requires_grad for p in prefix.parameters())
    after = net.weights()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def losses(net: Classifier, images: Images, how: str, file: Path) -> list[float]:
    """Those of the learning curve."""
    options = Options(FinetuneSpec.parse(how), mirror=False, seed=3, checkpoint=file)
    found = train(net, options, images, images)
    return [point.loss for point in found.curve]


@pytest.mark.parametrize(
    ("text", "width", "more"),
    [
        ("lenet5", 120, ",ema=0.5,dropout=0.2"),
        *more((f"resnet18:{FP32},side=32", 512, ",norm=learned")),
    ],
)
def test_the_tail_learns_as_in_ordinary_training(
    store: Store, tmp_path: Path, text: str, width: int, more: str
):
    """The same losses in training and validation, and the same weights after it."""
    how = f"blocks=1,augment=none,precision=fp32,epochs=3,batch_size=16,lr=0.002{more}"
    whole = classifier(text, how, store, width)
    found = photos(whole._image[0], 32)
    targets, rows = np.arange(NUMBER) % 4, np.arange(NUMBER)
    ordinary = losses(
        whole,
        Images(torch.from_numpy(found), targets, rows),
        how,
        tmp_path / "whole.pt",
    )
    tail = classifier(text, how, store, width)
    prefix = tail.divided()
    assert prefix is not None
    images = Images(kept(tmp_path, found, prefix), targets, rows)
    assert losses(tail, images, how, tmp_path / "tail.pt") == pytest.approx(
        ordinary, rel=1e-4
    )
    assert ordinary[-1] < ordinary[0]
    for name, values in whole.weights().items():
        torch.testing.assert_close(tail.weights()[name], values, rtol=1e-4, atol=1e-5)


def test_a_file_is_whole_or_absent(store: Store, tmp_path: Path):
    """Broken off it is computed again; whole it is read, and nothing is decoded."""
    found = photos(1, 32)
    prefix = classifier("lenet5", "blocks=1", store, 120).divided()
    assert prefix is not None

    def broken(some: Sequence[Any]) -> np.ndarray:  # noqa: ARG001
        raise KeyboardInterrupt

    place = tmp_path / "inputs"
    place.mkdir()
    arguments = (found.shape[1:], prefix, torch.float32)
    with pytest.raises(KeyboardInterrupt):
        activations.keep(place, REFERENCES, broken, *arguments)
    assert not list(place.glob("[!.]*"))
    first = kept(place, found, prefix)
    with torch.no_grad():
        expected = prefix(torch.from_numpy(found).float() / 255)
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-6)
    again = activations.keep(place, REFERENCES, broken, *arguments)
    assert torch.equal(again.opened(), first)


def test_a_disk_without_room(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It is said before anything is computed, with the cure."""
    place = tmp_path / "inputs"
    place.mkdir()
    usage = pixels.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(pixels.shutil, "disk_usage", lambda _: usage)
    prefix = classifier("lenet5", "blocks=1", store, 120).divided()
    assert prefix is not None
    with pytest.raises(MachineError, match=r"for 48 images take .* free some space"):
        kept(place, photos(1, 32), prefix)
    assert not list(place.iterdir())

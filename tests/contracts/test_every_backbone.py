"""What every (backbone, layer) of BACKBONES promises; untrained, so offline."""

import gc
import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.feature_extraction import get_graph_node_names
from torchvision.transforms import v2

from tl_pipeline import backbones, networks
from tl_pipeline.backbones import BACKBONES, Backbone, Layer
from tl_pipeline.errors import UnknownName
from tl_pipeline.images import pixels
from tl_pipeline.lenet import LeNet5

SEED = 7
PAIRS = [(name, layer) for name, row in BACKBONES.items() for layer in row.layers]
NAMED = [
    (row.name, member)
    for row in BACKBONES.values()
    if row.origin == "torchvision"
    for member in get_model_weights(row.name).__members__
]
# Smaller than the crop, between crop and resize, larger; portrait, landscape, odd.
# 303 - 224 = 79 halves to 39.5: there rounding half to even shows.
SIZES = [(17, 17), (37, 91), (224, 224), (225, 223), (256, 303), (303, 256), (500, 375)]


class Pair:
    """One backbone and layer with its untrained network and a batch of four images."""

    def __init__(self, name: str, layer: str) -> None:
        self.name, self.layer_name = name, layer
        self.backbone: Backbone = BACKBONES[name]
        self.layer: Layer = self.backbone.layers[layer]
        how = backbones.named_weights(self.backbone, self.backbone.weights).preprocess
        chance = torch.Generator().manual_seed(1)
        shape = (4, len(how.mean) if not how.grey else 1, how.crop, how.crop)
        self.batch = torch.randn(shape, generator=chance)
        self.network = self.drawn(SEED)
        self.embeddings = self.embed(self.network)

    def drawn(self, seed: int) -> nn.Module:
        """The network drawn from ``seed``."""
        gc.collect()
        return networks.untrained(self.backbone, self.layer, seed)

    @torch.inference_mode()
    def embed(self, network: nn.Module) -> torch.Tensor:
        """The embeddings of the batch."""
        return network(self.batch)


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest) -> Pair:
    """Built once per pair."""
    return Pair(*request.param)


@pytest.fixture(autouse=True)
def collected():
    """Networks are cyclic garbage, and vgg16 fills half a GB: collect it at once."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A photo-like picture: smooth colours and sharp noise."""
    chance = np.random.default_rng(0)
    coarse = chance.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
    noise = chance.integers(-20, 21, (480, 640, 3))
    return Image.fromarray((np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8))


def test_it_is_frozen_and_in_eval_mode(pair: Pair):
    assert not [n for n, m in pair.network.named_modules() if m.training]
    assert not [n for n, p in pair.network.named_parameters() if p.requires_grad]


def test_embeddings_are_finite_float32_rows(pair: Pair):
    assert pair.embeddings.dtype == torch.float32
    assert pair.embeddings.ndim == 2
    assert len(pair.embeddings) == 4
    assert torch.isfinite(pair.embeddings).all()
    assert pair.embeddings.std() > 0


def test_the_batch_does_not_change_an_embedding(pair: Pair):
    scale = pair.embeddings.abs().max()
    with torch.inference_mode():
        alone = torch.cat([pair.network(image[None]) for image in pair.batch])
    assert (alone - pair.embeddings).abs().max() <= 1e-5 * scale


def test_the_seed_alone_decides_the_untrained_weights(pair: Pair):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    again = pair.embed(pair.drawn(SEED))
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's draws move
    assert torch.equal(again, pair.embeddings)
    assert not torch.equal(pair.embed(pair.drawn(SEED + 1)), pair.embeddings)


def test_the_layer_is_found_by_its_name(pair: Pair):
    assert pair.backbone.layer(pair.layer_name) == (pair.layer_name, pair.layer)


def _torchvision(name: str) -> nn.Module:
    torch.manual_seed(SEED)
    return get_model(name, weights=None).eval()


def _classifier(name: str, end: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Alexnet or vgg16 by hand, with the first ``end`` modules of its classifier."""
    ref = _torchvision(name)
    return lambda x: ref.classifier[:end](ref.avgpool(ref.features(x)).flatten(1))


def _without_fc(name: str) -> nn.Module:
    ref = _torchvision(name)
    ref.fc = nn.Identity()
    return ref


def _mobilenet() -> Callable[[torch.Tensor], torch.Tensor]:
    ref = _torchvision("mobilenet_v3_small")
    return lambda x: ref.features(x).mean(dim=(2, 3))


def _squeezenet() -> Callable[[torch.Tensor], torch.Tensor]:
    ref = _torchvision("squeezenet1_0")
    return lambda x: ref.features[:13](x).mean(dim=(2, 3))


def _lenet(layer: str) -> Callable[[torch.Tensor], torch.Tensor]:
    torch.manual_seed(SEED)
    ref = LeNet5().eval()

    def c5(x: torch.Tensor) -> torch.Tensor:
        maps = ref.s2(ref.c1(x).relu())
        return ref.c5(ref.s4(ref.c3(maps).relu())).relu().flatten(1)

    return c5 if layer == "c5" else lambda x: ref.f6(c5(x)).relu()


# Each layer by hand: the function, the width, and whether a ReLU was its last step.
BY_HAND = {
    ("lenet5", "c5"): (lambda: _lenet("c5"), 120, True),
    ("lenet5", "f6"): (lambda: _lenet("f6"), 84, True),
    ("alexnet", "fc6"): (lambda: _classifier("alexnet", 3), 4096, True),
    ("alexnet", "fc7"): (lambda: _classifier("alexnet", 6), 4096, True),
    ("vgg16", "fc6"): (lambda: _classifier("vgg16", 2), 4096, True),
    ("vgg16", "fc7"): (lambda: _classifier("vgg16", 5), 4096, True),
    ("squeezenet1_0", "fire9"): (_squeezenet, 512, True),
    ("resnet18", "avgpool"): (lambda: _without_fc("resnet18"), 512, True),
    ("resnet50", "avgpool"): (lambda: _without_fc("resnet50"), 2048, True),
    ("mobilenet_v3_small", "avgpool"): (_mobilenet, 576, False),
}


def test_it_equals_the_layer_computed_by_hand(pair: Pair):
    if (pair.name, pair.layer_name) not in BY_HAND:
        pytest.skip("no fact by hand for this layer yet")
    build, width, after_relu = BY_HAND[pair.name, pair.layer_name]
    with torch.inference_mode():
        expected = build()(pair.batch)
    assert pair.embeddings.shape == (4, width)
    assert (pair.embeddings.min() >= 0) == after_relu
    torch.testing.assert_close(pair.embeddings, expected, rtol=1e-5, atol=1e-6)


def test_facts_by_hand_are_about_listed_layers():
    assert BY_HAND.keys() <= set(PAIRS)


@pytest.mark.parametrize("row", BACKBONES.values(), ids=BACKBONES)
def test_every_node_is_in_the_graph_of_the_network(row: Backbone):
    with torch.device("meta"):
        network = LeNet5() if row.origin == "ours" else get_model(row.name)
    _, nodes = get_graph_node_names(network.eval())
    assert {layer.node for layer in row.layers.values()} <= set(nodes)


@pytest.mark.parametrize("row", BACKBONES.values(), ids=BACKBONES)
def test_the_default_layer_is_the_first_listed(row: Backbone):
    first = next(iter(row.layers.items()))
    assert row.layer(None) == row.layer(row.default_layer) == first


@pytest.mark.parametrize("row", BACKBONES.values(), ids=BACKBONES)
def test_an_unknown_layer_names_the_choices(row: Backbone):
    with pytest.raises(UnknownName) as fault:
        row.layer("nosuch")
    assert all(word in str(fault.value) for word in (row.name, "nosuch", *row.layers))


@pytest.mark.parametrize("row", BACKBONES.values(), ids=BACKBONES)
def test_unknown_weights_name_the_choices(row: Backbone):
    with pytest.raises(UnknownName) as fault:
        backbones.named_weights(row, "NOSUCH")
    assert row.weights in str(fault.value)


def test_an_unknown_backbone_suggests_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'resnet50'"):
        backbones.find_backbone("resnet5")


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize(("name", "member"), NAMED, ids="-".join)
def test_preprocessing_is_exactly_torchvisions(
    name: str, member: str, size: tuple[int, int], photo: Image.Image
):
    image = photo.crop((20, 30, 20 + size[0], 30 + size[1]))
    how = backbones.named_weights(BACKBONES[name], member).preprocess
    ours = torch.from_numpy(np.array(pixels(_png(image), how))).to(torch.float32) / 255
    mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (how.mean, how.std))
    theirs = get_model_weights(name)[member].transforms()(image)
    assert torch.equal((ours - mean) / std, theirs)


@pytest.mark.parametrize("size", [(8, 8), (33, 57), (500, 375)])
def test_lenet5_sees_grey_32x32_in_minus_one_to_one(
    size: tuple[int, int], photo: Image.Image
):
    image = photo.crop((0, 0, *size))
    row = BACKBONES["lenet5"]
    how = backbones.named_weights(row, row.weights).preprocess
    expected = v2.Compose([v2.Grayscale(), v2.Resize(32), v2.CenterCrop(32)])(image)
    assert np.array_equal(pixels(_png(image), how), np.asarray(expected)[None])
    assert (how.mean, how.std) == ((0.5,), (0.5,))

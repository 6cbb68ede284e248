"""What every network of BACKBONES promises, under every layer that it lists.

Offline, so with random weights; on the smallest inputs that the networks accept.
"""

import gc
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision.models
from torch import nn
from torchvision.models import get_model_weights, list_models

from tests.likely_weights import State, likely_state, noise
from tl_pipeline.config.specs import EncoderSpec
from tl_pipeline.encoders import backbones, networks, resolution
from tl_pipeline.encoders.backbones import BACKBONES, Backbone
from tl_pipeline.errors import UnknownName, WeightsError
from tl_pipeline.store.artifacts import Store

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGES = 2
PUBLISHED = [row for row in BACKBONES.values() if row.origin[:5] == "torch"]
# Of each kind of graph one: what they share is tested always, what tells the others
# apart by `make test-all`.
ALWAYS = (
    "lenet5",  # our own
    "squeezenet1_0",  # a classifier that is a convolution
    "resnet18",
    "googlenet",  # auxiliary heads
    "mobilenet_v3_small",  # squeeze and excitation
    "vit_b_32",  # tokens
    "swin_t",  # windows
    "fasterrcnn_mobilenet_v3_large_320_fpn",  # a detector: several maps
)
NETWORKS = [
    name if name in ALWAYS else pytest.param(name, marks=pytest.mark.exhaustive)
    for name in BACKBONES
]


def smallest(name: str) -> int:
    """A side in pixels that ``name`` accepts, at which its last maps are small."""
    if name.startswith("vit_"):
        return 2 * int(name.rpartition("_")[2])
    known = {
        "lenet5": 32,
        "caffe_alexnet": 227,
        "inception_v3": 107,
        "maxvit_t": 224,
        "ssd300_vgg16": 300,
    }
    return known.get(name, 64 if BACKBONES[name].origin == "torchvision" else 128)


class Network:
    """One network with likely weights, cut at all its layers, and what they gave.

    Only the small results are kept: the largest network has 2.6 GB of weights.
    """

    def __init__(self, name: str) -> None:
        self.backbone = BACKBONES[name]
        self.layers = list(self.backbone.layers)
        side = smallest(name)
        named = backbones.named_weights(self.backbone, self.backbone.weights)
        how = named.preprocess.model_copy(update={"crop": side})
        batch = noise(IMAGES, networks.input_shape(how)[0], side)
        state = likely_state(self.backbone, side)
        layers = list(self.backbone.layers.values())
        cut = networks.pretrained(self.backbone, layers, how, state, Path("likely"))
        self.training = [n for n, module in cut.named_modules() if module.training]
        self.learning = [n for n, p in cut.named_parameters() if p.requires_grad]
        self.widths = cut.widths
        self.together = cut(batch)
        self.again = cut(batch)
        self.last_alone = cut(batch[-1:])
        self.last_input = last_input(self.backbone, side, state, batch)


@torch.no_grad()
def last_input(
    backbone: Backbone, side: int, state: State, batch: torch.Tensor
) -> torch.Tensor | None:
    """What the last layer of a classifier sees, by a hook in the whole network."""
    if backbone.origin == "torchvision detection":
        return None
    network = networks.hollow(backbone, side, state)
    network.load_state_dict(state, assign=True)
    last = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    seen: list[torch.Tensor] = []
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(batch)
    (found,) = seen
    return found.mean(dim=(2, 3)) if found.ndim == 4 else found


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    """Built once per network; networks are cyclic garbage, so collected at once."""
    gc.collect()
    yield Network(request.param)
    gc.collect()


def test_it_is_frozen_and_in_eval_mode(network: Network):
    assert network.training == []
    assert network.learning == []
    assert not any(vectors.requires_grad for vectors in network.together)


def test_embeddings_are_finite_rows_of_the_declared_width(network: Network):
    for vectors, width in zip(network.together, network.widths, strict=True):
        assert vectors.dtype == torch.float32
        assert vectors.shape == (IMAGES, width)
        assert torch.isfinite(vectors).all()


def test_other_images_have_other_embeddings(network: Network):
    """So that the next two tests say something."""
    for name, vectors in zip(network.layers, network.together, strict=True):
        assert _apart(vectors[0], vectors[1]) > 1e-3, name


def test_it_is_deterministic(network: Network):
    for first, again in zip(network.together, network.again, strict=True):
        assert torch.equal(first, again)


def test_the_batch_does_not_change_an_embedding(network: Network):
    pairs = zip(network.layers, network.together, network.last_alone, strict=True)
    for name, together, alone in pairs:
        assert _apart(together[-1:], alone) <= 1e-5, name


def test_penultimate_is_what_the_last_layer_of_the_classifier_sees(network: Network):
    if network.last_input is None:
        assert network.backbone.origin == "torchvision detection"
        return
    found = network.together[network.layers.index("penultimate")]
    assert _apart(found, network.last_input) <= 1e-5


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, in units of the largest value."""
    return float((one - other).abs().max() / torch.maximum(one, other).abs().max())


def test_the_table_has_every_classification_network_of_torchvision():
    ours = {n for n, row in BACKBONES.items() if row.origin == "torchvision"}
    assert ours == set(list_models(module=torchvision.models))


def test_the_table_has_every_detection_network_of_torchvision():
    ours = {n for n, row in BACKBONES.items() if row.origin == "torchvision detection"}
    assert ours == set(list_models(module=torchvision.models.detection))


def test_the_default_layer_is_the_first_and_penultimate_is_always_there():
    for name, row in BACKBONES.items():
        first = next(iter(row.layers.items()))
        assert row.layer(None) == row.layer(row.default_layer) == first, name
        assert "penultimate" in row.layers, name


def test_an_unknown_layer_names_the_choices():
    for row in BACKBONES.values():
        with pytest.raises(UnknownName) as fault:
            row.layer("nosuch")
        told = (row.name, "nosuch", *row.layers)
        assert [word for word in told if word not in str(fault.value)] == [], row.name


def test_unknown_weights_name_the_choices():
    for row in BACKBONES.values():
        with pytest.raises(UnknownName) as fault:
            backbones.named_weights(row, "NOSUCH")
        assert row.weights in str(fault.value), row.name


def test_published_weights_are_named_with_file_size_and_promise():
    """``DEFAULT`` gives the member it stands for; the file's name promises a hash."""
    for row in PUBLISHED:
        members = get_model_weights(row.name).__members__
        assert row.weights in members, row.name
        for member in members:
            named = backbones.named_weights(row, member)
            assert named.name == members[member].name
            assert named.megabytes > 1, member
            assert named.url.endswith(f"/{named.file.name}"), member
            assert re.fullmatch("[0-9a-f]{8,}", named.sha256_prefix), member


def test_missing_weights_say_which_file_to_put_where(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for row in PUBLISHED:
        named = backbones.named_weights(row, row.weights)
        with pytest.raises(WeightsError) as fault:
            resolution.resolve(EncoderSpec(backbone=row.name), store)
        size = f"{named.megabytes:.0f} MB"
        told = (row.weights, str(named.file), size, named.url, "weights=FILE")
        assert [word for word in told if word not in str(fault.value)] == [], row.name


def test_an_unknown_backbone_suggests_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'resnet50'"):
        backbones.find_backbone("resnet5")

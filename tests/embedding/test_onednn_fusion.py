"""Faster graphs: the same embeddings, one network of each family."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from tests.exhaustive import more
from tl_pipeline.config.specs import EncoderSpec
from tl_pipeline.embedding import onednn_fusion
from tl_pipeline.embedding.forward import Forward
from tl_pipeline.embedding.onednn_fusion import _Packed
from tl_pipeline.encoders import loading, resolution
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.store.artifacts import Store

# One of each family, as small as it comes; layers before and after what is fused.
NETWORKS = [
    "lenet5",
    "resnet18:layer=layer2.1.add",
    "squeezenet1_1",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "timm:tf_efficientnet_lite0:side=97",  # pads by the size of its input
    "timm:vit_tiny_patch16_224:layer=last2,pool=cls+mean,side=64",
    "timm:naflexvit_base_patch16_gap:side=32",  # cannot be traced
    *more(
        "alexnet:layer=fc7",
        "vgg11_bn:layer=features.7",
        "resnet18",
        "resnet18:layer=layer1.0.conv1",
        "googlenet",
        "densenet121:crop=96,resize=96",
        "mobilenet_v2",
        "mnasnet0_5",
        "efficientnet_b0",
        "regnet_y_400mf",
        "convnext_tiny:crop=96,resize=96",
        "swin_t:crop=96,resize=96",
        "timm:efficientnet_b0:side=96",
        "timm:resnet10t:layer=layer2,side=96",
        "timm:convnext_atto:layer=stages.1,side=96",
    ),
]


def encoder_of(text: str, store: Store, **changes) -> Encoder:
    """The encoder that ``text`` names, with random weights."""
    spec = EncoderSpec.parse(text).model_copy(update={"weights": "random:0", **changes})
    return resolution.resolve(spec, store)


def noise(how: Preprocess, images: int) -> np.ndarray:
    """uint8 pixels (images, channels, crop, crop), channels last in memory."""
    channels = 1 if how.grey else len(how.mean)
    shape = (images, how.crop, how.crop, channels)
    chance = np.random.default_rng(0)
    return chance.integers(0, 256, shape, dtype=np.uint8).transpose(0, 3, 1, 2)


@torch.inference_mode()
def plainly(encoder: Encoder, batch: np.ndarray) -> np.ndarray:
    """The embeddings by the network as it was loaded."""
    how = encoder.preprocess
    assert isinstance(how, Preprocess)
    mean, std = (torch.tensor(v).reshape(1, -1, 1, 1) for v in (how.mean, how.std))
    values = torch.from_numpy(np.ascontiguousarray(batch)).float() / 255
    return loading.load(encoder)((values - mean) / std).numpy()


@pytest.mark.parametrize("text", NETWORKS)
def test_packed_weights_give_the_same_embeddings(text: str, store: Store):
    encoder = encoder_of(text, store)
    assert isinstance(encoder.preprocess, Preprocess)
    batch = noise(encoder.preprocess, 3)
    expected = plainly(encoder, batch)
    (found,) = Forward([encoder])(batch)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "text", ["squeezenet1_1", *more("resnet18", "mobilenet_v3_small")]
)
def test_bfloat16_is_near(text: str, store: Store):
    encoder = encoder_of(text, store, precision="bf16")
    assert isinstance(encoder.preprocess, Preprocess)
    batch = noise(encoder.preprocess, 3)
    expected = plainly(encoder_of(text, store), batch)
    (found,) = Forward([encoder])(batch)
    assert found.dtype == np.float32
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((found * expected).sum(axis=1) / lengths).min() > 0.999
    assert not np.array_equal(found, expected)


def test_several_layers_of_one_pass_are_those_of_a_pass_each(store: Store):
    wanted = [
        encoder_of(f"resnet18:layer={layer}", store)
        for layer in ("layer1.0.relu", "layer2.1.add", "avgpool")
    ]
    assert isinstance(wanted[0].preprocess, Preprocess)
    batch = noise(wanted[0].preprocess, 2)
    together = Forward(wanted)(batch)
    for encoder, found in zip(wanted, together, strict=True):
        expected = plainly(encoder, batch)
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.skipif(
    not onednn_fusion.can_pack(torch.float32), reason="no oneDNN for this processor"
)
def test_what_follows_a_convolution_is_taken_along(store: Store):
    """ResNet-18: 20 convolutions, 17 ReLUs and 8 sums become 20 steps."""
    network = Forward([encoder_of("resnet18", store)])
    graph = network._network.body
    steps = [node for node in graph.graph.nodes if node.op == "call_module"]
    packed = [
        isinstance(graph.get_submodule(str(node.target)), _Packed) for node in steps
    ]
    assert (sum(packed), len(steps)) == (20, 22)  # and two poolings
    assert not [n for n in graph.graph.nodes if "add" in n.name or "relu" in n.name]


@pytest.mark.skipif(
    not onednn_fusion.can_pack(torch.bfloat16), reason="no bfloat16 for this processor"
)
@pytest.mark.parametrize(
    ("text", "pools"),
    [
        ("mobilenet_v3_small:side=64", 10),
        ("mobilenet_v2:side=64", 1),
        *more(("timm:efficientnet_b0:side=64", 17)),
    ],
)
def test_maps_of_bfloat16_are_averaged_as_they_are(text: str, pools: int, store: Store):
    """By module and by function, and not where their values are float32."""
    for precision, expected in (("bf16", pools), ("fp32", 0)):
        graph = Forward([encoder_of(text, store, precision=precision)])._network.body
        found = [n for n in graph.graph.nodes if n.target is onednn_fusion._average]
        assert len(found) == expected
    chance = torch.Generator().manual_seed(0)
    values = torch.randn((3, 40, 9, 7), generator=chance).bfloat16()
    exact = values.double().mean((2, 3), keepdim=True)
    off = onednn_fusion._average(values).double() - exact
    assert off.abs().max() <= exact.abs().max() * 2**-8  # the rounding of the result


def steps(text: str, store: Store, precision: str) -> Counter[str]:
    """How often each kind of step is in the graph that is computed."""
    graph = Forward([encoder_of(text, store, precision=precision)])._network.body
    found: Counter[str] = Counter()
    for node in graph.graph.nodes:
        kind = str(getattr(node.target, "__name__", node.target))
        if node.op == "call_module":
            module = graph.get_submodule(node.target)
            kind = f"{type(module).__name__} {getattr(module, 'activation', '')}"
        found[kind.lower()] += 1
    return found


@pytest.mark.skipif(
    not onednn_fusion.can_pack(torch.bfloat16), reason="no bfloat16 for this processor"
)
@pytest.mark.parametrize("precision", ["bf16", *more("fp32")])
def test_timms_network_is_computed_by_the_steps_of_torchvisions(
    store: Store, precision: str
):
    theirs = steps("timm:efficientnet_b0", store, precision)
    ours = steps("efficientnet_b0", store, precision)
    names = {"x", "batch", "flatten", "flatten "}  # of the input, and as function
    assert {k: n for k, n in (theirs - ours).items() if k not in names} == (
        {"mean": 16} if precision == "fp32" else {}
    )
    assert sum(theirs.values()) == sum(ours.values())


def test_normalisation_of_timm_is_folded_with_its_values(store: Store):
    """Statistics that are not those of a network before training."""
    encoders = [
        encoder_of(f"timm:efficientnet_b0:side=96,layer={layer}", store)
        for layer in ("pre_logits", "bn1", "blocks.3")
    ]
    extractor = loading.load_together(encoders)
    chance = torch.Generator().manual_seed(0)
    for module in extractor.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=chance)
            module.running_var.uniform_(0.5, 1.5, generator=chance)
    batch = torch.randn(2, 3, 96, 96, generator=chance)
    with torch.inference_mode():
        expected = extractor(batch)
        extractor.body = graph = extractor.body.traced()
        onednn_fusion.fold(graph)
        found = extractor(batch)
    called = {str(n.target) for n in graph.graph.nodes if n.op == "call_module"}
    kinds = {type(graph.get_submodule(name)) for name in called}
    assert torch.nn.BatchNorm2d not in kinds
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * float(other.abs().max()))


class Residual(torch.nn.Module):
    """What ends a block of timm's BotNeXt: an activation of a sum."""

    def __init__(self, activation: torch.nn.Module) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.second = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.activation = activation

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        found = self.first(batch)
        return self.activation(self.second(found) + found)


@pytest.mark.skipif(
    not onednn_fusion.can_pack(torch.float32), reason="no oneDNN for this processor"
)
@pytest.mark.parametrize(
    "activation",
    [torch.nn.ReLU(), torch.nn.SiLU(), torch.nn.Hardswish(), torch.nn.ReLU6()],
    ids=lambda activation: type(activation).__name__,
)
def test_a_sum_takes_no_activation_along_but_relu(activation: torch.nn.Module):
    torch.manual_seed(0)
    network = Residual(activation).eval().requires_grad_(False)
    batch = torch.randn(2, 3, 9, 9).to(memory_format=torch.channels_last)
    expected = network(batch)
    graph = torch.fx.symbolic_trace(network)
    onednn_fusion.pack(graph, batch.shape, torch.float32)
    torch.testing.assert_close(graph(batch), expected)
    left = [n for n in graph.graph.nodes if n.target == "activation"]
    assert len(left) == (not isinstance(activation, torch.nn.ReLU))


def test_a_network_that_packing_changes_is_computed_without_and_said(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    right = onednn_fusion._Convolution.forward

    def wrong(layer: _Packed, *values: torch.Tensor) -> torch.Tensor:
        return 1.5 * right(layer, *values)

    monkeypatch.setattr(onednn_fusion._Convolution, "forward", wrong)
    encoder = encoder_of("squeezenet1_1", store)
    with pytest.warns(UserWarning, match=r"squeezenet1_1.* packed weights change its"):
        forward = Forward([encoder])
    assert isinstance(encoder.preprocess, Preprocess)
    batch = noise(encoder.preprocess, 2)
    expected = plainly(encoder, batch)
    (found,) = forward(batch)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_shapes_are_found_without_computing(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    """Only the trial of two images computes; the shapes are those of a batch."""
    seen: list[torch.Size] = []
    usual = torch.nn.Conv2d.forward

    def counted(layer: torch.nn.Conv2d, values: torch.Tensor) -> torch.Tensor:
        if not isinstance(values, FakeTensor) and not values.is_meta:
            seen.append(values.shape)
        return usual(layer, values)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", counted)
    encoder = encoder_of("resnet18", store)
    network = Forward([encoder])._network
    assert len(seen) == 20
    assert {shape[0] for shape in seen} == {2}
    (first,) = [n for n in network.body.graph.nodes if n.target == "conv1"]
    assert first.meta["tensor_meta"].shape == (32, 64, 112, 112)

"""Layers by hand, torchvision's own construction, poolings, several layers at once."""

import gc
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn
from torchvision.models import get_model, get_model_weights
from torchvision.models._api import WeightsEnum
from torchvision.models.vision_transformer import interpolate_embeddings

from tests.exhaustive import more, one_of_each
from tests.likely_weights import State, likely_state, noise
from tl_pipeline.config.specs import EncoderSpec
from tl_pipeline.encoders import backbones, loading, networks, resolution
from tl_pipeline.encoders import encoder as encoders
from tl_pipeline.encoders.backbones import BACKBONES, Layer
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.encoders.feature_extractor import FeatureExtractor
from tl_pipeline.encoders.lenet import LeNet5
from tl_pipeline.encoders.pooling import gem
from tl_pipeline.errors import InvalidSpec, UnknownName
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.store.artifacts import Store

pytestmark = pytest.mark.usefixtures("one_thread")

ByHand = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Networks are cyclic garbage, and vgg16 fills half a GB: collect what is much."""
    yield
    if psutil.Process().memory_info().rss > 2 << 30:
        gc.collect()


def preprocess(name: str, crop: int | None = None) -> Preprocess:
    """What the default weights of ``name`` expect, perhaps with another crop."""
    row = BACKBONES[name]
    how = backbones.named_weights(row, row.weights).preprocess
    return how.model_copy(update={"crop": crop}) if crop else how


def cut_at(name: str, layers: list[Layer], side: int, state: State | None = None):
    """The network ``name`` with likely weights, cut at ``layers``."""
    row = BACKBONES[name]
    how = preprocess(name, side)
    state = likely_state(row, side) if state is None else state
    return networks.pretrained(row, layers, how, state, Path("likely"))


# Layers by hand


def _classifier(net: Any, end: int) -> ByHand:
    """Alexnet or vgg by hand, with the first ``end`` modules of its classifier."""
    return lambda x: net.classifier[:end](net.avgpool(net.features(x)).flatten(1))


def _without_fc(net: Any) -> ByHand:
    net.fc = nn.Identity()
    return net


def _features(net: Any) -> ByHand:
    return lambda x: net.features(x).mean(dim=(2, 3))


def _vit(net: Any) -> ByHand:
    def cls(x: torch.Tensor) -> torch.Tensor:
        patches = net.conv_proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([net.class_token.expand(len(x), -1, -1), patches], dim=1)
        return net.encoder(tokens)[:, 0]

    return cls


def _lenet(net: Any, layer: str) -> ByHand:
    def c5(x: torch.Tensor) -> torch.Tensor:
        maps = net.s2(net.c1(x).relu())
        return net.c5(net.s4(net.c3(maps).relu())).relu().flatten(1)

    return c5 if layer == "c5" else lambda x: net.f6(c5(x)).relu()


# Networks whose layers are cut off in one way.
FAMILY = {"alexnet": "vgg", "vgg16": "vgg"} | dict.fromkeys(
    ("resnet18", "resnet50", "inception_v3", "googlenet"), "resnet"
)

# Each layer by hand: the function, the width, and whether a ReLU was its last step.
BY_HAND: dict[tuple[str, str], tuple[Callable[[Any], ByHand], int, bool]] = {
    ("lenet5", "c5"): (lambda net: _lenet(net, "c5"), 120, True),
    ("lenet5", "f6"): (lambda net: _lenet(net, "f6"), 84, True),
    ("alexnet", "fc6"): (lambda net: _classifier(net, 3), 4096, True),
    ("alexnet", "fc7"): (lambda net: _classifier(net, 6), 4096, True),
    ("alexnet", "pool5"): (
        lambda net: lambda x: net.features(x).flatten(1),
        9216,
        True,
    ),
    ("vgg16", "fc6"): (lambda net: _classifier(net, 2), 4096, True),
    ("vgg16", "fc7"): (lambda net: _classifier(net, 5), 4096, True),
    ("squeezenet1_0", "fire9"): (_features, 512, True),
    ("resnet18", "avgpool"): (_without_fc, 512, True),
    ("resnet50", "avgpool"): (_without_fc, 2048, True),
    ("inception_v3", "avgpool"): (_without_fc, 2048, True),
    ("googlenet", "avgpool"): (_without_fc, 1024, True),
    ("mobilenet_v3_small", "avgpool"): (_features, 576, False),
    ("vit_b_16", "cls"): (_vit, 768, False),
}


@pytest.mark.parametrize(
    ("name", "layer"),
    one_of_each(BY_HAND, lambda case: (FAMILY.get(case[0], case), case[1] == "pool5")),
)
def test_a_layer_equals_the_same_computed_by_hand(name: str, layer: str):
    """At the real input size, against torchvision's modules called one by one."""
    by_hand, width, after_relu = BY_HAND[name, layer]
    how = preprocess(name)
    state = likely_state(BACKBONES[name], how.crop)
    options: dict[str, Any] = {}
    if name in {"googlenet", "inception_v3"}:
        options = {"aux_logits": False, "transform_input": True, "init_weights": False}
    whole = LeNet5() if name == "lenet5" else get_model(name, weights=None, **options)
    whole.load_state_dict(state)
    batch = noise(2, networks.input_shape(how)[0], how.crop)
    (found,) = cut_at(name, [BACKBONES[name].layers[layer]], how.crop, state)(batch)
    with torch.inference_mode():
        expected = by_hand(whole.eval())(batch)
    assert found.shape == (2, width)
    assert (found.min() >= 0) == after_relu
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "layer", "node", "pooling"),
    [
        ("lenet5", "c5", "flatten", "none"),
        ("lenet5", "f6", "f6_relu", "none"),
        ("alexnet", "fc7", "classifier.5", "none"),
        ("alexnet", "fc6", "classifier.2", "none"),
        ("vgg16", "fc6", "classifier.1", "none"),
        ("vgg16", "fc7", "classifier.4", "none"),
        ("squeezenet1_0", "fire9", "features.12.cat", "mean"),
        ("resnet18", "avgpool", "flatten", "none"),
        ("resnet50", "avgpool", "flatten", "none"),
        ("mobilenet_v3_small", "avgpool", "flatten", "none"),
    ],
)
def test_layers_of_the_first_version_keep_node_and_pooling(
    name: str, layer: str, node: str, pooling: Any
):
    """Both are in the key of embeddings that people have."""
    assert BACKBONES[name].layers[layer] == Layer(node, pooling)


def test_the_seed_alone_decides_the_untrained_weights():
    row, how = BACKBONES["resnet18"], preprocess("resnet18", 64)
    layers = [row.layers["avgpool"]]
    batch = noise(2, 3, 64)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    (first,) = networks.untrained(row, layers, how, 7)(batch)
    (again,) = networks.untrained(row, layers, how, 7)(batch)
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's draws move
    assert torch.equal(first, again)
    (other,) = networks.untrained(row, layers, how, 8)(batch)
    assert not torch.equal(first, other)
    torch.manual_seed(7)
    ref = _without_fc(get_model("resnet18", weights=None).eval())
    with torch.inference_mode():
        torch.testing.assert_close(first, ref(batch))


def test_loading_weights_moves_nobodys_draws():
    state = likely_state(BACKBONES["swin_t"], 64)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    cut_at("swin_t", [BACKBONES["swin_t"].layers["avgpool"]], 64, state)
    assert torch.equal(torch.get_rng_state(), before)


# Torchvision's own construction


def as_published(name: str, state: State) -> State:
    """``state`` as torchvision's oldest files have it: old names, no batch counts."""
    old = type(state)()
    for key, tensor in state.items():
        renamed = key
        if name.startswith("densenet"):
            for word in ("norm", "conv"):
                for number in "12":
                    renamed = renamed.replace(f".{word}{number}.", f".{word}.{number}.")
        if name.startswith("vit_"):
            renamed = renamed.replace(".mlp.0.", ".mlp.linear_1.")
            renamed = renamed.replace(".mlp.3.", ".mlp.linear_2.")
        if name.endswith("rcnn_resnet50_fpn") or name == "retinanet_resnet50_fpn":
            renamed = renamed.replace("_blocks.0.0.", "_blocks.0.")
            for block in "123":
                renamed = renamed.replace(f"_blocks.{block}.0.", f"_blocks.{block}.")
        if not (renamed.endswith("num_batches_tracked") and "mnasnet" not in name):
            old[renamed] = tensor
    if name.startswith("mnasnet"):
        vars(old)["_metadata"] = vars(state)["_metadata"]
    return old


def _last_input(network: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    last = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    seen: list[torch.Tensor] = []
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(batch)
    found = seen[0]
    return found.mean(dim=(2, 3)) if found.ndim == 4 else found


def _level(network: Any, level: str, batch: torch.Tensor) -> torch.Tensor:
    return network.backbone(batch)[level.removeprefix("level")].mean(dim=(2, 3))


# By default: auxiliary heads, versions, old names of three families, class tokens.
OFFICIAL = [
    *((name, "IMAGENET1K_V1", 107) for name in (
        "googlenet", "mnasnet0_5", "densenet121",
    )),
    ("vit_b_32", "IMAGENET1K_V1", None),
    ("retinanet_resnet50_fpn", "COCO_V1", 128),
    *more(
        *((name, "IMAGENET1K_V1", 107) for name in (
            "inception_v3", "mnasnet1_3", "vgg11_bn", "squeezenet1_1", "swin_t",
            "shufflenet_v2_x0_5", "mobilenet_v2", "efficientnet_b0",
            "regnet_y_400mf", "convnext_tiny", "swin_v2_t",
        )),
        ("maxvit_t", "IMAGENET1K_V1", None),
        ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", None),
        ("regnet_y_16gf", "IMAGENET1K_SWAG_LINEAR_V1", 64),
        *((name, "COCO_V1", 128) for name in (
            "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2",
            "fasterrcnn_mobilenet_v3_large_fpn", "maskrcnn_resnet50_fpn",
            "keypointrcnn_resnet50_fpn", "retinanet_resnet50_fpn_v2",
            "fcos_resnet50_fpn", "ssdlite320_mobilenet_v3_large",
        )),
        ("ssd300_vgg16", "COCO_V1", 300),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "member", "side"), OFFICIAL)
def test_a_file_gives_what_torchvisions_own_construction_gives(
    name: str,
    member: str,
    side: int | None,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """``get_model(name, weights=MEMBER)`` with a file of random weights as published.

    Auxiliary heads, input transforms, epsilons and old names are set by weights there.
    """
    row, weights = BACKBONES[name], get_model_weights(name)[member]
    named = backbones.named_weights(row, member)
    side = side or named.preprocess.crop
    options = {"aux_logits": True} if name in {"googlenet", "inception_v3"} else {}
    state = likely_state(row, side, **options)
    file = tmp_path / named.file.name
    torch.save(as_published(name, state), file)
    monkeypatch.setattr(
        WeightsEnum,
        "get_state_dict",
        lambda *_, **__: torch.load(file, weights_only=True),
    )
    official = get_model(name, weights=weights).eval()
    whole = row.origin == "torchvision"
    layer = "penultimate" if whole else row.default_layer
    at = {"layer": layer, "resize": side, "crop": side}
    spec = EncoderSpec(backbone=name, weights=str(file), **at)
    module = loading.load(resolution.resolve(spec, store))
    batch = noise(2, 3, side)
    with torch.inference_mode():
        found = module(batch)
        if whole:
            expected = _last_input(official, batch)
        else:
            expected = _level(official, layer, batch)
    scale = expected.abs().max()
    assert (found - expected).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_mnasnet_loads_where_the_format_knows_no_versions(
    store: Store, tmp_path: Path, suffix: str
):
    """Torchvision would rebuild the stem of a network without a version, or fail."""
    from safetensors.torch import save_file

    state = likely_state(BACKBONES["mnasnet0_5"], 64)
    state = {name: tensor.clone() for name, tensor in state.items()}  # not shared
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(state, file)
    else:
        save_file(state, file)
    spec = EncoderSpec(backbone="mnasnet0_5", weights=str(file))
    module = loading.load(resolution.resolve(spec, store))
    assert module(noise(1, 3, 224)).shape == (1, 1280)


@pytest.mark.parametrize(
    "name", ["fasterrcnn_resnet50_fpn", *more("ssdlite320_mobilenet_v3_large")]
)
def test_a_detector_fine_tuned_to_other_classes_loads(name: str):
    whole = get_model(name, weights=None, weights_backbone=None, num_classes=3)
    row = BACKBONES[name]
    cut = cut_at(name, [row.layers[row.default_layer]], 320, whole.state_dict())
    assert cut.widths == ({"f": 256, "s": 128}[name[0]],)


@pytest.mark.exhaustive  # networks with a bias: test_encoders.py
def test_maxvit_fine_tuned_to_other_classes_loads():
    """Its last layer has no bias."""
    whole = get_model("maxvit_t", weights=None, num_classes=3)
    row = BACKBONES["maxvit_t"]
    cut = cut_at("maxvit_t", [row.layers["penultimate"]], 224, whole.state_dict())
    assert cut.widths == (512,)


# Layers and poolings


@pytest.fixture(scope="module")
def resnet() -> tuple[nn.Module, State]:
    """A whole ResNet-18 with likely weights."""
    state = likely_state(BACKBONES["resnet18"], 96)
    network = get_model("resnet18", weights=None)
    network.load_state_dict(state)
    return network.eval(), state


def test_several_layers_in_one_pass_are_those_of_single_passes():
    """Also where the step after a layer works in place: a ReLU on a sum, a sum."""
    layers = [
        Layer("flatten"),
        Layer("layer4", "mean"),
        Layer("layer4", "gem"),
        Layer("layer3.1.add", "mean"),
        Layer("layer3.1.bn2", "mean"),
        Layer("layer2", "flatten"),
    ]
    batch = noise(2, 3, 96)
    together = cut_at("resnet18", layers, 96)
    assert together.widths == (512, 512, 512, 256, 256, 128 * 12 * 12)
    for layer, found in zip(layers, together(batch), strict=True):
        (alone,) = cut_at("resnet18", [layer], 96)(batch)
        assert torch.equal(found, alone)


def test_encoders_that_differ_in_layer_and_pooling_share_a_network(store: Store):
    texts = [
        "resnet18:weights=random:0,crop=96,resize=96",
        "resnet18:weights=random:0,crop=96,resize=96,layer=layer3",
        "resnet18:weights=random:0,crop=96,resize=96,layer=layer3,pool=gem",
    ]
    found = [resolution.resolve(EncoderSpec.parse(text), store) for text in texts]
    batch = noise(2, 3, 96)
    for encoder, vectors in zip(
        found, loading.load_together(found)(batch), strict=True
    ):
        assert torch.equal(vectors, loading.load(encoder)(batch))
    other = resolution.resolve(EncoderSpec.parse("resnet18:weights=random:1"), store)
    assert not encoders.shares_network(found[0], other)
    with pytest.raises(ValueError, match="differ in more"):
        loading.load_together([found[0], other])


def test_poolings_of_a_map_by_hand(resnet: tuple[Any, State]):
    network, state = resnet
    batch = noise(2, 3, 96)
    with torch.inference_mode():
        x = network.maxpool(network.relu(network.bn1(network.conv1(batch))))
        maps = network.layer2(network.layer1(x))
    poolings = ("mean", "gem", "flatten")
    layers = [Layer("layer2", pooling) for pooling in poolings]
    found = dict(
        zip(poolings, cut_at("resnet18", layers, 96, state)(batch), strict=True)
    )
    torch.testing.assert_close(found["mean"], maps.mean(dim=(2, 3)))
    cubes = (maps**3).mean(dim=(2, 3)) ** (1 / 3)
    torch.testing.assert_close(found["gem"], cubes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["flatten"], maps.flatten(1))


def test_gem_lies_between_mean_and_maximum():
    maps = torch.rand((2, 5, 7, 7), generator=torch.Generator().manual_seed(0))
    found = gem(maps, (2, 3))
    assert (found > maps.mean(dim=(2, 3))).all()
    assert (found < maps.amax(dim=(2, 3))).all()


def test_poolings_of_tokens_by_hand():
    """The mean of a vision transformer is that of the patches, without the class."""
    state = likely_state(BACKBONES["vit_b_32"], 64)
    network = get_model("vit_b_32", weights=None, image_size=64).eval()
    network.load_state_dict(state)
    batch = noise(2, 3, 64)
    seen: list[torch.Tensor] = []
    network.encoder.register_forward_hook(lambda *given: seen.append(given[2]))
    with torch.inference_mode():
        network(batch)
    (tokens,) = seen
    assert tokens.shape == (2, 5, 768)
    patches = tokens[:, 1:].mean(dim=1)
    expected = {
        "cls": tokens[:, 0],
        "mean": patches,
        "cls+mean": torch.cat([tokens[:, 0], patches], dim=1),
        "flatten": tokens.flatten(1),
    }
    layers = [Layer("encoder.ln", pooling) for pooling in expected]  # type: ignore[arg-type]
    found = cut_at("vit_b_32", layers, 64, state)(batch)
    for vectors, by_hand in zip(found, expected.values(), strict=True):
        torch.testing.assert_close(vectors, by_hand)


def test_swins_maps_have_their_channels_last():
    """So its means must be taken over other axes than those of other networks."""
    state = likely_state(BACKBONES["swin_t"], 96)
    network = get_model("swin_t", weights=None).eval()
    network.load_state_dict(state)
    batch = noise(2, 3, 96)
    layers = [Layer("features.1", "mean"), Layer("features.0.0", "mean")]
    found = cut_at("swin_t", layers, 96, state)(batch)
    with torch.inference_mode():
        maps = network.features[:2](batch)
        assert maps.shape == (2, 24, 24, 96)
        torch.testing.assert_close(found[0], maps.mean(dim=(1, 2)))
        convolved = network.features[0][0](batch)
        torch.testing.assert_close(found[1], convolved.mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (
            "vgg11:pool=gap,layer=fc6",
            r"pool=gap does not fit.*\(4096\).*no pool at all",
        ),
        ("resnet18:layer=layer4,pool=cls", r"\(512, 7, 7\).*no class token.*pool=gem"),
        ("swin_t:layer=stage4,pool=cls+mean", r"\(7, 7, 768\).*no class token"),
        ("resnet18:crop=8,resize=8,layer=layer4,pool=gem", ""),
        ("alexnet:crop=32,resize=32", "alexnet takes no inputs of 32x32"),
        *more(
            ("maxvit_t:crop=200,resize=200", "maxvit_t takes no inputs of 200 x 200")
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_shape(
    store: Store, wish: str, said: str, capfd: pytest.CaptureFixture[str]
):
    spec = EncoderSpec.parse(wish).model_copy(update={"weights": "random:0"})
    encoder = resolution.resolve(spec, store)
    if not said:
        assert loading.load(encoder)(noise(1, 3, 8)).shape == (1, 512)
        return
    with pytest.raises(InvalidSpec, match=f"(?s){said}"):
        loading.load(encoder)
    assert capfd.readouterr().err == ""  # torch.fx prints faults by itself


def resolved(wish: str, store: Store) -> Encoder:
    """The encoder of ``wish`` with random weights."""
    spec = EncoderSpec.parse(wish).model_copy(update={"weights": "random:0"})
    return resolution.resolve(spec, store)


@pytest.mark.parametrize(
    ("wish", "node", "pooling"),
    [
        ("resnet50:layer=node:layer3.1.add", "layer3.1.add", "mean"),
        ("resnet50:layer=node:avgpool,pool=flatten", "avgpool", "flatten"),
        ("vgg16:layer=classifier.3", "classifier.3", "none"),
        ("vit_b_16:layer=encoder.layers.encoder_layer_5", None, "cls"),
        ("fasterrcnn_resnet50_fpn:layer=backbone.body.layer4", None, "mean"),
        *more(
            ("resnet50:layer=layer3.1.add", "layer3.1.add", "mean"),
            ("resnet50:layer=node:avgpool", "avgpool", "mean"),
            ("vgg16:layer=features.23", "features.23", "mean"),
            ("swin_t:layer=features.3.1.mlp", "features.3.1.mlp", "mean"),
        ),
    ],
)
def test_any_node_of_the_graph_is_a_layer(
    store: Store, wish: str, node: str | None, pooling: str
):
    found = resolved(wish, store)
    assert found.node == (node or EncoderSpec.parse(wish).layer)
    assert found.pooling == pooling


def test_a_node_by_either_spelling_is_one_layer(store: Store):
    keys = {
        resolved(wish, store).key
        for wish in ("resnet18:layer=layer3", "resnet18:layer=node:layer3")
    }
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("wish", "near"),
    [
        ("resnet50:layer=layer3.1.ad", "layer3.1.add"),
        ("resnet50:layer=node:layer5", "layer4"),
        ("vgg16:layer=features.99", "features.9"),
        ("vgg16:layer=fc9", "fc6, fc7, fc8"),
        ("vgg16:layer=conv5_4", "conv5_3"),
    ],
)
def test_an_unknown_node_is_told_with_those_that_are_near(
    store: Store, wish: str, near: str
):
    with pytest.raises(UnknownName) as fault:
        resolved(wish, store)
    assert near in str(fault.value)
    assert len(str(fault.value)) < 700  # and not all nodes of the graph
    named = str(fault.value).partition("Known: ")[2].split(", ")
    assert len(named) == len(set(named))


@pytest.mark.parametrize(
    ("backbone", "alias", "node"),
    [
        ("alexnet", "relu6", "classifier.2"),
        ("vgg16", "conv5_3", "features.28"),
        *more(
            ("alexnet", "fc8", "classifier.6"),
            ("alexnet", "conv5", "features.10"),
            ("vgg16", "fc8", "classifier.6"),
            ("vgg16", "relu7", "classifier.4"),
            ("vgg16", "relu5_3", "features.29"),
            ("vgg19_bn", "pool4", "features.39"),
            ("inception_v3", "mixed10", "Mixed_7c"),
        ),
    ],
)
def test_names_of_papers_and_other_libraries_are_nodes(
    store: Store, backbone: str, alias: str, node: str
):
    found = resolved(f"{backbone}:layer={alias}", store)
    assert (found.layer, found.node) == (alias, node)
    own = resolved(f"{backbone}:layer=node:{node}", store)
    assert found.key == own.key


@pytest.mark.parametrize(
    "name",
    one_of_each((n for n in BACKBONES if n[:3] == "vgg"), lambda n: n[-3:] == "_bn"),
)
def test_names_of_caffe_mean_layers_of_their_kind(name: str):
    kinds = {"conv": nn.Conv2d, "relu": nn.ReLU, "pool": nn.MaxPool2d, "fc8": nn.Linear}
    with torch.device("meta"):
        network = get_model(name)
    aliases = BACKBONES[name].aliases
    for alias, node in aliases.items():
        kind = next(kind for word, kind in kinds.items() if alias.startswith(word))
        assert isinstance(network.get_submodule(node), kind), alias
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert sum(alias.startswith("conv") for alias in aliases) == len(convolutions)
    assert aliases["pool5"] == BACKBONES[name].layers["pool5"].node


def test_a_module_that_is_called_twice_is_told_by_its_calls():
    row = BACKBONES["resnet18"]
    graph = networks.graph(row, preprocess("resnet18"))
    kinds = {node.name: node.kind for node in graph}
    assert kinds["layer4.1.relu"] == "ReLU, call 1 of 2"
    assert kinds["layer4.1.relu_1"] == "ReLU, call 2 of 2"
    assert kinds["relu"] == "ReLU"


@pytest.mark.parametrize("side", [160, *more(224, 256)])
def test_positions_of_a_vision_transformer_fit_the_side_of_its_inputs(
    store: Store, tmp_path: Path, side: int
):
    """As torchvision's own function fits them."""
    torch.manual_seed(0)
    network = get_model("vit_b_32")
    nn.init.normal_(network.encoder.pos_embedding)
    state, file = network.state_dict(), tmp_path / "vit.pth"
    torch.save(state, file)
    wish = f"vit_b_32:weights={file},resize={side},crop={side}"
    batch = noise(2, 3, side)
    encoder = resolution.resolve(EncoderSpec.parse(wish), store)
    found = loading.load(encoder)(batch)
    own = get_model("vit_b_32", image_size=side)
    own.load_state_dict(interpolate_embeddings(side, 32, OrderedDict(state)))
    own.heads = nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(found, own.eval()(batch), rtol=0, atol=1e-5)


@pytest.mark.exhaustive  # told with the sides that fit, below
def test_a_side_that_patches_do_not_divide_is_refused(store: Store):
    with pytest.raises(InvalidSpec, match="takes no inputs of 200 x 200"):
        loading.load(resolved("vit_b_32:resize=200,crop=200", store))


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ("alexnet:side=32", "no inputs of 32x32 .*too small. Sides that fit: 64, 224$"),
        ("vit_b_32:side=200", "200 x 200: .*patch size. Sides that fit: 192, 224$"),
        *more(("maxvit_t:side=200", "not divisible.*input size. Sides that fit: 224$")),
    ],
)
def test_a_side_that_a_network_cannot_take_is_refused_with_those_that_it_can(
    store: Store, wish: str, said: str
):
    with pytest.raises(InvalidSpec, match=said):
        resolution.width(resolved(wish, store), store)


@pytest.mark.parametrize(
    ("wish", "gives"),
    [
        ("fasterrcnn_resnet50_fpn:layer=backbone.fpn", "nothing"),
        ("vit_b_16:layer=getattr", "nothing"),
        *more(
            (
                "maxvit_t:layer=blocks.1.layers.0.layers.grid_attention.partition_op.permute",
                r"\(7, 7, 4, 4, 128\)",
            )
        ),
    ],
)
def test_a_node_that_makes_no_vector_is_refused(store: Store, wish: str, gives: str):
    with pytest.raises(InvalidSpec, match=f"gives {gives}.*tl backbones show"):
        resolved(wish, store)


def test_a_penultimate_layer_is_the_layer_it_stands_for(store: Store):
    spec = [f"vgg16:layer={layer}" for layer in ("fc7", "penultimate")]
    assert len({resolved(wish, store).key for wish in spec}) == 1


def test_widths_are_read_off():
    cut: FeatureExtractor = cut_at(
        "resnet18", [Layer("layer1", "mean"), Layer("flatten")], 64
    )
    assert cut.widths == (64, 512)

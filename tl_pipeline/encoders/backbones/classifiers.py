"""torchvision's classification networks: a family is a list of names and its layers.

A layer's node is a name of ``torchvision.models.feature_extraction``, where the name of
a module stands for its last node. Names of layers are those of the papers: ``fc6`` and
``fc7`` after the ReLU, ``pool5`` flattened (Donahue et al., "DeCAF", ICML 2014, section
3), except where ``pool5`` is the name of the last average (GoogLeNet, ResNet in Caffe).
``penultimate`` is everywhere what the last layer of the classifier sees.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tl_pipeline.encoders.backbones import torchvision_weights
from tl_pipeline.encoders.backbones.backbone import (
    Backbone,
    Layer,
    NamedWeights,
    PrefixTokens,
    same_names,
)
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.inputs.images import Preprocess

if TYPE_CHECKING:
    import torch

PACKAGE: str = "torchvision"
Layers = Mapping[str, Layer]

_FLATTEN, _MEAN = Layer("flatten"), Layer("mean")
_AVGPOOL: Layers = {"avgpool": _FLATTEN, "penultimate": _FLATTEN}
_MEANS: Layers = {"avgpool": _MEAN, "penultimate": _MEAN}
_ALEXNET: Layers = {
    "fc7": Layer("classifier.5"),
    "fc6": Layer("classifier.2"),
    "pool5": Layer("features.12", "flatten"),
    "penultimate": Layer("classifier.5"),
}
_FIRE9 = Layer("features.12.cat", "mean")
_CLS = Layer("encoder.ln", "cls")
_PRE_LOGITS = Layer("classifier.1")
_MAXVIT = Layer("classifier.4")


def _stages(*nodes: str, name: str = "stage", first: int = 1) -> Layers:
    """Spatial outputs of stages, ``stage1`` and so on, reduced to channel means."""
    return {f"{name}{i}": Layer(node, "mean") for i, node in enumerate(nodes, first)}


def _vgg(pool5: int) -> Layers:
    return {
        "fc6": Layer("classifier.1"),
        "fc7": Layer("classifier.4"),
        "pool5": Layer(f"features.{pool5}", "flatten"),
        "penultimate": Layer("classifier.4"),
    }


def _vgg_aliases(name: str) -> Mapping[str, str]:
    """Caffe's names: ``conv5_3`` before and ``relu5_3`` after the ReLU, ``pool4``."""
    depth, norms = int(name[3:5]), name.endswith("_bn")
    found = {"relu6": "classifier.1", "relu7": "classifier.4", "fc8": "classifier.6"}
    at = 0
    for block, convolutions in enumerate(_VGG[depth], start=1):
        for number in range(1, convolutions + 1):
            found[f"conv{block}_{number}"] = f"features.{at}"
            at += 1 + norms
            found[f"relu{block}_{number}"] = f"features.{at}"
            at += 1
        found[f"pool{block}"] = f"features.{at}"
        at += 1
    return found


# Convolutions of each block.
_VGG = {11: (1, 1, 2, 2, 2), 13: (2,) * 5, 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_ALEXNET_ALIASES = {
    **{f"conv{i}": f"features.{n}" for i, n in enumerate((0, 3, 6, 8, 10), start=1)},
    **{f"relu{i}": f"features.{n}" for i, n in enumerate((1, 4, 7, 9, 11), start=1)},
    "pool1": "features.2",
    "pool2": "features.5",
    "relu6": "classifier.2",
    "relu7": "classifier.5",
    "fc8": "classifier.6",
}
# Of Keras.
_MIXED = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
_INCEPTION_ALIASES = {f"mixed{i}": f"Mixed_{name}" for i, name in enumerate(_MIXED)}


def _aliases(name: str) -> Mapping[str, str]:
    if name.startswith("vgg"):
        return _vgg_aliases(name)
    known = {"alexnet": _ALEXNET_ALIASES, "inception_v3": _INCEPTION_ALIASES}
    return known.get(name, {})


_RESNET: Layers = {
    **_AVGPOOL,
    "pool5": _FLATTEN,
    **_stages("layer1", "layer2", "layer3", "layer4", name="layer"),
}
_SWIN: Layers = {
    **_AVGPOOL,
    **_stages("features.1", "features.3", "features.5", "features.7"),
}

_FAMILIES: dict[str, Layers] = {
    "alexnet": _ALEXNET,
    "vgg11": _vgg(20),
    "vgg11_bn": _vgg(28),
    "vgg13": _vgg(24),
    "vgg13_bn": _vgg(34),
    "vgg16": _vgg(30),
    "vgg16_bn": _vgg(43),
    "vgg19": _vgg(36),
    "vgg19_bn": _vgg(52),
    "squeezenet1_0 squeezenet1_1": {"fire9": _FIRE9, "penultimate": _FIRE9},
    "googlenet": {
        **_AVGPOOL,
        "pool5": _FLATTEN,
        **{f"inception{i}": Layer(f"inception{i}.cat", "mean") for i in ("4e", "5b")},
    },
    "inception_v3": {
        **_AVGPOOL,
        "pool3": _FLATTEN,  # its name in TensorFlow's graph
        **{f"Mixed_{i}": Layer(f"Mixed_{i}", "mean") for i in ("6e", "7c")},
    },
    "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d "
    "resnext101_64x4d wide_resnet50_2 wide_resnet101_2": _RESNET,
    "densenet121 densenet161 densenet169 densenet201": {
        **_AVGPOOL,
        **_stages(*(f"features.denseblock{i}" for i in range(1, 5)), name="denseblock"),
    },
    "mobilenet_v2": _AVGPOOL,
    "mobilenet_v3_small mobilenet_v3_large": {
        "avgpool": _FLATTEN,
        "penultimate": Layer("classifier.1"),
    },
    "mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3": _MEANS,
    "shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0": {
        **_MEANS,
        **_stages("stage2", "stage3", "stage4", first=2),
    },
    "efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 "
    "efficientnet_b5 efficientnet_b6 efficientnet_b7 "
    "efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l": _AVGPOOL,
    "regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf "
    "regnet_x_16gf regnet_x_32gf regnet_y_400mf regnet_y_800mf regnet_y_1_6gf "
    "regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf regnet_y_128gf": {
        **_AVGPOOL,
        **_stages(*(f"trunk_output.block{i}" for i in range(1, 5)), name="block"),
    },
    "convnext_tiny convnext_small convnext_base convnext_large": {
        "penultimate": _PRE_LOGITS,  # the mean after its LayerNorm
        "avgpool": Layer("avgpool", "flatten"),
        **_stages("features.1", "features.3", "features.5", "features.7"),
    },
    "vit_b_16 vit_b_32 vit_l_16 vit_l_32 vit_h_14": {"cls": _CLS, "penultimate": _CLS},
    "swin_t swin_s swin_b swin_v2_t swin_v2_s swin_v2_b": _SWIN,
    "maxvit_t": {
        "penultimate": _MAXVIT,
        "avgpool": _PRE_LOGITS,
        **_stages(*(f"blocks.{i}" for i in range(4))),
    },
}
# The two networks without IMAGENET1K_V1: the trunk as it was pretrained, not tuned.
_SWAG_ONLY = ("regnet_y_128gf", "vit_h_14")


def _row(name: str, layers: Layers) -> Backbone:
    swag = "IMAGENET1K_SWAG_LINEAR_V1"
    return Backbone(
        name,
        layers,
        weights=swag if name in _SWAG_ONLY else "IMAGENET1K_V1",
        prefix=PrefixTokens(1, 1) if name.startswith("vit_") else PrefixTokens(),
        aliases=_aliases(name),
    )


ROWS: Mapping[str, Backbone] = {
    name: _row(name, layers)
    for names, layers in _FAMILIES.items()
    for name in names.split()
}


# What torchvision publishes of weights it publishes of all its networks alike.
published, place, fetch = (
    torchvision_weights.published,
    torchvision_weights.place,
    torchvision_weights.fetch,
)
renamed = same_names


def find(name: str) -> Backbone | None:
    """The network of that name, if torchvision has it."""
    return ROWS.get(name)


def named_weights(backbone: Backbone, name: str) -> NamedWeights:
    """The member ``name`` of the weights, with its own preprocessing.

    Raises:
        UnknownName: see ``members.find_member``.
    """
    member = torchvision_weights.find_member(backbone, name)
    return torchvision_weights.named(member, _recorded(member.value.transforms()))


def build(
    backbone: Backbone,
    side: int,
    state: "Mapping[str, torch.Tensor] | None" = None,
) -> "torch.nn.Module":
    """The network with the classes, auxiliary heads and input size of ``state``.

    Weights of a fine-tuned network end in another number of classes, and are as good
    an encoder.

    Raises:
        InvalidSpec: the network has no form for inputs of ``side`` pixels.
    """
    from torchvision.models import get_model

    options = _options(backbone, side, state or {})
    try:
        network = get_model(backbone.name, weights=None, **options)
    except (ValueError, AssertionError) as fault:
        reason = str(fault).strip().partition("\n")[0].rstrip(".!")
        raise InvalidSpec(
            f"{backbone.name} takes no inputs of {side} x {side}: {reason}"
        ) from None
    name, last = list(network.named_parameters())[-1]
    given = (state or {}).get(name)
    if given is not None and given.ndim and len(given) not in {0, len(last)}:
        options["num_classes"] = len(given)
        network = get_model(backbone.name, weights=None, **options)
    if backbone.name.startswith("densenet"):
        network.register_load_state_dict_pre_hook(_join_numbers)
    if backbone.name.startswith("vit_"):
        network.register_load_state_dict_pre_hook(_interpolate_positions)
    return network


def _options(
    backbone: Backbone, side: int, state: "Mapping[str, torch.Tensor]"
) -> dict[str, Any]:
    if backbone.name in {"googlenet", "inception_v3"}:
        # torchvision sets transform_input with its weights, which no file records. So
        # it is set for every file, and for the untrained twin, which must see the same.
        heads = ("aux1.", "AuxLogits.")
        return {
            "transform_input": True,
            "aux_logits": any(name.startswith(heads) for name in state),
            "init_weights": not state,
        }
    if backbone.name.startswith("vit_"):
        return {"image_size": side}
    if backbone.name == "maxvit_t":
        return {"input_size": (side, side)}
    return {}


def _interpolate_positions(
    network: Any, state: "dict[str, torch.Tensor]", *_: object
) -> None:
    """Fit the positions of a vision transformer to the side of its inputs.

    By torchvision's own function; positions for that side stay as they are.
    """
    from torchvision.models.vision_transformer import interpolate_embeddings

    name = "encoder.pos_embedding"
    given, own = state.get(name), network.encoder.pos_embedding
    if given is not None and given.ndim == own.ndim and given.shape[1] != own.shape[1]:
        one = OrderedDict({name: given})
        interpolate_embeddings(network.image_size, network.patch_size, one)
        state[name] = one[name]


def _join_numbers(_: object, state: "dict[str, torch.Tensor]", *__: object) -> None:
    """Rename ``norm.1`` to ``norm1``: DenseNet's published files are of torch 0.3."""
    for name in list(state):
        head, found, tail = name.partition("denselayer")
        if not found:
            continue
        words = tail.split(".")
        if len(words) > 3 and words[1] in {"norm", "conv"} and words[2] in {"1", "2"}:
            joined = [words[0], words[1] + words[2], *words[3:]]
            state[head + found + ".".join(joined)] = state.pop(name)


def _recorded(preset: Any) -> Preprocess:
    """The fields of torchvision's ``ImageClassification`` preset."""
    (resize,), (crop,) = preset.resize_size, preset.crop_size
    return Preprocess(
        resize=resize,
        crop=crop,
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )

"""torchvision's detection networks as encoders: the maps that their heads look at.

The layers are the levels of the feature pyramid (Lin et al., "Feature Pyramid Networks
for Object Detection", CVPR 2017) or of SSD's maps (Liu et al., ECCV 2016), under the
names torchvision gives them, each reduced to its channel means; the default is the
coarsest that has weights of its own. Weights are those of the whole detector.

Input: the detector's own means and deviations, and the side its own transform aims at,
as a centre crop (torchvision pads the photo instead, or squashes it for SSD): the
shorter side becomes 800 pixels, 320 or 300. ``resize`` and ``crop`` make it cheaper.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tl_pipeline.encoders.backbones import torchvision_weights
from tl_pipeline.encoders.backbones.backbone import (
    Backbone,
    Layer,
    NamedWeights,
    same_names,
)
from tl_pipeline.inputs.images import Preprocess

if TYPE_CHECKING:
    import torch

ORIGIN = "torchvision detection"
PACKAGE: str = "torchvision"

_RCNN = ("level3", "level0", "level1", "level2", "pool")
_MOBILE = ("level1", "level0", "pool")
_ONE_STAGE = ("p7", "level0", "level1", "level2", "p6")
_SSD = ("level5", "level0", "level1", "level2", "level3", "level4")

_CLASSES_RCNN = ("roi_heads.box_predictor.cls_score.bias", 1)
_CLASSES_ONE_STAGE = "head.classification_head.cls_logits.bias"
_CLASSES_SSD = "head.classification_head.module_list"

# Pyramid levels; the parameter whose length tells the number of classes, and the boxes
# per place by which that length is divided.
_NETWORKS: dict[str, tuple[tuple[str, ...], tuple[str, int]]] = {
    "fasterrcnn_resnet50_fpn": (_RCNN, _CLASSES_RCNN),
    "fasterrcnn_resnet50_fpn_v2": (_RCNN, _CLASSES_RCNN),
    "fasterrcnn_mobilenet_v3_large_fpn": (_MOBILE, _CLASSES_RCNN),
    "fasterrcnn_mobilenet_v3_large_320_fpn": (_MOBILE, _CLASSES_RCNN),
    "maskrcnn_resnet50_fpn": (_RCNN, _CLASSES_RCNN),
    "maskrcnn_resnet50_fpn_v2": (_RCNN, _CLASSES_RCNN),
    "keypointrcnn_resnet50_fpn": (_RCNN, _CLASSES_RCNN),
    "retinanet_resnet50_fpn": (_ONE_STAGE, (_CLASSES_ONE_STAGE, 9)),
    "retinanet_resnet50_fpn_v2": (_ONE_STAGE, (_CLASSES_ONE_STAGE, 9)),
    "fcos_resnet50_fpn": (_ONE_STAGE, (_CLASSES_ONE_STAGE, 1)),
    "ssd300_vgg16": (_SSD, (f"{_CLASSES_SSD}.0.bias", 4)),
    "ssdlite320_mobilenet_v3_large": (_SSD, (f"{_CLASSES_SSD}.0.1.bias", 6)),
}
# Trained with batch norms that divide by the bare deviation; torchvision sets so after
# loading, and a state dict does not tell.
_WITHOUT_EPSILON = (
    "fasterrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "keypointrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
)


def _row(name: str, levels: tuple[str, ...]) -> Backbone:
    layers = {level: Layer(f"levels.{level}", "mean") for level in levels}
    layers["penultimate"] = layers[levels[0]]
    return Backbone(name, layers, weights="COCO_V1", origin=ORIGIN)


ROWS: Mapping[str, Backbone] = {
    name: _row(name, levels) for name, (levels, _) in _NETWORKS.items()
}


# What torchvision publishes of weights it publishes of all its networks alike.
published, place, fetch = (
    torchvision_weights.published,
    torchvision_weights.place,
    torchvision_weights.fetch,
)
renamed = same_names


def find(name: str) -> Backbone | None:
    """The detector of that name, if torchvision has it."""
    return ROWS.get(name)


def named_weights(backbone: Backbone, name: str) -> NamedWeights:
    """The member ``name`` of the weights, with what the detector does to its input.

    Raises:
        UnknownName: see ``members.find_member``.
    """
    import torch

    member = torchvision_weights.find_member(backbone, name)
    with torch.device("meta"):
        transform: Any = _detector(backbone, {}).transform
    # The sides of several scales are drawn in training; evaluation takes the last.
    side = transform.min_size[-1]
    preprocess = Preprocess(
        resize=side,
        crop=side,
        mean=tuple(transform.image_mean),
        std=tuple(transform.image_std),
    )
    return torchvision_weights.named(member, preprocess)


def build(
    backbone: Backbone,
    side: int,  # noqa: ARG001 - any that is not too small for the top level
    state: "Mapping[str, torch.Tensor] | None" = None,
) -> "torch.nn.Module":
    """The detector with the classes of ``state``; called, it gives its levels.

    The parameters are those of the whole detector, under torchvision's names.
    """
    from torch import nn

    from tl_pipeline.encoders.backbones.fpn_levels import FeaturePyramid

    parameter, boxes = _NETWORKS[backbone.name][1]
    last = (state or {}).get(parameter)
    options = {}
    if last is not None and last.ndim == 1 and len(last) >= boxes:
        options["num_classes"] = len(last) // boxes
    detector = _detector(backbone, options)
    if backbone.name in _WITHOUT_EPSILON:
        for module in detector.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
    return FeaturePyramid(
        detector, [name for name in backbone.layers if name != "penultimate"]
    )


def _detector(backbone: Backbone, options: Mapping[str, int]) -> "torch.nn.Module":
    from torchvision.models import get_model

    # Without weights_backbone=None torchvision downloads some.
    return get_model(backbone.name, weights=None, weights_backbone=None, **options)

"""The blocks of networks, by their own structure."""

import pytest

from tl_pipeline.config.encoder_specs import EncoderSpec
from tl_pipeline.config.finetune_specs import FinetuneSpec
from tl_pipeline.encoders import resolution
from tl_pipeline.encoders.backbones import find_backbone
from tl_pipeline.encoders.networks import hollow
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.finetuning.blocks import blocks, of_parameters
from tl_pipeline.finetuning.network import check_blocks
from tl_pipeline.store.artifacts import Store


@pytest.mark.parametrize(
    ("name", "number", "first", "last"),
    [
        ("lenet5", 5, ("c1",), ("output",)),
        ("alexnet", 8, ("features.0",), ("classifier.6",)),
        ("vgg16", 16, ("features.0",), ("classifier.6",)),
        ("squeezenet1_0", 10, ("features.0",), ("classifier.1",)),
        ("resnet18", 10, ("conv1", "bn1"), ("fc",)),
        ("efficientnet_b0", 19, ("features.0",), ("classifier.1",)),
        ("mobilenet_v2", 20, ("features.0",), ("classifier.1",)),
        ("densenet121", 9, ("features.conv0", "features.norm0"), ("classifier",)),
        ("vit_b_16", 14, ("conv_proj",), ("heads.head",)),
        ("swin_t", 17, ("features.0",), ("head",)),
        ("timm:resnet18", 10, ("conv1", "bn1"), ("fc",)),
        ("timm:vit_tiny_patch16_224", 14, ("patch_embed",), ("head",)),
    ],
)
def test_blocks_are_those_of_the_paper(name, number, first, last):
    """Residual blocks, Fire modules, layers; a norm goes with what is before it."""
    found = blocks(hollow(find_backbone(name), 32 if name == "lenet5" else 224))
    assert (len(found), found[0], found[-1]) == (number, first, last)


def test_blocks_of_parameters_begin_at_the_head():
    """Blocks that the layer does not need are left out."""
    known = [("stem",), ("layer1.0",), ("layer1.1", "norm"), ("fc",)]
    names = ["positions", "stem.weight", "layer1.0.a.weight", "layer1.1.b", "norm.bias"]
    assert of_parameters(known, names) == [
        ["layer1.1.b", "norm.bias"],
        ["layer1.0.a.weight"],
        ["positions", "stem.weight"],
    ]


def test_more_blocks_than_there_are(store: Store):
    """The message says how many the layer rests on."""
    encoder = resolution.resolve(EncoderSpec.parse("lenet5"), store)
    with pytest.raises(InvalidSpec, match="lenet5 has 3 blocks up to c5; give 1 to 3"):
        check_blocks(encoder, FinetuneSpec(blocks=99))

"""Labels that people read are unique where encoders differ."""

import pytest

from tests.runs.made import result
from tl_pipeline.encoders import labels
from tl_pipeline.runs.results import told_apart


def test_only_equal_labels_get_the_beginning_of_their_key():
    found = labels.unique({"aa11bb22": "x a.pth", "cc33dd44": "x a.pth", "e": "y"})
    assert found == {
        "aa11bb22": "x a.pth #aa11bb",
        "cc33dd44": "x a.pth #cc33dd",
        "e": "y",
    }


def test_keys_that_begin_alike_are_told_apart():
    found = labels.unique({"aaaaaaaa1": "x", "aaaaaaaa2": "x"})
    assert sorted(found.values()) == ["x #aaaaaaaa1", "x #aaaaaaaa2"]


def test_a_record_tells_encoders_of_one_label_apart():
    """A control on the same encoder, or a head of several, needs no more."""
    member = {"evaluation": "m", "encoder": "x", "head": "h", "times": 1}
    found = told_apart(
        [
            result("1", encoder="x", encoder_key="a" * 32),
            result("2", "candidate", encoder="x", encoder_key="b" * 32),
            result("3", "control", encoder="x", encoder_key="a" * 32),
            result("4", "candidate", encoder="z", encoder_key="c" * 32),
            result("5", "candidate", encoder="x", encoder_key="d", members=[member]),
        ]
    )
    names = [r.encoder for r in found]
    assert names == ["x #aaaaaa", "x #bbbbbb", "x #aaaaaa", "z", "x"]


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("squeezenet1_0/fire9 (@160 2x2 bf16) w.pth", "squeezenet1_0@160 2x2"),
        ("squeezenet1_0/fire9 IMAGENET1K_V1", "squeezenet1_0"),
        ("resnet50/avgpool IMAGENET1K_V2", "resnet50 IMAGENET1K_V2"),
        ("squeezenet1_0/fire9 (bf16) random:0", "squeezenet1_0 random:0"),
        ("vgg16/fc7 (resize=300 pool=gem) a b.pth", "vgg16/fc7 resize=300 pool=gem"),
        (
            "lenet5/c5 LETTERS (split by image) #3f9a21",
            "lenet5 (split by image) #3f9a21",
        ),
        ("vgg16/fc6 a.pth + lenet5/f6 LETTERS", "vgg16 + lenet5/f6"),
        ("vgg16/fc6 a.pth, lenet5/f6 LETTERS", "vgg16, lenet5/f6"),
        ("timm:resnet10t/blocks.8 c3_in1k", "timm:resnet10t/blocks.8 c3_in1k"),
        ("onnx:/a b/n.onnx/out own", "onnx:/a b/n.onnx/out own"),
        ("nosuch/fire9 a.pth", "nosuch/fire9 a.pth"),
        ("3 encoders", "3 encoders"),
    ],
)
def test_a_label_is_as_short_as_it_can_be(label: str, shown: str):
    assert labels.short([label]) == {label: shown}


def test_short_labels_name_what_two_of_a_table_differ_in():
    found = labels.short(
        [
            "vgg16/fc6 a.pth",
            "vgg16/fc6 b.pth",
            "vgg16/fc7 IMAGENET1K_V1",
            "vgg16/fc7 (bf16) IMAGENET1K_V1",
            "lenet5/c5 a.pth",
            "lenet5/c5 (bf16) b.pth",
            "vgg16/fc6 (@64) a.pth",
            "vgg16/fc6 b.pth + lenet5/c5 a.pth",
        ]
    )
    assert list(found.values()) == [
        "vgg16 a.pth",
        "vgg16 b.pth",
        "vgg16/fc7 fp32",
        "vgg16/fc7 bf16",
        "lenet5 a.pth",
        "lenet5 b.pth",
        "vgg16@64",
        "vgg16 b.pth + lenet5 a.pth",
    ]

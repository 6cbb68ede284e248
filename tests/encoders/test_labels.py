"""Labels that people read are unique where encoders differ."""

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

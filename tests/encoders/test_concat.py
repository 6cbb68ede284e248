"""Encoders side by side: their names, their identity, their vectors."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from tl_pipeline.cli import few_shot_command
from tl_pipeline.cli.request import Request
from tl_pipeline.config import catalog
from tl_pipeline.config.encoder_specs import (
    ConcatSpec,
    EncoderSpec,
    backbone_of,
    members,
)
from tl_pipeline.config.specs import RunSpec
from tl_pipeline.encoders import concat, resolution
from tl_pipeline.encoders.backbones import PATTERN
from tl_pipeline.encoders.concat import ConcatEmbeddings, ConcatEncoder
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.errors import CatalogError, InvalidSpec, UnknownName
from tl_pipeline.pipeline import work
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.embeddings import EmbeddingFolder

C5 = EncoderSpec(backbone="lenet5", layer="c5")
F6 = EncoderSpec(backbone="lenet5", layer="f6")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lenet5:layer=c5,lenet5:layer=f6", ["lenet5:layer=c5", "lenet5:layer=f6"]),
        ("lenet5, vgg16: layer=fc7", ["lenet5", "vgg16:layer=fc7"]),
        ("a,b,c", ["a", "b", "c"]),
        (
            "a:weights=/x/a+b.pth,layer=l,b",
            ["a:layer=l,weights=/x/a+b.pth", "b"],
        ),
        (
            "onnx:/x/a+b.onnx,timm:r.a1:pool=gap",
            ["onnx:/x/a+b.onnx", "timm:r.a1:pool=gap"],
        ),
        (
            "vit_b_16:pool=cls+mean,precision=fp32,lenet5",
            ["vit_b_16:pool=cls+mean,precision=fp32", "lenet5"],
        ),
    ],
)
def test_a_comma_separates_encoders_and_reads_back(text: str, expected: list[str]):
    spec = ConcatSpec.parse(text)
    assert [member.short() for member in spec.members] == expected
    assert ConcatSpec.parse(spec.short()) == spec


@pytest.mark.parametrize("text", ["lenet5", "vgg16:layer=fc7,weights=x.pth", ""])
def test_one_encoder_is_not_concatenated(text: str):
    with pytest.raises(InvalidSpec, match="two or more with commas between"):
        ConcatSpec.parse(text)


def test_a_plus_is_part_of_a_name():
    spec = EncoderSpec(backbone="lenet5", weights="/data/a+b")
    assert EncoderSpec.parse(spec.short()) == spec
    assert not re.match(PATTERN, "lenet5+vgg16")


def test_a_run_reads_lists_and_records_of_concatenated_encoders():
    """Records hold ``members``, since before lists were read."""
    run = RunSpec.model_validate(
        {"dataset": "d", "backbones": [["a", "b"], {"members": ["a", "b"]}]}
    )
    assert run.backbones[0] == run.backbones[1]
    assert isinstance(run.backbones[0], ConcatSpec)
    assert RunSpec.model_validate_json(run.model_dump_json()) == run


def test_a_joint_of_one_is_refused():
    with pytest.raises(ValidationError, match="at least 2"):
        RunSpec.model_validate({"dataset": "d", "backbones": [{"members": ["a"]}]})


def test_a_fault_in_a_joint_is_reported_at_its_line(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("dataset: d\nbackbones:\n- [lenet5]\n")
    with pytest.raises(CatalogError) as fault:
        catalog.load_run(file)
    assert f"{file}:2: backbones.0.members: " in str(fault.value)
    assert "concatenated encoders" not in str(fault.value)


@pytest.fixture
def pair(store: Store) -> ConcatEncoder:
    (found,) = work.resolve([ConcatSpec(members=(C5, F6))], store)
    assert isinstance(found, ConcatEncoder)
    return found


def test_the_identity_of_a_joint_is_that_of_its_members_in_order(
    pair: ConcatEncoder, store: Store
):
    assert concat.VERSION == 1
    turned = ConcatEncoder(members=pair.members[::-1])
    assert len({pair.key, turned.key, *(m.key for m in pair.members)}) == 4
    assert pair.label == "lenet5/c5 LETTERS + lenet5/f6 LETTERS"
    assert concat.labels(pair.label) == [member.label for member in pair.members]
    assert not pair.control
    assert concat.members_of(pair) == pair.members
    one = resolution.resolve(C5, store)
    assert concat.members_of(one) == (one,)


def test_an_encoder_joined_with_itself_is_refused(store: Store):
    same = ConcatSpec(members=(C5, EncoderSpec(backbone="lenet5")))
    with pytest.raises(InvalidSpec, match="joins an encoder with itself"):
        work.resolve([same], store)


def test_each_member_is_checked(store: Store):
    with pytest.raises(UnknownName, match="lenet6"):
        work.resolve([ConcatSpec.parse("lenet5,lenet6")], store)


def test_the_untrained_twin_has_the_members_untrained(
    pair: ConcatEncoder, store: Store
):
    wish = ConcatSpec(members=(C5, F6))
    twin = concat.random_init_baseline(wish, pair, 3, store)
    assert isinstance(twin, ConcatEncoder)
    assert twin.control
    assert [m.layer for m in twin.members] == ["c5", "f6"]
    assert {m.weights.seed for m in twin.members} == {3}
    assert not concat.no_baseline_reason(wish)
    sealed = ConcatSpec(members=(C5, EncoderSpec(backbone="onnx:x.onnx")))
    assert concat.no_baseline_reason(sealed)


def filled(store: Store, encoder: Encoder, ids: str, width: int) -> np.ndarray:
    vectors = np.random.default_rng(width).normal(size=(len(ids), width))
    folder = EmbeddingFolder(store, encoder.key)
    folder.describe(encoder.model_dump_json())
    folder.add(list(ids), vectors.astype(np.float32))
    return vectors.astype(np.float32)


def test_joint_vectors_are_those_of_the_members_side_by_side(
    pair: ConcatEncoder, store: Store
):
    """In the order of the members; what one of them refused is nobody's."""
    first = filled(store, pair.members[0], "abcd", 3)
    second = filled(store, pair.members[1], "acd", 2)
    EmbeddingFolder(store, pair.members[1].key).refuse([("b", "too_large", "")])
    embedded = {
        member.key: Artifact("embeddings", member.key, f"f{number}")
        for number, member in enumerate(pair.members)
    }
    given = concat.embeddings_of(embedded, pair)
    assert isinstance(given, ConcatEmbeddings)
    assert given.key == pair.key
    assert concat.refused(store, given) == {"b"}
    found = concat.load(store, given, "dcb")
    assert (found.encoder_key, found.image_ids) == (pair.key, ["c", "d"])
    assert found.vectors.dtype == np.float32
    expected = np.hstack([first[[2, 3]], second[[1, 2]]])
    np.testing.assert_array_equal(found.vectors, expected)
    whole = concat.load(store, given, "acd")
    np.testing.assert_array_equal(whole.vectors, np.hstack([first[[0, 2, 3]], second]))


def test_new_images_of_a_member_change_the_fingerprint(pair: ConcatEncoder):
    def fingerprint(*prints: str) -> str:
        embedded = {
            member.key: Artifact("embeddings", member.key, text)
            for member, text in zip(pair.members, prints, strict=True)
        }
        return concat.embeddings_of(embedded, pair).fingerprint

    assert fingerprint("x", "y") == fingerprint("x", "y")
    assert (
        len({fingerprint("x", "y"), fingerprint("x", "z"), fingerprint("z", "y")}) == 3
    )


def test_one_encoder_is_read_as_ever(pair: ConcatEncoder, store: Store):
    vectors = filled(store, pair.members[0], "ab", 3)
    embedded = {pair.members[0].key: Artifact("embeddings", pair.members[0].key, "f")}
    given = concat.embeddings_of(embedded, pair.members[0])
    assert given is embedded[pair.members[0].key]
    np.testing.assert_array_equal(concat.load(store, given, "ab").vectors, vectors)


def test_the_command_line_and_the_flow_say_the_same():
    """What is asked for goes through the texts of the flow's parameters unchanged."""
    asked = Request(
        "d",
        backbone=("lenet5",),
        concat=("lenet5, lenet5:layer=f6",),
        ensemble="greedy",
    )
    spec = asked.spec()
    assert spec.ensemble == "greedy"
    assert [m.layer for m in members(spec.backbones[1])] == [None, "f6"]
    given = asked.parameters(spec)
    assert given["ensemble"] == "greedy"
    assert given["backbones"] == ["lenet5", ["lenet5", "lenet5:layer=f6"]]
    assert tuple(map(backbone_of, given["backbones"])) == spec.backbones


def test_weights_beside_a_joint_are_refused():
    with pytest.raises(InvalidSpec, match="for one backbone"):
        Request("d", concat=("lenet5,vgg16",), weights="x.pth").spec()


def test_few_shots_learn_from_joint_vectors(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    few_shot_command.few_shot(
        str(folder),
        backbone=("lenet5",),
        concat=("lenet5,lenet5:layer=f6",),
        head=("nearest_centroid:whiten=false",),
        shots="3",
        draws=2,
        store=str(tmp_path / "store"),
        json=True,
    )
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["encoder"] for row in rows] == [
        "lenet5/c5 LETTERS",
        "lenet5/c5 LETTERS + lenet5/f6 LETTERS",
    ]
    assert len(list((tmp_path / "store" / "embeddings").iterdir())) == 2

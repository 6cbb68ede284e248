"""Specs: what they refuse, and that their short form reads back to them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tl_pipeline import heads
from tl_pipeline.config.datasets import DigitsSpec, ImageFolderSpec
from tl_pipeline.config.specs import EncoderSpec, HeadConfig, HeadSpec, RunSpec
from tl_pipeline.config.split_specs import SplitSpec
from tl_pipeline.errors import InvalidSpec

names = st.from_regex(r"[a-z][a-z0-9_]{0,11}", fullmatch=True)


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


words = names.filter(lambda text: not is_json(text))  # "true" reads as a bool
files = st.lists(names, min_size=1, max_size=4).map(lambda p: f"/{'/'.join(p)}.pth")
seeds = st.integers(0, 2**32).map("random:{}".format)
numbers = st.integers(-(10**6), 10**6) | st.floats(
    allow_nan=False, allow_infinity=False
)
scalars = st.booleans() | numbers | words
encoder_specs = st.builds(
    EncoderSpec,
    backbone=names,
    layer=st.none() | names,
    weights=st.none() | st.sampled_from(["IMAGENET1K_V1", "LETTERS"]) | files | seeds,
)
head_specs = st.builds(
    HeadSpec,
    name=names,
    params=st.dictionaries(
        names, scalars | st.lists(scalars, min_size=2, max_size=4), max_size=4
    ),
)


@settings(deadline=None)
@given(encoder_specs)
def test_the_short_form_of_an_encoder_reads_back_to_it(spec: EncoderSpec):
    assert EncoderSpec.parse(spec.short()) == spec


@settings(deadline=None)
@given(head_specs)
def test_the_short_form_of_a_head_reads_back_to_it(spec: HeadSpec):
    found = HeadSpec.parse(spec.short())
    assert found.model_dump_json() == spec.model_dump_json()  # so 1 is not 1.0


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("vgg16", EncoderSpec(backbone="vgg16")),
        (
            "vgg16:layer=fc7,weights=~/vgg16.pth",
            EncoderSpec(backbone="vgg16", layer="fc7", weights="~/vgg16.pth"),
        ),
        (
            "lenet5: weights = random:3",
            EncoderSpec(backbone="lenet5", weights="random:3"),
        ),
    ],
)
def test_an_encoder_is_read_from_text(text: str, spec: EncoderSpec):
    assert EncoderSpec.parse(text) == spec


@pytest.mark.parametrize(
    ("text", "params"),
    [
        ("mlp", {}),
        ("mlp:hidden=64", {"hidden": 64}),
        ("mlp:learning_rate=1e-3", {"learning_rate": 0.001}),
        ("logistic:C=0.01/0.1/1", {"C": [0.01, 0.1, 1]}),
        ("x:kind=rbf,flag=true", {"kind": "rbf", "flag": True}),
    ],
)
def test_a_head_is_read_from_text(text: str, params):
    spec = HeadSpec.parse(text)
    assert spec.params == params
    for name, value in params.items():
        assert type(spec.params[name]) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":layer=fc7",
        "name:",
        "name:layer",
        "name:=fc7",
        "name:layer=fc7,",
        "name:layer=fc7,,weights=x",
    ],
)
@pytest.mark.parametrize("spec", [EncoderSpec, HeadSpec])
def test_text_of_another_form_is_refused(spec, text: str):
    with pytest.raises(InvalidSpec, match="not of the form NAME or NAME:param=value"):
        spec.parse(text)


@pytest.mark.parametrize("text", ["vgg16:bogus=1", "vgg16:precision=int4"])
def test_an_encoder_names_its_parameters_when_it_refuses_one(text: str):
    with pytest.raises(InvalidSpec, match=r"Known parameters: .*layer.*precision") as e:
        EncoderSpec.parse(text)
    assert repr(text) in str(e.value)


def test_a_grid_is_every_combination_in_the_order_given():
    spec = HeadSpec(name="x", params={"b": [2, 1], "a": "k", "c": [0.5, 0.25]})
    assert list(spec.grid()) == [
        HeadConfig(name="x", params={"b": b, "a": "k", "c": c})
        for b, c in [(2, 0.5), (2, 0.25), (1, 0.5), (1, 0.25)]
    ]


def test_a_head_without_parameters_is_a_grid_of_one():
    assert list(HeadSpec(name="x").grid()) == [HeadConfig(name="x")]


def test_an_empty_grid_is_refused():
    """Nothing would be trained, and choosing the best of nothing fails much later."""
    with pytest.raises((InvalidSpec, ValidationError), match="C"):
        heads.complete(HeadSpec(name="logistic", params={"C": []}))


@pytest.mark.parametrize("field", ["backbones", "heads"])
def test_a_run_needs_at_least_one_of_each(field: str):
    with pytest.raises(ValidationError, match=field):
        RunSpec.model_validate({"dataset": "digits", field: []})


def test_a_run_reads_short_forms():
    spec = RunSpec.model_validate(
        {"dataset": "d", "backbones": ["lenet5:layer=f6"], "heads": ["mlp:hidden=8"]}
    )
    assert spec.backbones == (EncoderSpec(backbone="lenet5", layer="f6"),)
    assert spec.heads == (HeadSpec(name="mlp", params={"hidden": 8}),)


def test_a_run_comes_back_from_json():
    spec = RunSpec(
        dataset="d",
        backbones=(EncoderSpec(backbone="vgg16", weights="random:1"),),
        heads=(HeadSpec(name="logistic", params={"C": [0.1, 1]}),),
    )
    assert RunSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    "fields",
    [
        {"validation": 0},
        {"validation": 1},
        {"test": -0.1},
        {"test": 1.5},
        {"validation": 0.5, "test": 0.5},
        {"strategy": "random"},
        {"shuffle": True},
    ],
    ids=str,
)
def test_a_split_that_cannot_be_drawn_is_refused(fields):
    with pytest.raises(ValidationError):
        SplitSpec.model_validate(fields)


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "a b", "-x", "a\n"])
def test_a_name_that_is_no_file_name_is_refused(name: str):
    """The name of a dataset becomes part of paths in the store."""
    with pytest.raises(ValidationError, match="name"):
        DigitsSpec(type="digits", name=name)


def test_a_spec_is_frozen_and_refuses_unknown_fields():
    spec = ImageFolderSpec.model_validate({"name": "a", "path": "b"})
    with pytest.raises(ValidationError, match="frozen"):
        spec.name = "c"
    with pytest.raises(ValidationError, match="colour"):
        ImageFolderSpec.model_validate({"name": "a", "path": "b", "colour": "red"})

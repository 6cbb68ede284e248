"""Parameters of heads: which values they take, and which of them make a key."""

import json
import math

import pytest

from tests.exhaustive import one_of_each
from tl_pipeline import heads
from tl_pipeline.cli import head_command
from tl_pipeline.config.specs import HeadConfig, HeadSpec
from tl_pipeline.errors import InvalidSpec, UnknownName
from tl_pipeline.heads import HEADS
from tl_pipeline.heads.fitting import build
from tl_pipeline.heads.parameters import CHOICES, MEANINGS, PREPARATION, SHARES, domain
from tl_pipeline.store.keys import digest


def sample(name: str, parameter: str):
    default = HEADS[name].parameters[parameter]
    return default[0] if isinstance(default, list) else default


OTHERS = {
    "stop_by": "refined",
    "l2": True,
    "whiten": True,
    "pca": 3,
    "scale": "none",
    "class_weight": "balanced",
    "batch_norm": True,
    "optimiser": "sgd",
    "schedule": "cosine",
    "label_smoothing": 0.1,
    "mixup": 0.2,
    "sharpness": 20.0,
}
EVERY = [(h.name, p) for h in HEADS.values() for p in h.parameters]
NUMBERS = [(n, p) for n, p in EVERY if HEADS[n].limits_of(p)]
every_head = pytest.mark.parametrize("name", list(HEADS))


def every(pairs: list[tuple[str, str]]) -> pytest.MarkDecorator:
    """Each parameter at the first head that takes it; at all by ``make test-all``."""
    return pytest.mark.parametrize(
        ("name", "parameter"), one_of_each(pairs, lambda pair: pair[1])
    )


every_parameter = every(EVERY)
every_choice = every([pair for pair in EVERY if pair not in NUMBERS])
every_number = every(NUMBERS)


def is_whole(name: str, parameter: str) -> bool:
    return isinstance(sample(name, parameter), int) or parameter in SHARES


def test_an_unknown_head_is_refused_with_the_choices():
    with pytest.raises(UnknownName, match=r"'logistics'.*Did you mean 'logistic'") as e:
        heads.complete(HeadSpec(name="logistics"))
    assert all(name in str(e.value) for name in HEADS)


def test_a_head_that_was_renamed_says_what_it_is_called_now():
    spec = HeadSpec.parse("linear:C=0.1,l2=true")
    with pytest.raises(InvalidSpec, match=r"write logistic:C=0\.1,l2=true"):
        heads.complete(spec)


@every_head
def test_an_unknown_parameter_is_refused_with_the_choices(name: str):
    with pytest.raises(UnknownName, match="'bogus'") as error:
        heads.complete(HeadSpec(name=name, params={"bogus": 1}))
    assert name in str(error.value)
    assert all(known in str(error.value) for known in HEADS[name].parameters)


@every_parameter
def test_a_parameter_says_what_it_means_and_which_values_it_takes(
    name: str, parameter: str
):
    row = HEADS[name]
    assert MEANINGS[parameter]
    assert domain(parameter, sample(name, parameter), row.limits_of(parameter))


@every_number
@pytest.mark.parametrize("text", ["much", "", "true", "NaN", "Infinity", "0.9/much"])
def test_a_value_that_is_no_number_is_refused(name: str, parameter: str, text: str):
    """NaN and Infinity are JSON but no numbers."""
    text = text.replace("0.9", str(HEADS[name].limits_of(parameter)[1]))
    spec = HeadSpec.parse(f"{name}:{parameter}={text}")
    with pytest.raises(InvalidSpec, match=rf"{name}.*{parameter} must be .*number"):
        heads.complete(spec)


@every_choice
@pytest.mark.parametrize("text", ["much", "2", "none/much"])
def test_a_value_that_is_no_choice_is_refused_with_the_choices(
    name: str, parameter: str, text: str
):
    with pytest.raises(InvalidSpec, match=f"{parameter} must be ") as error:
        heads.complete(HeadSpec.parse(f"{name}:{parameter}={text}"))
    choices = CHOICES.get(parameter, ("true", "false"))
    assert all(choice in str(error.value) for choice in choices)


@every_number
def test_a_fraction_is_refused_where_a_whole_number_is_due(name: str, parameter: str):
    for value in (0.5, 1.5):
        spec = HeadSpec(name=name, params={parameter: value})
        if is_whole(name, parameter) and not (parameter in SHARES and value < 1):
            with pytest.raises(InvalidSpec, match=f"{parameter} must be a whole numb"):
                heads.complete(spec)
        elif value <= HEADS[name].limits_of(parameter)[1]:
            assert heads.complete(spec).params[parameter] == value


@every([pair for pair in NUMBERS if not is_whole(*pair)])
def test_1_and_1_point_0_are_one_configuration(name: str, parameter: str):
    """Else ``C=1`` trains again what ``C=1.0`` trained, under a second key."""
    one = min(1, math.floor(HEADS[name].limits_of(parameter)[1]))
    keys = {
        digest(heads.complete(HeadSpec(name=name, params={parameter: n})).model_dump())
        for n in (one, float(one))
    }
    assert len(keys) == 1


@every_number
def test_a_value_out_of_its_limits_is_refused_with_both_of_them(
    name: str, parameter: str
):
    """Before hours of embedding, and not by an error of a library in the middle."""
    least, most = HEADS[name].limits_of(parameter)
    for value in (least - 1, most * 2 + 1):
        given = int(value) if is_whole(name, parameter) else value
        with pytest.raises(InvalidSpec, match=f"{parameter} must lie between"):
            heads.complete(HeadSpec(name=name, params={parameter: given}))


@every_head
def test_complete_fills_in_the_defaults_and_keeps_what_is_given(name: str):
    defaults = HEADS[name].defaults
    assert heads.complete(HeadSpec(name=name)).params == defaults
    for parameter, value in defaults.items():
        given = value[-1] if isinstance(value, list) else value
        found = heads.complete(HeadSpec(name=name, params={parameter: given})).params
        assert found == {**defaults, parameter: given}


@every([(h.name, p) for h in HEADS.values() for p in h.options])
def test_an_option_at_its_default_changes_no_key(name: str, parameter: str):
    """Neither alone nor in a grid: what was trained before it came is not again."""
    option = parameter
    default = HEADS[name].options[option]
    other = OTHERS[option]
    if other == default:
        other = "standard"
    plain = list(heads.grid(heads.complete(HeadSpec(name=name))))
    spec = HeadSpec(name=name, params={option: default})
    assert list(heads.grid(heads.complete(spec))) == plain
    spec = heads.complete(HeadSpec(name=name, params={option: [default, other]}))
    found = list(heads.grid(spec))
    assert [config for config in found if option not in config.params] == plain
    assert len(found) == 2 * len(plain)
    assert all(f"{option}=" in heads.label(c) for c in found if option in c.params)


@every_head
def test_labels_tell_the_configurations_of_a_grid_apart(name: str):
    grid = list(heads.grid(heads.complete(HeadSpec(name=name))))
    labels = [heads.label(config) for config in grid]
    assert len(set(labels)) == len(grid)
    assert all(label.startswith(name) for label in labels)


@pytest.mark.parametrize(
    ("spec", "label"),
    [
        ("logistic:C=0.1", "logistic(C=0.1)"),
        ("logistic:C=0.1,scale=standard", "logistic(C=0.1)"),
        ("logistic:C=0.1,scale=none,l2=true", "logistic(C=0.1, scale=none, l2=true)"),
        ("logistic:C=0.1,pca=0.9,whiten=false", "logistic(C=0.1, pca=0.9)"),
        ("lda:shrinkage=auto", "lda(shrinkage=auto)"),
        ("mlp", "mlp"),
        ("mlp:hidden=32,dropout=0.1", "mlp(hidden=32, dropout=0.1)"),
        ("majority", "majority"),
    ],
)
def test_a_label_shows_what_is_not_plain_default(spec: str, label: str):
    config = next(heads.grid(heads.complete(HeadSpec.parse(spec))))
    assert heads.label(config) == label


@pytest.mark.parametrize(
    ("params", "steps"),
    [
        ({}, ["standardscaler", "neighbourhead"]),
        ({"scale": "none"}, None),
        ({"l2": True}, ["normalizer", "standardscaler", "neighbourhead"]),
        ({"scale": "none", "whiten": True}, ["components", "neighbourhead"]),
        (
            {"l2": True, "pca": 2},
            ["normalizer", "standardscaler", "components", "neighbourhead"],
        ),
    ],
)
def test_preparation_makes_the_steps_asked_for(params: dict, steps: list | None):
    plain = {"k": 5, "temperature": 0.07}
    head = build(HeadConfig(name="knn", params={**plain, **params}), 0)
    assert ([name for name, _ in head.steps] if steps else None) == steps


@pytest.mark.parametrize("name", ["logistic", "ridge", "lda", "linear_svm"])
def test_a_head_that_standardises_itself_does_so_once(name: str):
    first = next(heads.grid(heads.complete(HeadSpec(name=name))))

    def built(**params: object):
        return build(HeadConfig(name=name, params=first.params | params), 0)

    assert built().standardise
    assert not built(scale="none").standardise
    reduced = built(pca=2)
    assert [step for step, _ in reduced.steps][:2] == ["standardscaler", "components"]
    assert not reduced.steps[-1][1].standardise


def test_all_steps_of_preparation_are_parameters_of_every_head():
    for row in HEADS.values():
        if not row.control:
            # Places are standardised by channel, and are no vector to turn.
            wanted = set() if row.takes_places else set(PREPARATION)
            assert wanted == set(PREPARATION) & set(row.parameters), row.name


def test_the_command_lists_heads_and_the_parameters_of_one(
    capsys: pytest.CaptureFixture[str],
):
    head_command.heads()
    text = capsys.readouterr().out
    assert "C=0.001/0.01/0.1/1.0" in text
    assert "tl heads NAME" in text
    head_command.heads("lda", json=True)
    rows = {row["parameter"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["shrinkage"]["default"] == "auto/0.3"
    assert rows["scale"]["values"] == "standard, none"
    assert "share" in rows["pca"]["values"]
    with pytest.raises(UnknownName, match="Did you mean 'lda'"):
        head_command.heads("ldaa")


@every_head
def test_the_defaults_that_are_listed_are_taken_back(name: str):
    for row in heads.describe(name):
        spec = HeadSpec.parse(f"{name}:{row['parameter']}={row['default']}")
        assert heads.complete(spec) == heads.complete(HeadSpec(name=name))


@pytest.mark.parametrize("name", list(heads.PRESETS))
def test_a_preset_names_heads_that_there_are(name: str):
    found = [heads.complete(head) for head in heads.expanded(HeadSpec(name=name))]
    assert len(found) == len(heads.PRESETS[name].heads)
    assert len({head.name for head in found}) == len(found)
    for head in found:
        assert build(next(iter(heads.grid(head))), 0)


def test_a_preset_takes_no_parameters():
    with pytest.raises(
        InvalidSpec, match=r"--head logistic:C=.* --head nearest_centroid"
    ):
        heads.expanded(HeadSpec.parse("quick:C=1"))

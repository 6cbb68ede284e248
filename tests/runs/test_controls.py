"""The control that a result is compared with: the same head, the twin's encoder."""

from pathlib import Path
from typing import Any

import pytest

from tl_pipeline.config.encoder_specs import backbone_of
from tl_pipeline.config.specs import HeadSpec, RunSpec
from tl_pipeline.pipeline import wiring
from tl_pipeline.runs.controls import Controls, Subject, pair
from tl_pipeline.runs.records import Result, RunRecord
from tl_pipeline.store.artifacts import Store

# It learns nothing, so a gain over it looks large.
POOR = "mlp:hidden=1,max_epochs=1,learning_rate=1e-9"
GOOD = "mlp:hidden=32,max_epochs=30"


def run(folder: Path, store: Store, **fields: Any) -> RunRecord:
    fields["backbones"] = tuple(map(backbone_of, fields["backbones"]))
    fields["heads"] = tuple(map(HeadSpec.parse, fields["heads"]))
    spec = RunSpec(dataset=str(folder), **fields)
    return wiring.run(wiring.prepare(spec, store))


def one(record: RunRecord, encoder: str, *head: str) -> Result:
    """The one result on ``encoder`` whose head is told by all of ``head``."""
    (found,) = [
        r
        for r in record.results
        if r.encoder == encoder and all(text in r.head for text in head)
    ]
    return found


def gain(record: RunRecord) -> float:
    assert record.gain is not None
    return record.gain.value


def test_the_gain_is_over_the_same_head_where_two_are_of_one_family(
    folder: Path, store: Store
):
    """The first head of the family learns nothing: over it the gain would be large."""
    record = run(folder, store, backbones=["lenet5"], heads=[POOR, GOOD])
    assert record.best == one(record, "lenet5/c5 LETTERS", "hidden=32")
    control = one(record, "lenet5/c5 random:0", "hidden=32")
    wrong = one(record, "lenet5/c5 random:0", "hidden=1,")
    assert record.best.untrained == control.evaluation
    assert gain(record) == pytest.approx(record.best.test.value - control.test.value)
    assert gain(record) != pytest.approx(record.best.test.value - wrong.test.value)


def test_a_control_has_the_input_of_its_candidate(folder: Path, store: Store):
    """Both encoders are of one layer: their labels begin with the same word."""
    other, at = "lenet5:mean=0.5,std=10", "lenet5/c5 (mean=0.5 std=10.0)"
    record = run(folder, store, backbones=[other, "lenet5"], heads=["logistic:C=1"])
    pairs = {
        f"{at} LETTERS": f"{at} random:0",
        "lenet5/c5 LETTERS": "lenet5/c5 random:0",
    }
    for label, twin in pairs.items():
        candidate, control = (one(record, of, "logistic") for of in (label, twin))
        assert (candidate.untrained, control.untrained) == (control.evaluation, None)
    control = one(record, pairs[record.best.encoder], "logistic")
    assert gain(record) == pytest.approx(record.best.test.value - control.test.value)


def test_an_encoder_that_is_named_twice_is_used_once(folder: Path, store: Store):
    record = run(
        folder,
        store,
        backbones=["lenet5", "lenet5:layer=c5", "lenet5"],
        heads=["logistic:C=1"],
    )
    evaluations = [result.evaluation for result in record.results]
    assert len(evaluations) == len(set(evaluations)) == 3  # with both controls
    assert [spec.short() for spec in record.spec.backbones] == ["lenet5"]


def test_pairs_are_formed_by_encoder_and_head():
    subjects = [
        Subject("a", "mlp:hidden=1"),
        Subject("a", "mlp"),
        Subject("b", "mlp"),
        Subject("ra", "mlp"),
        Subject("ra", "mlp:hidden=1"),
        Subject("a", "mlp", "split image by image"),
        Subject("", "average"),
        Subject("", "average", "untrained"),
    ]
    keys = [f"k{number}" for number in range(len(subjects))]
    found = pair(subjects, keys, {"a": "ra", "b": "rb"})
    assert found == {
        "k0": Controls("k4", None),
        "k1": Controls("k3", "k5"),
        "k2": Controls(None, None),  # its control was not run
        "k3": Controls(None, None),
        "k4": Controls(None, None),
        "k6": Controls("k7", None),
    }

"""Run records that cannot be read are skipped, and that is said."""

from pathlib import Path

import pytest

from tests.runs.made import record, result
from tl_pipeline import progress
from tl_pipeline.runs import records
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.store.artifacts import Store


def test_each_candidate_that_met_the_test_images_is_named_once():
    first = record("1", results=[result("b" * 32), result("c" * 32, head="lda")])
    assert first.tested == []  # as in a record of an older version
    second = record("2", tested=records.tested(first, [result("d" * 32, head="mlp")]))
    found = records.tested(second, [result("e" * 32, head="lda")])
    names = ["logistic(C=1.0)", "lda", "mlp"]
    assert found == [f"{name} on lenet5/c5 LETTERS" for name in names]
    assert records.tested(None, [result("b" * 32)]) == found[:1]


@pytest.mark.parametrize(
    "damage", [b"", b"\0" * 512, b"\xff\xfe{}", b"{", b"[]", b'{"run_id": {"v": 2}}']
)
def test_a_record_that_cannot_be_read_is_skipped(
    store: Store, damage: bytes, monkeypatch: pytest.MonkeyPatch
):
    """The last one that can be read is what the next run compares with."""
    said: list[str] = []
    monkeypatch.setattr(progress, "notice", said.append)
    good = record("20260101T000000000-000001")
    records.write(store, good)
    bad = store.root / "runs" / "photos" / "20260102T000000000-000002.json"
    bad.write_bytes(damage)
    assert records.latest(store, "photos") == good
    assert records.every(store) == [good]
    assert len(said) == 2
    assert all(line.startswith(f"skipped the run record {bad}") for line in said)
    assert all("\n" not in line for line in said)


def test_a_record_reads_back_as_it_was_written(store: Store):
    good = record("20260101T000000000-000001")
    file = records.write(store, good)
    assert RunRecord.model_validate_json(Path(file).read_text()) == good

"""What is said where inputs are refused."""

import pyarrow as pa
import pytest

from tl_pipeline.config.datasets import DigitsSpec
from tl_pipeline.data import refusals
from tl_pipeline.data.scan import Scan
from tl_pipeline.errors import TooManyRefused
from tl_pipeline.store.tables import DUPLICATES, MANIFEST, QUARANTINE

PHOTO = {"label": "a", "split": "train", "bytes": 1}


def scan(kept: int, *refused: tuple[str, str, str]) -> Scan:
    images = [{"image_id": str(n), "uri": str(n), **PHOTO} for n in range(kept)]
    rows = [dict(zip(("uri", "reason", "detail"), row, strict=True)) for row in refused]
    return Scan(
        pa.Table.from_pylist(images, MANIFEST.schema),
        pa.Table.from_pylist(rows, QUARANTINE.schema),
        DUPLICATES.schema.empty_table(),
    )


def spec(most: float) -> DigitsSpec:
    return DigitsSpec(type="digits", name="x", max_quarantined=most)


def check(dataset: DigitsSpec, found: Scan) -> None:
    labels = found.manifest["label"]
    refusals.check(dataset, found.inputs, found.quarantine, labels)


def message(most: float, found: Scan) -> list[str]:
    with pytest.raises(TooManyRefused) as error:
        check(spec(most), found)
    assert error.value.exit_code == 3
    return str(error.value).splitlines()


def test_where_nothing_can_be_used_the_first_five_are_named_with_their_reasons():
    rows = [(f"a/{n}", "unreadable", f"a/{n}: no such file; cure") for n in range(7)]
    rows.append(("b.tar#k#refused=why", "unreadable", "b.tar#k: why"))
    head, *lines = message(1.0, scan(0, *rows[5:], *rows[:5]))
    assert head == "x: none of 8 inputs can be used (8 unreadable). The first of them:"
    assert lines == [
        "  a/5: unreadable (no such file; cure)",
        "  a/6: unreadable (no such file; cure)",
        "  b.tar#k: unreadable (why)",
        "  a/0: unreadable (no such file; cure)",
        "  a/1: unreadable (no such file; cure)",
    ]


def test_more_than_is_allowed_is_refused():
    found = scan(18, ("a", "empty", "no bytes"), ("b", "empty", "no bytes"))
    check(spec(0.1), found)
    head, *lines = message(0.09, found)
    assert head == (
        "x: 2 of 20 inputs were refused (2 empty), more than max_quarantined = 0.09 "
        "allows. The first of them:"
    )
    assert lines == ["  a: empty (no bytes)", "  b: empty (no bytes)"]


def test_a_line_names_the_first_two():
    rows = [(f"{n}.jpg", "empty", "") for n in range(1000)]
    assert refusals.summary(scan(1).quarantine) == ""
    assert refusals.summary(scan(1, rows[0]).quarantine) == "1 refused: 0.jpg (empty)"
    said = refusals.summary(scan(1, *rows).quarantine)
    assert said == "1,000 refused: 0.jpg (empty), 1.jpg (empty) ..."

"""What files tell of their labels: the tree of attributes, and what is said of it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tl_pipeline.config.specs import RunSpec
from tl_pipeline.data import split_findings
from tl_pipeline.data.split_report import Shortcut
from tl_pipeline.pipeline import wiring
from tl_pipeline.runs import shortcuts, summary
from tl_pipeline.score import Score
from tl_pipeline.store.artifacts import Store

SIZES = {"train": 60, "validation": 20, "test": 40}
TOLD = Shortcut(
    accuracy=Score(value=0.75, low=0.6, high=0.9),
    gain=Score(value=0.25, low=0.05, high=0.45),
    attribute="width",
)


def images(**columns: list) -> pa.Table:
    """A manifest of two classes in turn, all files alike but for ``columns``."""
    n = sum(SIZES.values())
    usual = {
        "image_id": [f"{row:03}" for row in range(n)],
        "uri": [f"{row}.png" for row in range(n)],
        "label": ["cat", "dog"] * (n // 2),
        "split": [split for split, images in SIZES.items() for _ in range(images)],
        "group": pa.array([None] * n, pa.string()),
        "width": pa.array([32] * n, pa.int32()),
        "height": pa.array([32] * n, pa.int32()),
    }
    return pa.table(usual | columns)


def test_a_class_with_files_of_its_own_format_is_told_without_an_image():
    ends = ["png", "JPG"] * 60
    found = shortcuts.look(images(uri=[f"{n}.{end}" for n, end in enumerate(ends)]))
    assert found
    assert (found.accuracy.value, found.majority) == (1.0, 0.5)
    assert found.attribute == "format"


def test_what_two_attributes_have_in_common_is_found():
    wide = [(40, 20), (20, 40)] * 60
    found = shortcuts.look(
        images(
            width=pa.array([w * (1 + n % 3) for n, (w, _) in enumerate(wide)]),
            height=pa.array([h * (1 + n % 3) for n, (_, h) in enumerate(wide)]),
        )
    )
    assert found
    assert (found.accuracy.value, found.attribute) == (1.0, "aspect ratio")


def test_files_that_are_alike_tell_the_most_frequent_class():
    found = shortcuts.look(images(label=["cat", "cat", "dog", "dog", "dog"] * 24))
    assert found
    assert (found.accuracy.value, found.majority, found.attribute) == (0.6, 0.6, None)
    assert found.gain.value == 0
    assert not found.strong(Score(value=0.6))


def test_images_of_a_group_are_one_for_the_interval():
    ends = ["png", "jpg"] * 58 + ["jpg", "png"] * 2  # the last four are wrong
    uris = [f"{n}.{end}" for n, end in enumerate(ends)]
    alone = shortcuts.look(images(uri=uris))
    grouped = shortcuts.look(
        images(
            uri=uris, group=pa.array([None] * 80 + [f"g{n // 4}" for n in range(40)])
        )
    )
    assert alone
    assert grouped
    assert alone.accuracy.value == grouped.accuracy.value == 0.9
    assert grouped.accuracy.low == pytest.approx(0.19, abs=0.01)  # one of 10
    assert alone.accuracy.low == pytest.approx(0.77, abs=0.01)


@pytest.mark.parametrize(
    "columns",
    [
        {"split": ["train"] * 120},
        {"split": ["test"] * 120},
    ],
    ids=["no test", "nothing to learn from"],
)
def test_nothing_is_said_where_nothing_can_be_known(columns: dict):
    assert shortcuts.look(images(**columns)) is None


@pytest.mark.parametrize(
    ("best", "low", "strong"),
    [(0.9, 0.05, True), (1.0, 0.05, True), (1.0, -0.01, False), (0.4, 0.05, True)],
    ids=["most of it", "half of it", "by chance", "more than the best"],
)
def test_a_shortcut_is_strong_beside_what_the_best_head_knows(
    best: float, low: float, *, strong: bool
):
    gain = Score(value=0.25, low=low, high=0.45)
    found = TOLD.model_copy(update={"gain": gain})
    assert found.majority == 0.5
    assert found.strong(Score(value=best)) is strong


def test_what_a_few_images_tell_by_chance_is_no_shortcut():
    """Of eight test images six are told by their format, and all are one class."""
    ends = ["png", "JPG"] * 40 + ["png"] * 6 + ["JPG"] * 2
    rows = images().slice(0, 88)
    uris = pa.array([f"{n}.{end}" for n, end in enumerate(ends)])
    labels = pa.array(["cat", "dog"] * 40 + ["cat"] * 4 + ["dog"] * 4)
    few = rows.set_column(1, "uri", uris).set_column(2, "label", labels)
    found = shortcuts.look(few)
    assert found
    assert (found.accuracy.value, found.majority) == (0.75, 0.5)
    assert (found.gain.low or 0) < 0
    assert not found.strong(Score(value=0.75))


def test_what_is_said_of_it():
    assert split_findings.shortcut(TOLD) == (
        "a decision tree that sees no image, only the width, height and format of "
        "files, is right in 75.0 % [60.0, 90.0] of test (most frequent class: "
        "50.0 %), most by width"
    )


def test_a_run_looks_once_and_warns(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
):
    chance = np.random.default_rng(0)
    for label, end in (("cat", "png"), ("dog", "jpg")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for n in range(60):
            pixels = chance.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{n}.{end}")
    spec = RunSpec(
        dataset=str(tmp_path / "photos"), heads=("nearest_centroid",), controls=False
    )
    record = wiring.run(wiring.prepare(spec, store))
    assert record.split_report
    found = record.split_report.shortcut
    assert found
    assert (found.accuracy.value, found.attribute) == (1.0, "format")
    said = summary.Sentence(f"shortcut: {split_findings.shortcut(found)}", "warning")
    assert said in list(summary.of_run(record))
    page = (store.root / "reports" / "photos" / "latest.html").read_text()
    assert '<div class="box warn"><b>Shortcut.</b> A decision tree' in page

    monkeypatch.setattr(shortcuts, "look", lambda _: pytest.fail("looked again"))
    again = wiring.run(wiring.prepare(spec, store))
    assert again.split_report
    assert again.split_report.shortcut == found

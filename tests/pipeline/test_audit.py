"""Near duplicates and groups through a whole run: found, reported, kept together."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tl_pipeline import query
from tl_pipeline.config.specs import RunSpec
from tl_pipeline.errors import DatasetError
from tl_pipeline.pipeline import wiring
from tl_pipeline.runs import controls
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.tables import MANIFEST, NEAR_DUPLICATES


def saved(image: Image.Image, quality: int) -> bytes:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return data.getvalue()


def pattern(seed: int, tint: int) -> Image.Image:
    """Blots that no other seed gives, in the tint of their class."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 6), np.uint8)
    image = Image.fromarray(small).resize((48, 48), Image.Resampling.BICUBIC)
    return Image.blend(image, Image.new("L", image.size, tint), 0.3).convert("RGB")


CLASSES = {"dark": 0, "grey": 128, "light": 255}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Official splits; two test photos were saved once more among train's."""
    root = tmp_path / "photos"
    for number, (label, tint) in enumerate(CLASSES.items()):
        for split, count in (("train", 40), ("test", 12)):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                seed = 10_000 * number + 1_000 * (split == "test") + i
                file = root / split / label / f"{i:03d}.jpg"
                file.write_bytes(saved(pattern(seed, tint), 95))
    for i in (0, 1):
        copy = saved(pattern(1_000 + i, CLASSES["dark"]), 80)
        (root / "train" / "dark" / f"again{i}.jpg").write_bytes(copy)
    return root


def run(tmp_path: Path, entry: dict[str, Any], **spec: Any) -> tuple[Store, RunRecord]:
    catalog = tmp_path / "data_catalog.yaml"
    lines = "".join(f"    {name}: {value}\n" for name, value in entry.items())
    catalog.write_text(f"version: 1\ndatasets:\n  photos:\n{lines}")
    store = Store.open(tmp_path / "store")
    wanted = {"dataset": "photos", "heads": ["logistic:C=0.1"], **spec}
    work = wiring.prepare(RunSpec.model_validate(wanted), store, catalog_file=catalog)
    return store, wiring.run(work)


def rows(store: Store, record: RunRecord) -> list[dict[str, Any]]:
    folder = store.root / "manifests" / record.manifest
    return tables.read(MANIFEST, folder).to_pylist()


def folder(photos: Path, **more: str) -> dict[str, Any]:
    return {"type": "image_folder", "path": photos, **more}


def test_copies_saved_anew_are_reported_as_leakage(photos: Path, tmp_path: Path):
    store, record = run(tmp_path, folder(photos))
    assert record.split_report is not None
    near = record.split_report.near_duplicates
    assert near is not None
    assert near.leaks
    assert (near.pairs, near.clusters, near.images) == (2, 2, 4)
    assert set(near.across) <= {"train/test", "validation/test"}
    assert sum(near.across.values()) == 2
    pairs = query.ask(store, "SELECT * FROM near_duplicates").to_pylist()
    names = {row["image_id"]: row["uri"] for row in rows(store, record)}
    assert {
        frozenset(Path(names[row[side]]).name for side in ("image_id", "near_id"))
        for row in pairs
    } == {frozenset({"000.jpg", "again0.jpg"}), frozenset({"001.jpg", "again1.jpg"})}
    # without groups there is no control that is split image by image
    assert record.split_report.leakage is None
    assert "shuffle" not in {step.stage for step in record.steps}


def test_kept_together_they_leave_the_official_test_split_as_it_is(
    photos: Path, tmp_path: Path
):
    _, before = run(tmp_path, folder(photos), controls=False)
    store, record = run(
        tmp_path, folder(photos, near_duplicates="keep_together"), controls=False
    )
    sides = {row["uri"]: row["split"] for row in rows(store, record)}
    for copy in ("again0.jpg", "again1.jpg"):
        assert sides[str(photos / "train" / "dark" / copy)] == "excluded"
    tested = list(sides.values()).count("test")
    assert before.split_report is not None
    assert tested == before.split_report.splits["test"].images == 36
    assert record.split_report is not None
    near = record.split_report.near_duplicates
    assert near is not None
    assert (near.moved, near.excluded, near.leaks) == (2, 2, False)
    trained = next(s for s in record.steps if s.stage == "train")
    assert not trained.cached


def test_ignored_they_are_not_looked_for(photos: Path, tmp_path: Path):
    entry = folder(photos, near_duplicates="ignore")
    store, record = run(tmp_path, entry, controls=False)
    assert "audit" not in {step.stage for step in record.steps}
    assert record.split_report is not None
    assert record.split_report.near_duplicates is None
    assert query.ask(store, "FROM near_duplicates").num_rows == 0


def test_too_many_images_are_not_compared_and_that_is_said(
    photos: Path, tmp_path: Path
):
    entry = folder(photos, near_duplicates="{most_images: 9}")
    store, record = run(tmp_path, entry, controls=False)
    (said,) = [s.reason for s in record.steps if s.stage == "audit"]
    assert said == (
        "not looked for: 158 images are more than near_duplicates.most_images = 9"
    )
    assert not (
        store.root / "manifests" / record.manifest / NEAR_DUPLICATES.file
    ).exists()
    wish = "{action: keep_together, most_images: 9}"
    with pytest.raises(DatasetError, match="cannot be kept together"):
        run(tmp_path, folder(photos, near_duplicates=wish))


def test_the_encoder_that_compares_may_be_named(photos: Path, tmp_path: Path):
    wish = '{backbone: "lenet5:layer=f6"}'
    _, record = run(tmp_path, folder(photos, near_duplicates=wish), controls=False)
    assert record.split_report is not None
    assert record.split_report.near_duplicates is not None
    assert record.split_report.near_duplicates.encoder == "lenet5/f6 LETTERS"
    embedded = [s.subject for s in record.steps if s.stage == "embed"]
    assert embedded == ["lenet5/c5 LETTERS", "lenet5/f6 LETTERS"]


def test_groups_bring_a_control_that_is_split_image_by_image(
    photos: Path, tmp_path: Path
):
    """Each group is one pattern, saved at several qualities: twins, if parted."""
    table = tmp_path / "listed.csv"
    with table.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["image", "label", "group"])
        for group in range(60):
            label = list(CLASSES)[group % 3]
            for twin in range(4):
                file = photos / f"{group}-{twin}.jpg"
                image = pattern(50_000 + group, 128)  # nothing tells the classes apart
                file.write_bytes(saved(image, 80 + 4 * twin))
                writer.writerow([file, label, group])
    entry = {
        "type": "table",
        "path": table,
        "root": photos,
        "group_column": "group",
        "near_duplicates": "ignore",
    }
    _, record = run(tmp_path, entry)
    assert [s.stage for s in record.steps].count("shuffle") == 1
    control = [r for r in record.results if "split image by image" in r.encoder]
    assert [r.role for r in control] == ["control"]
    assert record.split_report is not None
    found = record.split_report.leakage
    assert found is not None
    assert found.by_image.value == control[0].held_out.value
    assert found.by_image.value > found.by_group.value + 0.25
    assert abs(found.by_group.value - found.test.value) < 0.25
    assert "split image by image" not in record.best.encoder
    assert controls.leakage(record.results) == found

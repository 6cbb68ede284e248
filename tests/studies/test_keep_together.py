"""Near duplicates that are kept together are so for studies as they are for runs."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tl_pipeline.config.specs import EncoderSpec, HeadSpec, RunSpec
from tl_pipeline.pipeline import wiring, work
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.tables import MANIFEST
from tl_pipeline.studies import few_shots, ranking
from tl_pipeline.studies.study import Study, prepare

LETTERS = EncoderSpec.parse("lenet5")
TINTS = {"dark": 0, "grey": 128, "light": 255}
COPIES = 12


def saved(seed: int, tint: int, quality: int) -> bytes:
    """Blots that no other seed gives, in the tint of their class."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6), np.uint8)
    image = Image.fromarray(small).resize((48, 48), Image.Resampling.BICUBIC)
    tinted = Image.blend(image, Image.new("L", image.size, tint), 0.3)
    data = io.BytesIO()
    tinted.convert("RGB").save(data, "JPEG", quality=quality)
    return data.getvalue()


@pytest.fixture
def catalog_file(tmp_path: Path) -> Path:
    """Forty images of each class, of which twelve of "dark" were saved twice."""
    for number, (label, tint) in enumerate(TINTS.items()):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(40):
            place = tmp_path / "photos" / label
            seed = 1000 * number + i
            (place / f"{i}.jpg").write_bytes(saved(seed, tint, 95))
            if label == "dark" and i < COPIES:
                (place / f"{i}-again.jpg").write_bytes(saved(seed, tint, 85))
    file = tmp_path / "catalog.yaml"
    file.write_text(
        "version: 1\ndatasets:\n  photos:\n    type: image_folder\n"
        f"    path: {tmp_path / 'photos'}\n    near_duplicates: keep_together\n"
    )
    return file


def study(store: Store, catalog_file: Path) -> Study:
    return prepare(
        "photos", [LETTERS], store, catalog_file=catalog_file, seed=0, verify=False
    )


def test_studies_have_the_splits_of_a_run(store: Store, catalog_file: Path):
    spec = RunSpec(
        dataset="photos", backbones=(LETTERS,), heads=("logistic:C=1",), controls=False
    )
    record = wiring.run(wiring.prepare(spec, store, catalog_file=catalog_file))
    rows = tables.read(MANIFEST, store.root / "manifests" / record.manifest)
    sides = rows["split"].to_pylist()
    manifest = study(store, catalog_file).ingested()
    assert manifest.key == record.manifest
    sample = ranking.draw(manifest, 1000)
    ranked = ranking.rank(study(store, catalog_file), [work_encoder(store)], sample)
    assert ranked.trained == sides.count("train")
    assert ranked.grouped
    shown = few_shots.few_shots(
        study(store, catalog_file), [HeadSpec.parse("logistic:C=1")], [2], 2
    )
    assert shown.validation == sides.count("validation")


def work_encoder(store: Store):
    (encoder,) = work.resolve([LETTERS], store)
    return encoder


def test_the_copies_stand_on_one_side(store: Store, catalog_file: Path):
    manifest = study(store, catalog_file).ingested()
    assert len(manifest.clusters) == 2 * COPIES
    sides: dict[str, set[str]] = {}
    for row in manifest.table.to_pylist():
        if cluster := manifest.clusters.get(row["image_id"]):
            sides.setdefault(cluster, set()).add(row["split"])
    assert len(sides) == COPIES
    assert all(len(found) == 1 for found in sides.values())

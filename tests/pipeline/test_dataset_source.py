"""A dataset's name stands for one folder in a store."""

from pathlib import Path
from typing import Any

import pytest

from tests.runs.made import record
from tl_pipeline.config.datasets import ImageFolderSpec
from tl_pipeline.config.specs import RunSpec
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.pipeline import wiring, work
from tl_pipeline.runs import records
from tl_pipeline.store.artifacts import Store

FIRST = "20260101T000000000-000001"


def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of one base name."""
    found = (tmp_path / "a" / "photos", tmp_path / "b" / "photos")
    for folder in found:
        (folder / "cat").mkdir(parents=True)
    return found


def prepare(store: Store, dataset: Path | str, catalog: Path | None = None) -> str:
    spec = RunSpec(dataset=str(dataset), controls=False)
    return wiring.prepare(spec, store, catalog_file=catalog).dataset.name


@pytest.mark.parametrize("older", [False, True])
def test_another_folder_of_a_known_name_is_refused(
    store: Store, tmp_path: Path, *, older: bool
):
    one, other = folders(tmp_path)
    told: dict[str, Any] = (
        {"spec": RunSpec(dataset=str(one))} if older else {"source": str(one)}
    )
    records.write(store, record(FIRST, **told))
    with pytest.raises(InvalidSpec) as said:
        prepare(store, other)
    text = str(said.value)
    assert str(one) in text
    assert str(other) in text
    assert "data_catalog.yaml" in text
    assert prepare(store, one) == "photos"


def test_the_same_folder_is_known_however_it_is_written(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    one, other = folders(tmp_path)
    records.write(store, record(FIRST, source=str(one)))
    monkeypatch.chdir(one.parent)
    (tmp_path / "photos").symlink_to(one)
    for written in ("photos", "./photos", "../a/photos", tmp_path / "photos"):
        assert prepare(store, written) == "photos"
    monkeypatch.chdir(other.parent)
    with pytest.raises(InvalidSpec, match="share one champion"):
        prepare(store, "photos")


def test_a_folder_that_was_moved_keeps_its_name(store: Store, tmp_path: Path):
    one, other = folders(tmp_path)
    records.write(store, record(FIRST, source=str(one)))
    (one / "cat").rmdir()
    one.rmdir()
    assert prepare(store, other) == "photos"


def test_an_entry_of_the_catalogue_is_the_cure(store: Store, tmp_path: Path):
    one, other = folders(tmp_path)
    records.write(store, record(FIRST, source=str(one)))
    file = tmp_path / "data_catalog.yaml"
    file.write_text(
        f"version: 1\ndatasets:\n  pets: {{type: image_folder, path: {other}}}\n"
    )
    assert prepare(store, "pets", file) == "pets"


def test_a_source_is_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one, _ = folders(tmp_path)
    monkeypatch.chdir(one.parent)
    assert work.source(ImageFolderSpec(name="x", path=Path("photos"))) == str(one)

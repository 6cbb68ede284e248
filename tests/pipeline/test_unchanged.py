"""A source of few files that did not change is not listed again; one that did, is."""

import os
import tarfile
import time
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tl_pipeline.config.datasets import ArchiveSpec, FeaturesSpec, WebDatasetSpec
from tl_pipeline.config.split_specs import SplitSpec
from tl_pipeline.pipeline.stages.ingest import Ingest
from tl_pipeline.runs.planning import Workspace
from tl_pipeline.sources.archive import Archive
from tl_pipeline.sources.features import Features
from tl_pipeline.sources.webdataset import WebDataset
from tl_pipeline.store.artifacts import Store

ROWS = 60


def aged(file: Path, seconds: float = 60) -> Path:
    """``file``, last written so long ago."""
    then = time.time() - seconds
    os.utime(file, (then, then))
    return file


def vectors(file: Path, *, first: str = "a") -> Path:
    """60 vectors of two classes in ``file``, the class of the first given."""
    rng, labels = np.random.default_rng(0), np.array([first, "b", "a"] * (ROWS // 3))
    np.savez(file, X=rng.normal(size=(ROWS, 4)), y=labels)
    return aged(file)


@pytest.fixture
def features(tmp_path: Path) -> FeaturesSpec:
    return FeaturesSpec(
        name="vectors",
        type="features",
        train=vectors(tmp_path / "v.npz"),
        features="X",
        labels="y",
    )


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources that were listed, one by one."""
    found: list[str] = []
    for kind in (Archive, Features, WebDataset):
        entries: Any = kind.entries

        def noted(self: Any, entries: Any = entries, name: str = kind.__name__) -> Any:
            found.append(name)
            return entries(self)

        monkeypatch.setattr(kind, "entries", noted)
    return found


def ingested(store: Store, dataset: Any, **how: Any) -> Any:
    """What ingest makes of ``dataset``, as a run of its own would."""
    stage = Ingest(Workspace(store), dataset, **how)
    step = stage.run().step
    rows = stage.scan.manifest
    return step.keys["manifest"], step.cached, rows, stage.scan.notes


def test_vectors_are_listed_once_and_the_manifest_is_the_same(
    store: Store, features: FeaturesSpec, listings: list[str]
):
    key, cached, rows, notes = ingested(store, features)
    assert not cached
    again = ingested(store, features)
    planned = Ingest(Workspace(store), features).plan().step
    assert listings == ["Features"]
    assert (again[0], again[1], again[3]) == (key, True, notes)
    assert again[2].equals(rows)
    assert (planned.keys["manifest"], planned.cached) == (key, True)
    assert planned.reason == "60 images of 2 classes " + str(
        f"(train {_count(rows, 'train')}, validation {_count(rows, 'validation')}, "
        f"test {_count(rows, 'test')})"
    )


def _count(rows: Any, split: str) -> int:
    return rows["split"].to_pylist().count(split)


@pytest.mark.parametrize("change", ["rows", "verify", "entry", "lost manifest"])
def test_it_is_listed_again_where_something_may_differ(
    store: Store, features: FeaturesSpec, listings: list[str], change: str
):
    key, _, rows, _ = ingested(store, features)
    verify = change == "verify"
    if change == "rows":
        vectors(features.train, first="b")
        aged(features.train, 30)
    if change == "entry":
        split = SplitSpec(strategy="stable", seed=1)
        features = features.model_copy(update={"split": split})
    if change == "lost manifest":
        (store.root / "manifests" / key / "manifest.parquet").unlink()
    now, _, found, _ = ingested(store, features, verify=verify)
    assert listings == ["Features"] * 2
    assert (now == key) == (change in {"verify", "lost manifest"})
    labels = [
        rows["label"].to_pylist().count("a"),
        found["label"].to_pylist().count("a"),
    ]
    assert labels == [40, 20 if change == "rows" else 40]


def test_corrected_labels_are_read_again(
    store: Store, features: FeaturesSpec, listings: list[str], tmp_path: Path
):
    file = tmp_path / "corrected.csv"
    file.write_text(f"uri,label\n{features.train}#0,b\n")
    features = features.model_copy(update={"relabel": file})
    assert ingested(store, features)[2]["label"].to_pylist().count("a") == 39
    assert ingested(store, features)[2]["label"].to_pylist().count("a") == 39
    assert listings == ["Features"]
    file.write_text(f"uri,label\n{features.train}#0,b\n{features.train}#2,b\n")
    assert ingested(store, features)[2]["label"].to_pylist().count("a") == 38
    assert listings == ["Features"] * 2


@pytest.mark.parametrize("verify", [False, True])
def test_what_changed_while_it_was_scanned_is_listed_again(
    store: Store,
    features: FeaturesSpec,
    listings: list[str],
    monkeypatch: pytest.MonkeyPatch,
    verify: bool,
):
    read, changed = Features.read, list[Path]()

    def change_once(self: Features, uri: str) -> bytes:
        found = read(self, uri)
        if uri.endswith("#59") and not changed:
            changed.append(aged(vectors(features.train, first="b"), 30))
        return found

    monkeypatch.setattr(Features, "read", change_once)
    rows = ingested(store, features, verify=verify)[2]
    assert rows["label"].to_pylist().count("a") == 40
    assert ingested(store, features)[2]["label"].to_pylist().count("a") == 20
    assert listings == ["Features"] * 2


def test_a_file_that_was_just_written_is_not_trusted(
    store: Store, features: FeaturesSpec, listings: list[str]
):
    aged(features.train, 0)
    ingested(store, features)
    ingested(store, features)
    assert listings == ["Features"] * 2


def test_what_could_not_be_read_is_tried_again(
    store: Store,
    features: FeaturesSpec,
    listings: list[str],
    monkeypatch: pytest.MonkeyPatch,
):
    read = Features.read

    def failing(self: Features, uri: str) -> bytes:
        if uri.endswith("#7"):
            raise OSError("the disk did not answer")
        return read(self, uri)

    monkeypatch.setattr(Features, "read", failing)
    allowed = features.model_copy(update={"max_quarantined": 0.5})
    assert ingested(store, allowed)[2].num_rows == ROWS - 1
    monkeypatch.setattr(Features, "read", read)
    assert ingested(store, allowed)[2].num_rows == ROWS
    ingested(store, allowed)
    assert listings == ["Features"] * 2


def test_archives_and_shards_are_listed_when_they_change(
    store: Store, listings: list[str], tmp_path: Path
):
    zipped, shard = tmp_path / "photos.zip", tmp_path / "photos-000.tar"
    _write(zipped, shard, 20)
    archive = ArchiveSpec(name="zipped", type="archive", path=zipped)
    shards = WebDatasetSpec(
        name="shards", type="webdataset", path=tmp_path / "photos-*.tar"
    )
    for _ in range(2):
        assert ingested(store, archive)[2].num_rows == 20
        assert ingested(store, shards)[2].num_rows == 20
    assert listings == ["Archive", "WebDataset"]
    _write(zipped, shard, 22)
    assert ingested(store, archive)[2].num_rows == 22
    assert ingested(store, shards)[2].num_rows == 22
    assert listings == ["Archive", "WebDataset"] * 2
    other = tmp_path / "photos-001.tar"
    _write(tmp_path / "other.zip", other, 24)
    assert ingested(store, shards)[2].num_rows == 24
    assert listings[4:] == ["WebDataset"]


def _write(zipped: Path, shard: Path, number: int) -> None:
    """So many grey images of two classes as a zip of folders, and as a shard."""
    with zipfile.ZipFile(zipped, "w") as folder, tarfile.open(shard, "w") as tar:
        for value in range(number):
            image = BytesIO()
            Image.new("L", (8, 8), value * 10).save(image, "PNG")
            label = "ab"[value % 2]
            folder.writestr(f"{label}/{value}.png", image.getvalue())
            for name, data in (("png", image.getvalue()), ("cls", label.encode())):
                about = tarfile.TarInfo(f"{value}.{name}")
                about.size = len(data)
                tar.addfile(about, BytesIO(data))
    aged(zipped, 60 - number)
    aged(shard, 60 - number)

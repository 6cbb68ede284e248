"""What compaction does in which order: what a power cut or a listing must not see."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from tl_pipeline.maintenance import compaction
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder

KEY = "0" * 32
Done = list[tuple[str, Path | float]]


@pytest.fixture
def folder(store: Store) -> EmbeddingFolder:
    """Two small parts, and two tables of refusals."""
    made = EmbeddingFolder(store, KEY)
    made.describe("{}")
    for name in "ab":
        made.add([name * 32], np.ones((1, 4), np.float32))
        made.refuse([(name * 31 + "0", "undecodable", "")])
    return made


@pytest.fixture
def done(folder: EmbeddingFolder, monkeypatch: pytest.MonkeyPatch) -> Done:
    """What is synced, renamed, waited and removed in that folder from now on."""
    found: Done = []
    fsync, replace, unlink = os.fsync, Path.replace, Path.unlink

    def note(what: str, path: Path) -> None:
        if {folder.path, folder.about} & {path, path.parent}:
            found.append((what, path))

    def synced(handle: int) -> None:
        note("sync", Path(f"/proc/self/fd/{handle}").readlink())
        fsync(handle)

    def replaced(path: Path, target: Path) -> Path:
        note(f"rename {path.name}", Path(target))
        return replace(path, target)

    def removed(path: Path, *, missing_ok: bool = False) -> None:
        note("remove", path)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    monkeypatch.setattr(Path, "unlink", removed)
    monkeypatch.setattr(time, "sleep", lambda seconds: found.append(("wait", seconds)))
    return found


def files(folder: EmbeddingFolder) -> set[Path]:
    """Its parts, and its tables of refusals."""
    return {*folder.path.glob("*.parquet"), *folder.about.glob("*.parquet")}


def test_a_merged_file_is_on_the_disk_and_listed_before_its_sources_go(
    store: Store, folder: EmbeddingFolder, done: Done
):
    """Of parts and of refusals: bytes, name, folder, the time of a listing, removal."""
    sources = files(folder)
    assert len(sources) == 4
    compaction.compact(store, KEY)
    merged = files(folder)
    assert len(merged) == 2
    assert merged.isdisjoint(sources)
    for new in merged:
        kind = new.name.partition("-")[0]
        named = next(i for i, (_, path) in enumerate(done) if path == new)
        written = done[named][0].removeprefix("rename ")
        assert ("sync", new.parent / written) in done[:named]
        removed = [
            i
            for i, (what, path) in enumerate(done)
            if what == "remove" and isinstance(path, Path) and path.name[:4] == kind[:4]
        ]
        assert {done[i][1] for i in removed} == {
            file for file in sources if file.name.startswith(kind)
        }
        between = done[named + 1 : removed[0]]
        assert between.index(("sync", new.parent)) < between.index(("wait", 0.1))

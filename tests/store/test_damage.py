"""Damage that keeps the size of a file, and what a power cut leaves."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tl_pipeline.store import files as store_files
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.files import why
from tl_pipeline.store.keys import digest, key_document

DOCUMENT = key_document("t", 1, {"a": 1}, {"b": "c"})


def writes(folder: Path) -> None:
    (folder / "numbers.bin").write_bytes(bytes(range(256)) * 8)
    (folder / "deep").mkdir()
    (folder / "deep" / "two.txt").write_text("second")


def flip(file: Path, *, keep_time: bool = False) -> None:
    """Invert 400 bytes in the middle of ``file``."""
    stat, data = file.stat(), bytearray(file.read_bytes())
    for at in range(100, 500):
        data[at] ^= 0xFF
    file.write_bytes(data)
    if keep_time:
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("keep_time", [False, True])
def test_flipped_bytes_are_found_said_and_replaced(
    store: Store, capsys: pytest.CaptureFixture[str], keep_time: bool
):
    made = store.build("heads", DOCUMENT, writes)
    flip(store.path(made) / "numbers.bin", keep_time=keep_time)
    again = Store.open(store.root)
    assert again.find("heads", made.key) is None
    assert capsys.readouterr().err == ""
    assert again.build("heads", DOCUMENT, writes) == made
    (aside,) = (store.root / "heads").glob(".damaged-*")
    said = "a file is missing or not as provenance.json lists it"
    assert capsys.readouterr().err == (
        f"{store.path(made)}: {said}; set aside as {aside.name}\n"
    )
    assert (why(aside) or "").endswith(said)
    assert (store.path(made) / "numbers.bin").read_bytes() == bytes(range(256)) * 8


def test_a_provenance_of_the_same_size_with_another_parameter_is_found(store: Store):
    made = store.build("heads", DOCUMENT, writes)
    file = store.path(made) / "provenance.json"
    text = file.read_text()
    assert text.count('"a": 1') == 1
    file.write_text(text.replace('"a": 1', '"a": 2'))
    assert Store.open(store.root).find("heads", made.key) is None


def test_each_file_is_hashed_once_and_again_when_it_changed(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    from tl_pipeline.store import checks

    made, read = store.build("heads", DOCUMENT, writes), []

    def hashed(file: Path) -> str:
        read.append(file.name)
        return store_files.file_sha256(file)

    monkeypatch.setattr(checks, "file_sha256", hashed)
    assert Store.open(store.root).find("heads", made.key) == made
    assert read == []  # its builder hashed them
    os.utime(store.path(made) / "numbers.bin")
    for _ in range(2):
        assert Store.open(store.root).find("heads", made.key) == made
    assert sorted(read) == ["numbers.bin", "two.txt"]


def test_a_copied_store_is_hashed_once_and_planning_writes_nothing(
    store: Store, tmp_path: Path
):
    import shutil

    made = store.build("heads", DOCUMENT, writes)
    copy = Store.open(shutil.copytree(store.root, tmp_path / "copy"))
    before = sorted(copy.root.rglob("*"))
    with copy.overlay() as overlay:
        assert overlay.find("heads", made.key) == made
    assert sorted(copy.root.rglob("*")) == before
    flip(copy.path(made) / "numbers.bin")
    with copy.overlay() as overlay:
        assert overlay.find("heads", made.key) is None


# Power cuts


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """What is synced and renamed from now on, in order."""
    done: list[tuple[str, Path]] = []
    fsync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        done.append(("sync", Path(f"/proc/self/fd/{handle}").readlink()))
        fsync(handle)

    def replaced(path: Path, target: Path) -> Path:
        done.append(("rename", path))
        found = replace(path, target)
        done.append(("named", Path(target)))
        return found

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    return done


def in_order(done: list[tuple[str, Path]], written: Callable[[Path], list[Path]]):
    """Each rename came after its bytes were synced, and before its folder was."""
    renames = [number for number, (what, _) in enumerate(done) if what == "rename"]
    assert renames
    for number in renames:
        source, target = done[number][1], done[number + 1][1]
        before = {path for what, path in done[:number] if what == "sync"}
        after = {path for what, path in done[number + 2 :] if what == "sync"}
        assert set(written(source)) <= before
        assert target.parent in after


def test_an_artifact_is_on_the_disk_before_it_has_its_name_and_its_name_after(
    store: Store, order: list[tuple[str, Path]]
):
    made = store.build("heads", DOCUMENT, writes)
    names = ["numbers.bin", "deep", "deep/two.txt", "provenance.json", "."]
    in_order(order, lambda source: [source / name for name in names])
    assert ("sync", store.root) in order  # in which "heads" is new
    assert made.key == digest(DOCUMENT)


def test_a_single_file_is_on_the_disk_before_it_has_its_name(
    store: Store, order: list[tuple[str, Path]]
):
    store_files.write_atomically(store.root / "record.json", "{}")
    in_order(order, lambda source: [source])
    assert [what for what, _ in order] == ["sync", "rename", "named", "sync"]


def test_part_files_are_on_the_disk_before_they_have_their_names(
    store: Store, order: list[tuple[str, Path]]
):
    import numpy as np

    from tl_pipeline.store.embeddings import EmbeddingFolder

    folder = EmbeddingFolder(store, "0" * 32)
    folder.describe("{}")
    folder.add(["a", "b"], np.eye(2, dtype=np.float32))
    folder.refuse([("c", "undecodable", "x")])
    in_order([o for o in order if "memo" not in str(o[1])], lambda source: [source])
    assert len([path for what, path in order if what == "rename"]) == 3

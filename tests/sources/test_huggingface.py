"""Datasets of Hugging Face's library, as it saves and caches them; no network."""

import importlib
import importlib.util
import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tl_pipeline.config.datasets import HuggingFaceSpec
from tl_pipeline.data.identity import Memo, image_id
from tl_pipeline.data.scan import scan
from tl_pipeline.errors import DatasetError, InvalidSpec
from tl_pipeline.inputs.images import as_ppm
from tl_pipeline.sources.huggingface import HuggingFace
from tl_pipeline.store.artifacts import Store

needed = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="no extra 'huggingface'"
)
Images = list[tuple[bytes, str]]
HASH = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The library, with an empty cache, which must not reach for a network."""
    found = importlib.import_module("datasets")
    found.disable_progress_bars()
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    called: list[object] = []

    def connect(*whom: object, **_: object) -> None:
        called.append(whom)
        raise OSError("no network here")

    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setattr("socket.getaddrinfo", connect)
    yield found
    assert not called  # the library would have gone on without a word


def source(path: Path | None = None, **fields: Any) -> HuggingFace:
    """The source; nothing is read yet."""
    return HuggingFace(
        HuggingFaceSpec(name="x", type="huggingface", path=path, **fields)
    )


def ppm(number: int) -> bytes:
    return as_ppm(np.full((4, 5, 3), number, np.uint8))


def made(library: Any, labels: list[Any], kind: Any = None, **columns: Any) -> Any:
    """A dataset of different images; ``kind`` is the feature of the labels."""
    names = library.ClassLabel(names=["cat", "dog"])
    images = [{"bytes": ppm(n), "path": f"{n}.ppm"} for n in range(len(labels))]
    features = {"image": library.Image(), "label": kind or names}
    for name in columns:
        features[name] = library.Value("string")
    rows = {"image": images, "label": labels, **columns}
    return library.Dataset.from_dict(rows, features=library.Features(features))


def saved(folder: Path, dataset: Any) -> Path:
    dataset.save_to_disk(str(folder / "saved"))
    return folder / "saved"


def facts(found: HuggingFace) -> list[tuple[str | None, str | None, bytes]]:
    return [(e.split, e.label, found.read(e.uri)) for e in found.entries()]


# What is read


@needed
def test_two_hundred_come_back(library: Any, tmp_path: Path, two_hundred: Images):
    names = library.ClassLabel(names=["flower", "china"])
    features = library.Features({"image": library.Image(), "label": names})
    half = {}
    for split, rows in (("train", two_hundred[::2]), ("test", two_hundred[1::2])):
        columns = {
            "image": [{"bytes": data, "path": None} for data, _ in rows],
            "label": [label for _, label in rows],
        }
        half[split] = library.Dataset.from_dict(columns, features=features)
    found = source(saved(tmp_path, library.DatasetDict(half)))
    expected = {(image_id(data), label) for data, label in two_hundred}
    assert {(image_id(data), label) for _, label, data in facts(found)} == expected


@needed
def test_labels_are_names_and_minus_one_is_none(
    library: Any, tmp_path: Path, store: Store
):
    found = source(saved(tmp_path, made(library, [1, 0, -1, None])))
    assert [e.label for e in found.entries()] == ["dog", "cat", None, None]
    rows = scan(found, found._spec, Memo(store, "x")).quarantine.to_pylist()
    assert [row["reason"] for row in rows] == ["no label"] * 2


@needed
@pytest.mark.parametrize(
    ("kind", "labels", "expected"),
    [
        ("string", ["a", "", None], ["a", None, None]),
        ("int64", [7, -1, None], ["7", "-1", None]),
        ("uint8", [0, 255, None], ["0", "255", None]),
        ("bool", [True, False, None], ["True", "False", None]),
    ],
)
def test_labels_without_names_are_their_text(
    library: Any, tmp_path: Path, kind: str, labels: list[Any], expected: list[Any]
):
    found = source(saved(tmp_path, made(library, labels, library.Value(kind))))
    assert [entry.label for entry in found.entries()] == expected


@needed
def test_images_are_never_decoded(library: Any, tmp_path: Path):
    """What is no image is handed on, to be refused with the others."""
    rows = {"image": [{"bytes": b"no image", "path": None}], "label": ["a"]}
    kinds = {"image": library.Image(), "label": library.Value("string")}
    features = library.Features(kinds)
    dataset = library.Dataset.from_dict(rows, features=features)
    assert facts(source(saved(tmp_path, dataset))) == [(None, "a", b"no image")]


@needed
def test_a_column_of_plain_bytes_will_do(library: Any, tmp_path: Path):
    kinds = {"png": library.Value("binary"), "kind": library.Value("string")}
    rows = {"png": [ppm(1), ppm(2), None], "kind": ["a", "b", "c"]}
    dataset = library.Dataset.from_dict(rows, features=library.Features(kinds))
    found = source(saved(tmp_path, dataset), image_column="png", label_column="kind")
    one, two, three = found.entries()
    assert [found.read(entry.uri) for entry in (one, two)] == [ppm(1), ppm(2)]
    with pytest.raises(FileNotFoundError, match="holds no image"):
        found.read(three.uri)


@needed
def test_groups_are_those_of_their_column(library: Any, tmp_path: Path):
    folder = saved(tmp_path, made(library, [0, 1, 1], who=["x", "", None]))
    groups = [entry.group for entry in source(folder, group_column="who").entries()]
    assert groups == ["x", None, None]
    assert {entry.group for entry in source(folder).entries()} == {None}


@needed
@pytest.mark.parametrize("change", ["shuffled", "formatted", "shards"])
def test_what_was_done_to_a_dataset_changes_no_row(
    library: Any, tmp_path: Path, change: str
):
    dataset = made(library, [n % 2 for n in range(40)])
    if change == "shuffled":
        dataset = dataset.shuffle(seed=3).select(range(30))
    expected = [(ppm_of(row), ["cat", "dog"][row["label"]]) for row in raw(dataset)]
    if change == "formatted":
        dataset.set_format("numpy", columns=["label"])
    folder = tmp_path / "saved"
    dataset.save_to_disk(str(folder), num_shards=3 if change == "shards" else 1)
    found = [(data, label) for _, label, data in facts(source(folder))]
    assert found == expected


def raw(dataset: Any) -> Any:
    library = importlib.import_module("datasets")
    return dataset.cast_column("image", library.Image(decode=False))


def ppm_of(row: dict[str, Any]) -> bytes:
    return row["image"]["bytes"]


@needed
def test_any_thread_and_a_copy_read_what_was_listed(library: Any, tmp_path: Path):
    found = source(saved(tmp_path, made(library, [n % 2 for n in range(50)])))
    data = {entry.uri: found.read(entry.uri) for entry in found.entries()}
    copy = pickle.loads(pickle.dumps(found))
    shuffled = random.Random(0).sample(list(data) * 9, len(data) * 9)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(copy.read, shuffled)) == [data[u] for u in shuffled]


@needed
@pytest.mark.parametrize("place", ["all:3", "all:-1", "train:0", "all:x", "", "0"])
def test_a_row_that_is_not_there_is_an_os_error(
    library: Any, tmp_path: Path, place: str
):
    folder = saved(tmp_path, made(library, [0, 1, 1]))
    with pytest.raises(FileNotFoundError, match="no such row"):
        source(folder).read(f"{folder}#{place}")


@needed
def test_versions_change_with_the_files(library: Any, tmp_path: Path):
    folder = saved(tmp_path, made(library, [0, 1]))
    before = list(source(folder).entries())
    assert before == list(source(folder).entries())
    (file,) = folder.glob("*.arrow")
    os.utime(file, ns=(0, 12345))
    after = list(source(folder).entries())
    assert before[0].version not in (None, after[0].version)
    assert {entry.modified_ns for entry in after} == {12345}


# Splits


@needed
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (["train"], ["train"]),
        (["train", "test"], ["train", "test"]),
        (["train", "dev"], ["train", "validation"]),
        (["train", "val", "test"], ["train", "validation", "test"]),
        (["test"], [None]),
        (["everything"], [None]),
    ],
)
def test_names_of_splits(
    library: Any, tmp_path: Path, theirs: list[str], ours: list[str | None]
):
    parts = {name: made(library, [0, 1]) for name in theirs}
    found = source(saved(tmp_path, library.DatasetDict(parts)))
    splits = list(dict.fromkeys(entry.split for entry in found.entries()))
    assert splits == ours
    places = {entry.uri.partition("#")[2] for entry in found.entries()}
    assert places == {f"{name}:{row}" for name in theirs for row in (0, 1)}


@needed
def test_unknown_splits_must_be_told(library: Any, tmp_path: Path):
    names = ("train", "unsupervised", "dev")
    parts = {name: made(library, [0, 1]) for name in names}
    folder = saved(tmp_path, library.DatasetDict(parts))
    with pytest.raises(
        DatasetError, match=r"'unsupervised' beside .*'splits: {train: "
    ):
        list(source(folder).entries())
    told = source(folder, splits={"train": "train", "validation": "dev"})
    assert [entry.split for entry in told.entries()] == ["train"] * 2 + [
        "validation"
    ] * 2
    assert {e.split for e in source(folder, splits={}).entries()} == {None}
    with pytest.raises(DatasetError, match=r"has no 'gone'.*: dev, train, unsup"):
        list(source(folder, splits={"train": "gone"}).entries())
    with pytest.raises(FileNotFoundError, match="no such row"):
        told.read(f"{folder}#unsupervised:0")


# What goes wrong


@needed
@pytest.mark.parametrize(
    "fields",
    [
        {"image_column": "picture"},
        {"label_column": "class"},
        {"group_column": "who"},
        {"image_column": "label"},
        {"label_column": "image"},
    ],
)
def test_a_wrong_column_is_told_the_others(
    library: Any, tmp_path: Path, fields: dict[str, str]
):
    folder = saved(tmp_path, made(library, [0, 1]))
    with pytest.raises(DatasetError, match=r"columns image \(.*\), label \(int64\)"):
        list(source(folder, **fields).entries())


@needed
def test_labels_that_are_fractions_or_lists_are_refused(library: Any, tmp_path: Path):
    several = library.Sequence(library.ClassLabel(names=["a", "b", "c"]))
    for number, (kind, labels, said) in enumerate(
        [
            (library.Value("float32"), [0.5, 1.5], "'label_column' one of ClassLabel"),
            (several, [[1], [2, 0]], "column 'label' holds a list of labels for each"),
        ]
    ):
        folder = saved(tmp_path / str(number), made(library, labels, kind))
        with pytest.raises(DatasetError, match=said):
            list(source(folder).entries())


@needed
def test_no_rows_are_an_empty_dataset(library: Any, tmp_path: Path):
    empty = made(library, [0, 1]).filter(lambda _: False)
    folder = tmp_path / "saved"
    empty.save_to_disk(str(folder))
    with pytest.raises(DatasetError, match="holds no rows"):
        list(source(folder).entries())


def drop_state(folder: Path) -> None:
    (folder / "state.json").unlink()


def cut_table(folder: Path) -> None:
    (file,) = folder.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:-300])


def no_table(folder: Path) -> None:
    (file,) = folder.glob("*.arrow")
    file.write_bytes(b"no table" * 100)


def cut_info(folder: Path) -> None:
    (folder / "dataset_info.json").write_text("{")


def odd_feature(folder: Path) -> None:
    info = json.loads((folder / "dataset_info.json").read_text())
    info["features"]["image"] = {"_type": "os.system"}
    (folder / "dataset_info.json").write_text(json.dumps(info))


@needed
@pytest.mark.parametrize(
    "damage", [drop_state, cut_table, no_table, cut_info, odd_feature]
)
def test_a_damaged_folder_is_named(
    library: Any, tmp_path: Path, damage: Callable[[Path], None]
):
    folder = saved(tmp_path, made(library, [0, 1]))
    damage(folder)
    with pytest.raises(DatasetError, match=rf"{folder}.*save_to_disk"):
        list(source(folder).entries())


@needed
def test_offsets_that_lead_astray_are_an_error_and_no_crash(
    library: Any, tmp_path: Path
):
    """Arrow itself believes the offsets of a file that it maps."""
    folder = saved(tmp_path, made(library, [0, 1, 1]))
    (file,) = folder.glob("*.arrow")
    data = file.read_bytes()
    size = len(ppm(0))
    good = np.array([0, size, 2 * size, 3 * size], "<i4").tobytes()
    bad = np.array([0, size, 2**30, 2**31 - 1], "<i4").tobytes()
    assert data.count(good) == 1
    file.write_bytes(data.replace(good, bad))
    with pytest.raises(DatasetError, match="is damaged"):
        list(source(folder).entries())
    with pytest.raises(OSError, match="all:2"):
        source(folder).read(f"{folder}#all:2")


@needed
@pytest.mark.usefixtures("library")
def test_a_missing_folder_is_an_error(tmp_path: Path):
    with pytest.raises(DatasetError, match="gone"):
        list(source(tmp_path / "gone").entries())


def with_paths(library: Any, folder: Path, paths: list[str]) -> Path:
    """A saved dataset whose rows name files, as none of the library's own does."""
    kinds = {"image": library.Image(decode=False), "label": library.Value("string")}
    rows = {
        "image": [{"bytes": None, "path": path} for path in paths],
        "label": ["a"] * len(paths),
    }
    dataset = library.Dataset.from_dict(rows, features=library.Features(kinds))
    table = dataset.data.table
    target = saved(folder, made(library, [0, 1]))
    (file,) = target.glob("*.arrow")
    import pyarrow as pa

    with (
        pa.OSFile(str(file), "wb") as sink,
        pa.RecordBatchStreamWriter(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    info = json.loads((target / "dataset_info.json").read_text())
    info["features"] = dataset.features.to_dict()
    (target / "dataset_info.json").write_text(json.dumps(info))
    return target


@needed
def test_a_row_reads_files_of_its_dataset_and_no_others(library: Any, tmp_path: Path):
    (tmp_path / "secret.ppm").write_bytes(ppm(9))
    paths = ["in.ppm", "../secret.ppm", f"{tmp_path}/secret.ppm", "gone.ppm"]
    folder = with_paths(library, tmp_path, [*paths, "a\0b", "https://a.test/b.ppm"])
    (folder / "in.ppm").write_bytes(ppm(3))
    found = source(folder)
    first, *others = found.entries()
    assert found.read(first.uri) == ppm(3)
    assert first.version is None  # the file may change and the table not
    for entry in others:
        with pytest.raises(OSError, match=r"outside|no such file|null"):
            found.read(entry.uri)


# The hub


def cached(library: Any, name: str, dataset: Any, revision: str = HASH) -> None:
    """The cache as load_dataset leaves it: <org>___<name>/<config>/<version>/<hash>."""
    config = library.config.HF_DATASETS_CACHE
    folder = Path(config) / name.replace("/", "___") / "default" / "0.0.0" / revision
    folder.mkdir(parents=True)
    short = name.partition("/")[2]
    infos = {}
    for split in dataset:
        import pyarrow as pa

        file = folder / f"{short}-{split}.arrow"
        table = dataset[split].data.table
        with (
            pa.OSFile(str(file), "wb") as sink,
            pa.RecordBatchStreamWriter(sink, table.schema) as writer,
        ):
            writer.write_table(table)
        infos[split] = {"name": split, "num_examples": len(table), "num_bytes": 1}
    info = {
        "features": dataset["train"].features.to_dict(),
        "builder_name": "parquet",
        "dataset_name": short,
        "config_name": "default",
        "version": {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0},
        "splits": infos,
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))


def two_parts(library: Any) -> Any:
    parts = {"train": made(library, [0, 1, 1]), "test": made(library, [1])}
    return library.DatasetDict(parts)


@needed
@pytest.mark.parametrize("download", [False, True])
def test_what_is_in_the_cache_needs_no_network(library: Any, download: bool):
    cached(library, "some/animals", two_parts(library))
    for revision in (None, HASH):
        found = source(dataset="some/animals", revision=revision, download=download)
        assert [e.split for e in found.entries()] == ["train"] * 3 + ["test"]
        assert facts(found)[1] == ("train", "dog", ppm(1))
        assert next(found.entries()).uri == "some/animals#train:0"


@needed
def test_another_revision_is_not_taken_for_the_one_asked(library: Any):
    cached(library, "some/animals", two_parts(library), revision="f" * 40)
    with pytest.raises(DatasetError, match=f"another revision than {HASH}"):
        list(source(dataset="some/animals", revision=HASH).entries())


@needed
@pytest.mark.usefixtures("library")
def test_without_download_nobody_is_called():
    with pytest.raises(DatasetError, match=r"some/animals.*'download: true'"):
        list(source(dataset="some/animals").entries())


@needed
def test_a_download_is_asked_for_and_tells_nobody(
    library: Any, monkeypatch: pytest.MonkeyPatch
):
    hub = importlib.import_module("huggingface_hub.constants")
    config = library.config
    switches = []
    before = (
        hub.HF_HUB_OFFLINE,
        config.HF_HUB_OFFLINE,
        library.logging.get_verbosity(),
    )
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)

    def load_dataset(*given: Any, **more: Any) -> Any:
        switches.append((hub.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE))
        assert (given, more) == (("some/animals", "small"), {"revision": None})
        assert hub.HF_HUB_DISABLE_TELEMETRY
        assert not config.HF_UPDATE_DOWNLOAD_COUNTS
        if config.HF_HUB_OFFLINE:
            raise ConnectionError("offline")
        return two_parts(library)

    monkeypatch.setattr(library, "load_dataset", load_dataset)
    spec = {"dataset": "some/animals", "config": "small"}
    found = source(**spec, download=True)
    assert len(list(found.entries())) == 4
    assert switches == [(True, True), (False, False)]
    with pytest.raises(DatasetError, match="offline"):
        list(HuggingFace(found._spec.offline()).entries())
    assert not hub.HF_HUB_OFFLINE
    monkeypatch.undo()
    after = (hub.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE, library.logging.get_verbosity())
    assert after == before


@needed
def test_who_works_offline_is_not_taken_online(
    library: Any, monkeypatch: pytest.MonkeyPatch
):
    """HF_HUB_OFFLINE=1 in the environment is stronger than the catalogue."""
    hub = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    switches = []

    def load_dataset(*_: object, **__: object) -> None:
        switches.append((hub.HF_HUB_OFFLINE, library.config.HF_HUB_OFFLINE))
        raise ConnectionError("offline")

    monkeypatch.setattr(library, "load_dataset", load_dataset)
    with pytest.raises(DatasetError, match="offline; the download failed"):
        list(source(dataset="some/animals", download=True).entries())
    assert switches == [(True, True), (True, True)]


@needed
def test_a_folder_of_that_name_is_not_read_instead(
    library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "some" / "animals").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    cached(library, "some/animals", two_parts(library))
    with pytest.raises(DatasetError, match="a folder here has this name"):
        list(source(dataset="some/animals").entries())


# The dataset entry


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "either 'path'"),
        ({"path": "a", "dataset": "b/c"}, "either 'path'"),
        ({"path": "a", "download": True}, "go with 'dataset'"),
        ({"path": "a", "revision": HASH}, "go with 'dataset'"),
        ({"dataset": "json"}, "match pattern"),
        ({"dataset": "../a"}, "match pattern"),
        ({"dataset": "a/b", "revision": "main"}, "match pattern"),
        ({"path": "a", "splits": {"dev": "train"}}, "'train', 'validation' or 'test'"),
        ({"path": "a", "splits": {"test": "dev"}}, "must say which is train"),
        ({"path": "a", "trust_remote_code": True}, "not permitted"),
    ],
)
def test_a_contradiction_is_refused(fields: dict[str, Any], said: str):
    with pytest.raises(ValidationError, match=said):
        HuggingFaceSpec(name="x", type="huggingface", **fields)


def test_without_the_extra_the_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InvalidSpec, match=r"pip install 'tl-pipeline\[huggingface\]'"):
        source(tmp_path)
    assert InvalidSpec.exit_code == 2


def test_the_library_is_loaded_only_when_it_is_needed():
    code = (
        "import sys, tl_pipeline.sources\n"
        "assert not {'datasets', 'huggingface_hub'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""Vectors computed elsewhere: every kind of file gives the same inputs."""

import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from tl_pipeline.config.datasets import FeaturesSpec
from tl_pipeline.data.identity import image_id
from tl_pipeline.errors import DatasetError
from tl_pipeline.inputs.images import RefusedImage
from tl_pipeline.inputs.vectors import as_npy, probe, vector
from tl_pipeline.sources.features import Features

VECTORS = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
LABELS = np.array(["ant", "bee", "cat"] * 4)
KINDS = ("npy", "npz", "parquet", "p")


def written(
    folder: Path, kind: str, vectors: Any = VECTORS, labels: Any = LABELS
) -> dict[str, Path]:
    """The fields of an entry for ``vectors``, in a file that ends in ``kind``."""
    file = folder / f"train.{kind}"
    if kind == "npy":
        np.save(file, vectors)
        np.save(folder / "y.npy", labels)
        return {"train": file, "train_labels": folder / "y.npy"}
    if kind == "npz":
        np.savez(file, features=vectors, labels=labels)
    elif kind == "parquet":
        rows = [row.reshape(-1).tolist() for row in vectors]
        pq.write_table(pa.table({"features": rows, "labels": labels.tolist()}), file)
    else:
        file.write_bytes(pickle.dumps({"features": vectors, "labels": labels}))
    return {"train": file}


def source(fields: dict[str, Any]) -> Features:
    return Features(FeaturesSpec(name="x", type="features", **fields))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_vectors_and_labels(tmp_path: Path, kind: str):
    found = source(written(tmp_path, kind))
    entries = list(found.entries())
    assert [entry.label for entry in entries] == LABELS.tolist()
    read = np.stack([vector(found.read(entry.uri)) for entry in entries])
    np.testing.assert_array_equal(read, VECTORS)
    assert [image_id(found.read(entry.uri)) for entry in entries] == [
        image_id(as_npy(row)) for row in VECTORS
    ]


@pytest.mark.parametrize("kind", ["npy", "npz", "p"])
def test_bottleneck_features_are_laid_out_and_their_labels_too(
    tmp_path: Path, kind: str
):
    fields = written(tmp_path, kind, VECTORS[:, None, None], np.arange(12)[:, None] % 3)
    found = source(fields)
    first = next(found.entries())
    assert first.label == "0"
    np.testing.assert_array_equal(vector(found.read(first.uri)), VECTORS[0])


def test_doubles_become_floats_and_what_is_not_finite_is_refused(tmp_path: Path):
    values = np.array([[1.5, 2], [np.nan, 0], [1e300, 0]])
    found = source(written(tmp_path, "npz", values, np.arange(3)))
    first, *others = (found.read(entry.uri) for entry in found.entries())
    assert vector(first).tolist() == [1.5, 2]
    for data in others:
        with pytest.raises(RefusedImage, match="not finite"):
            probe(data)


def test_the_bytes_of_a_vector_do_not_depend_on_numpy(tmp_path: Path):
    data = as_npy(np.array([1, 2], np.float32))
    assert len(data) == 128 + 8
    assert image_id(data) == "1bffa9e9237237c7b10838c66d755ddc"
    (tmp_path / "v.npy").write_bytes(data)
    assert np.load(tmp_path / "v.npy").tolist() == [1, 2]


@pytest.mark.parametrize("width", [1, 2, 9, 10, 4096])
def test_what_we_wrote_is_read_as_numpy_reads_it(width: int):
    data = as_npy(np.linspace(-1, 1, width))
    assert vector(data).tolist() == np.load(BytesIO(data)).tolist()
    assert vector(data + data[128:]).tolist() == vector(data).tolist()
    big = BytesIO()
    np.save(big, np.linspace(-1, 1, width).astype(">f4"))
    assert vector(big.getvalue()).tolist() == vector(data).tolist()
    with pytest.raises(RefusedImage, match="not a vector"):
        vector(data[:-1])


def test_splits_are_declared_as_for_pickles(tmp_path: Path):
    (tmp_path / "b").mkdir()
    fields = written(tmp_path, "p")
    second = written(tmp_path / "b", "p", VECTORS + 1)["train"]
    assert {e.split for e in source(fields).entries()} == {None}
    both = list(source({**fields, "validation": second}).entries())
    assert [e.split for e in both] == ["train"] * 12 + ["validation"] * 12


@pytest.mark.parametrize(
    ("kind", "vectors", "labels", "fault"),
    [
        ("npz", VECTORS, LABELS[:5], "12 vectors, but labels of shape"),
        ("npz", VECTORS[:, 0], LABELS, "expected numbers of shape"),
        ("npz", VECTORS.astype(str), LABELS, "expected numbers of shape"),
        ("npy", VECTORS, np.array([{}] * 12), "damaged or of another kind"),
        ("p", VECTORS.astype(object), LABELS, "refused"),
    ],
)
def test_what_are_no_vectors_with_labels_is_refused(
    tmp_path: Path, kind: str, vectors: Any, labels: Any, fault: str
):
    with pytest.raises(DatasetError, match=fault):
        list(source(written(tmp_path, kind, vectors, labels)).entries())


def test_files_of_different_lengths_are_refused(tmp_path: Path):
    (tmp_path / "b").mkdir()
    other = written(tmp_path / "b", "npz", VECTORS[:, :3])["train"]
    found = source({**written(tmp_path, "npz"), "test": other})
    with pytest.raises(DatasetError, match="of one length"):
        list(found.entries())


def test_wrong_names_and_files_are_named(tmp_path: Path):
    fields = written(tmp_path, "npz")
    with pytest.raises(DatasetError, match="found labels, features"):
        list(source({**fields, "features": "X"}).entries())
    fields = written(tmp_path, "parquet")
    with pytest.raises(DatasetError, match="found features, labels"):
        list(source({**fields, "labels": "y"}).entries())
    ragged = pa.table({"features": [[1.0], [1.0, 2.0]], "labels": [0, 1]})
    pq.write_table(ragged, fields["train"])
    with pytest.raises(DatasetError, match="1 to 2 values"):
        list(source(fields).entries())
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(DatasetError, match=r"end in \.npy"):
        list(source({"train": tmp_path / "x.csv"}).entries())
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DatasetError, match="damaged"):
        list(source({"train": tmp_path / "x.npz"}).entries())
    with pytest.raises(DatasetError, match="cannot be read"):
        list(source({"train": tmp_path / "gone.npz"}).entries())


def test_an_npy_file_needs_a_file_of_labels(tmp_path: Path):
    with pytest.raises(ValidationError, match="train_labels"):
        source({"train": tmp_path / "x.npy"})
    with pytest.raises(ValidationError, match="train_labels"):
        source({"train": tmp_path / "x.npz", "train_labels": tmp_path / "y.npy"})

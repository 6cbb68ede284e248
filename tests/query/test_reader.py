"""A store in Python: what is read is what SQL says, and faults name the choices."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tl_pipeline as tl
from tests.query.made import EVALUATION, FIRST, described, image_id, manifest, scores
from tests.runs.made import record, result
from tl_pipeline.config.specs import HeadSpec, RunSpec
from tl_pipeline.errors import InvalidSpec, TransferLearningError, WeightsError
from tl_pipeline.pipeline import wiring
from tl_pipeline.query import Reader
from tl_pipeline.runs import records
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder

A, B, C, D = map(image_id, range(4))
NAME = "lenet5/c5 same.pth"


@pytest.fixture
def reader(store: Store) -> Reader:
    """Three embedded images, one of no dataset any more, and one that was refused."""
    key = described(store, "a" * 64)
    values = np.array([[2, 0], [1, 1], [0, 3], [2, 0.1]], np.float32)
    EmbeddingFolder(store, key).add([A, B, C, image_id(9)], values)
    rows = [(A, "it's.png", "x", "test"), (B, "b.png", "y", "train")]
    rows += [(C, "c.png", "x", "train"), (D, "d.png", "x", "train")]
    manifest(store, "a" * 32, rows)
    scores(store, EVALUATION, [A], key)
    records.write(store, record(FIRST, results=[result(EVALUATION, encoder_key=key)]))
    return tl.open(str(store.root))


def test_embeddings_come_with_labels_and_without_copies(reader: Reader):
    found = reader.embeddings("photos", encoder="lenet5")
    assert (found.ids.tolist(), found.labels.tolist()) == ([A, B, C], ["x", "y", "x"])
    assert found.split.tolist() == ["test", "train", "train"]
    assert found.to_numpy().tolist() == [[2, 0], [1, 1], [0, 3]]
    assert found.vectors[found.split == "test"].tolist() == [[2, 0]]
    table = found.to_arrow()
    assert table["embedding"].to_pylist() == found.vectors.tolist()
    frame = found.to_pandas()
    assert frame.columns.tolist() == ["image_id", "uri", "label", "split", "embedding"]
    assert frame["embedding"][1].tolist() == [1, 1]
    found.to_torch()[0, 0] = 7
    assert table["embedding"][0].as_py() == [7, 0]
    assert frame["embedding"][0].tolist() == [7, 0]


def test_frames_are_the_views(reader: Reader):
    assert reader.metrics("photos")["value"].tolist() == [0.7]
    assert reader.metrics().equals(reader.sql("FROM metrics"))
    assert reader.predictions("photos")["image_id"].tolist() == [A]
    assert reader.predictions()["probabilities"][0].tolist() == pytest.approx(
        [0.9, 0.1]
    )


def test_neighbours_of_stored_images_are_those_of_sql(reader: Reader):
    """By id or by uri; itself, and what left the dataset, are no neighbours."""
    found = reader.neighbours([B, "it's.png"], k=2)
    assert found["image"].tolist() == [B, B, "it's.png", "it's.png"]
    assert found["image_id"].tolist() == [A, C, B, C]
    assert found["label"].tolist() == ["x", "x", "y", "x"]
    half = 0.5**0.5
    assert found["similarity"].tolist() == pytest.approx([half, half, half, 0])
    sql = reader.sql(f"FROM neighbours('{A}', 2, '{NAME}')")
    rows = found[2:].reset_index(drop=True)
    assert rows.drop(columns="image")[sql.columns].equals(sql)


def test_what_a_run_adds_is_seen(reader: Reader, store: Store):
    reader.neighbours([A])
    manifest(store, "b" * 32, [(A, "a.png", "x", "test"), (C, "c.png", "x", "train")])
    records.write(store, record("20260102T000000000-000002", manifest="b" * 32))
    assert reader.neighbours([A])["image_id"].tolist() == [C]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            lambda r: r.neighbours(["none.png"]),
            "none.png is no file, nor the id or uri",
        ),
        (lambda r: r.neighbours([A], k=0), "ask for 1 neighbour or more"),
        (lambda r: r.neighbours([D]), f"no embedding of image {D} by this encoder"),
        (lambda r: r.neighbours([A], encoder="lenet"), "Did you mean 'lenet5'"),
        (lambda r: r.embeddings("photo"), "no dataset photo; FROM datasets lists them"),
        (lambda r: r.sql("DROP VIEW runs"), "DROP is refused"),
    ],
)
def test_faults_name_the_choices(reader: Reader, asked, said: str):
    with pytest.raises(TransferLearningError, match=said):
        asked(reader)


def test_of_several_encoders_one_must_be_named(reader: Reader, store: Store):
    key = described(store, "b" * 64)
    EmbeddingFolder(store, key).add([A], np.ones((1, 3), np.float32))
    records.write(store, record("20260102T000000000-000002"))
    with pytest.raises(InvalidSpec, match=f"Name one of {NAME} #.*, {NAME} #{key[:6]}"):
        reader.embeddings("photos")
    assert len(reader.embeddings("photos", encoder=key)) == 1


def test_weights_that_are_gone_are_one_message(reader: Reader, tmp_path: Path):
    (tmp_path / "new.jpg").write_bytes(b"x")
    with pytest.raises(WeightsError, match="no longer at"):
        reader.embed([tmp_path / "new.jpg"])


def test_a_new_file_is_embedded_as_a_run_would(folder: Path, store: Store):
    """A copy of a stored image is that image; another is its own."""
    heads = (HeadSpec.parse("logistic:C=1"),)
    spec = RunSpec(dataset=str(folder), heads=heads, controls=False)
    wiring.run(wiring.prepare(spec, store))
    reader = tl.open(str(store.root))
    stored = reader.embeddings("photos")
    files = [str(uri) for uri in stored.uris[:3]]
    assert reader.embed(files) == pytest.approx(stored.vectors[:3], abs=1e-4)
    near = reader.neighbours([files[0]], k=3)
    assert stored.ids[0] not in near["image_id"].tolist()
    new = folder.parent / "new.jpg"
    new.write_bytes(Path(files[0]).read_bytes() + b"\0")
    (nearest, *_) = reader.neighbours([new], k=3).to_dict("records")
    assert (nearest["image_id"], nearest["uri"]) == (stored.ids[0], files[0])
    assert nearest["similarity"] == pytest.approx(1, abs=1e-5)
    new.write_text("no image")
    with pytest.raises(InvalidSpec, match=r"new\.jpg: "):
        reader.neighbours([new])


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys; before = set(sys.modules); import tl_pipeline; "
        "print(*(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.split() == [b"tl_pipeline"]

"""Images, texts, vectors: what depends on which, and that they are not mixed."""

import csv
import hashlib
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from tl_pipeline import query
from tl_pipeline.config.datasets import FeaturesSpec, TableSpec
from tl_pipeline.config.specs import EncoderSpec, HeadSpec, RunSpec
from tl_pipeline.data import overview
from tl_pipeline.data.identity import Memo
from tl_pipeline.data.scan import Scan, scan
from tl_pipeline.encoders.backbones import NON_IMAGE_ENCODERS, find_backbone
from tl_pipeline.errors import DatasetError, InvalidSpec
from tl_pipeline.inputs.images import AS_IS, RefusedImage
from tl_pipeline.inputs.modalities import MODALITIES
from tl_pipeline.inputs.vectors import as_npy
from tl_pipeline.pipeline import wiring, work
from tl_pipeline.registry import index, prediction
from tl_pipeline.runs.planning import Workspace
from tl_pipeline.sources import open_source
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.tables import MANIFEST
from tl_pipeline.studies import ranking
from tl_pipeline.studies.study import Study

TEXTS = [("one\ntext, quoted", "a"), ("ÿ other", "b"), ("", "a"), ("third", "")]


def table_of(folder: Path, ending: str) -> Path:
    file = folder / f"t.{ending}"
    if ending == "parquet":
        texts, labels = zip(*TEXTS, strict=True)
        pq.write_table(
            pa.table({"text": texts, "label": labels}), file, row_group_size=2
        )
        return file
    with file.open("w", newline="", encoding="utf-8") as opened:
        rows = csv.writer(opened)
        rows.writerow(["text", "label"])
        rows.writerows(TEXTS)
    return file


def look(spec: TableSpec | FeaturesSpec, store: Store) -> Scan:
    return scan(open_source(spec), spec, Memo(store, spec.name))


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_cells_of_text_are_inputs_by_their_content(
    tmp_path: Path, store: Store, ending: str
):
    file = table_of(tmp_path, ending)
    spec = TableSpec(name="t", type="table", path=file, text_column="text")
    found = look(spec, store)
    rows = {row["uri"]: row for row in found.manifest.to_pylist()}
    assert {uri: row["label"] for uri, row in rows.items()} == {
        f"{file}#row=0": "a",
        f"{file}#row=1": "b",
    }
    text = TEXTS[1][0].encode()
    about = rows[f"{file}#row=1"]
    assert about["image_id"] == hashlib.sha256(text).hexdigest()[:32]
    assert (about["width"], about["height"], about["bytes"]) == (None, None, len(text))
    refused = {row["uri"]: row["reason"] for row in found.quarantine.to_pylist()}
    assert refused == {f"{file}#row=2": "blank", f"{file}#row=3": "no label"}


def test_a_separator_is_of_text_files_and_not_of_parquet_beside_them(tmp_path: Path):
    files = [table_of(tmp_path, ending) for ending in ("csv", "parquet")]
    assert len({file.stem for file in files}) == 1
    path = files[0].with_suffix(".*")
    spec = TableSpec(
        name="t", type="table", path=path, text_column="text", separator=","
    )
    source = open_source(spec)
    assert [source.read(entry.uri) for entry in source.entries()] == 2 * [
        text.encode() for text, _ in TEXTS
    ]


def test_the_memo_knows_texts_and_their_column(tmp_path: Path, store: Store):
    file = tmp_path / "t.csv"
    file.write_text("text,other,label\nred,blue,a\ngreen,grey,b\n")
    old = file.stat().st_mtime_ns - 10**11
    os.utime(file, ns=(old, old))
    spec = TableSpec(name="t", type="table", path=file, text_column="text")
    entries = list(open_source(spec).entries())
    first = look(spec, store).manifest
    assert all(Memo(store, "t").get(entries))
    assert look(spec, store).manifest.equals(first)
    other = spec.model_copy(update={"text_column": "other"})
    ids = look(other, store).manifest["image_id"].to_pylist()
    assert not {*ids} & {*first["image_id"].to_pylist()}


def test_a_row_that_is_not_there_and_a_column_that_holds_no_text(tmp_path: Path):
    file = table_of(tmp_path, "csv")
    spec = TableSpec(name="t", type="table", path=file, text_column="text")
    with pytest.raises(OSError, match="no such row"):
        open_source(spec).read(f"{file}#row=4")
    numbers = tmp_path / "n.parquet"
    pq.write_table(pa.table({"text": [1, 2], "label": ["a", "b"]}), numbers)
    spec = spec.model_copy(update={"path": numbers})
    with pytest.raises(DatasetError, match="'text_column' must hold text"):
        list(open_source(spec).entries())


def test_a_table_is_of_images_or_of_texts(tmp_path: Path):
    with pytest.raises(ValidationError, match="image_column: of images"):
        TableSpec(
            name="t",
            type="table",
            path=tmp_path / "t.csv",
            text_column="text",
            image_column="image",
        )


@pytest.mark.parametrize(
    ("kind", "data", "reason"),
    [
        ("text", b"\xff\xfe", "not a text"),
        ("text", b" \n\t", "blank"),
        ("vector", b"", "not a vector"),
        ("vector", as_npy(np.array([1, np.inf], np.float32)), "not finite"),
        ("vector", as_npy(np.empty(0, np.float32)), "not a vector"),
        ("image", b"text", "not an image"),
    ],
)
def test_bytes_that_are_none_are_refused(kind: str, data: bytes, reason: str):
    with pytest.raises(RefusedImage) as caught:
        MODALITIES[kind].probe(data, AS_IS)  # pyright: ignore[reportArgumentType]
    assert caught.value.reason == reason


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """A catalogue of two classes of 30 vectors around two points."""
    chance = np.random.default_rng(0)
    labels = np.repeat([0, 1], 30)
    vectors = chance.normal(size=(60, 8)) + 3 * labels[:, None]
    np.savez(tmp_path / "x.npz", features=vectors, labels=labels)
    made = tmp_path / "data_catalog.yaml"
    made.write_text(
        "version: 1\ndatasets:\n  points:\n    type: features\n"
        f"    train: {tmp_path / 'x.npz'}\n"
    )
    return made


def test_vectors_run_through_the_stages_with_their_own_encoder(
    features: Path, store: Store, tmp_path: Path
):
    spec = RunSpec(dataset="points", heads=(HeadSpec(name="logistic"),))
    planned = wiring.prepare(spec, store, catalog_file=features)
    assert [s.subject for s in wiring.plan(planned) if s.skipped] == [
        "untrained twin of features"
    ]
    record = wiring.run(planned)
    skipped = [step for step in record.steps if step.skipped]
    assert [step.reason.partition(":")[0] for step in skipped] == ["no such control"]
    assert record.best.encoder == "features/vector as given"
    assert record.best.test.value >= 0.9
    assert record.gain is None
    # The encoder does nothing: the embedding is the vector.
    encoder = planned.heads[0][0]
    given = np.load(tmp_path / "x.npz")["features"].astype(np.float32)
    by_id = {hashlib.sha256(as_npy(row)).hexdigest()[:32]: row for row in given}
    kept = EmbeddingFolder(store, encoder.key).load(by_id)
    assert len(kept.image_ids) == 60
    for image, row in zip(kept.image_ids, kept.vectors, strict=True):
        np.testing.assert_array_equal(row, by_id[image])
    found = query.ask(store, "select count(*) n, count(height) sized from images")
    assert found.to_pylist() == [{"n": 60, "sized": 0}]
    np.save(tmp_path / "one.npy", given[0])
    model = index.load_model(store, "points")
    (said,) = prediction.predict(model, [tmp_path / "one.npy"])
    assert said.label == "0"
    again = wiring.run(wiring.prepare(spec, store, catalog_file=features))
    assert all(step.cached for step in again.steps)


@pytest.mark.usefixtures("features")
def test_vectors_are_ranked_and_looked_at(store: Store, tmp_path: Path):
    spec = FeaturesSpec(name="points", type="features", train=tmp_path / "x.npz")
    wish = EncoderSpec(backbone="features")
    encoders = work.resolve([wish], store)
    study = Study(Workspace(store), spec, encoders, seed=0)
    found = ranking.rank(study, encoders, ranking.draw(study.ingested(), 1000))
    assert found.pick.encoder == "features/vector as given"
    seen = overview.look(spec)
    assert seen.sheet is None
    assert "width" not in seen.totals
    assert seen.totals["images"] == 60


@pytest.mark.parametrize(
    ("dataset", "backbone", "said"),
    [
        ("points", "lenet5", "lenet5 takes images, but points holds vectors. Choose f"),
        ("points", "text:x", "text:x takes texts, but points holds vectors"),
        ("digits", "features", "features takes vectors, but digits holds images"),
    ],
)
def test_an_encoder_of_another_modality_is_refused_before_anything_runs(
    features: Path, tmp_path: Path, dataset: str, backbone: str, said: str
):
    with features.open("a") as catalog:
        catalog.write("  digits:\n    type: digits\n")
    nowhere = Store.open(tmp_path / "nowhere")
    spec = RunSpec(dataset=dataset, backbones=(EncoderSpec.parse(backbone),))
    with pytest.raises(InvalidSpec, match=said):
        wiring.prepare(spec, nowhere, catalog_file=features)
    assert not (tmp_path / "nowhere").exists()


def test_texts_have_no_usual_network(tmp_path: Path):
    made = tmp_path / "data_catalog.yaml"
    path = table_of(tmp_path, "csv")
    made.write_text(
        f"version: 1\ndatasets:\n  t:\n    type: table\n    path: {path}\n"
        "    text_column: text\n"
    )
    with pytest.raises(InvalidSpec, match="name a network, --backbone text:NAME"):
        wiring.prepare(
            RunSpec(dataset="t"), Store.open(tmp_path / "s"), catalog_file=made
        )


def test_manifests_of_older_versions_are_read(tmp_path: Path):
    """Sizes in pixels stood before the bytes, and were never null."""
    row = {"image_id": "0", "uri": "u", "label": "a", "split": "train"}
    sizes = {"width": 3, "height": 4, "bytes": 5}
    kinds = {name: pa.string() for name in row} | dict.fromkeys(sizes, pa.int32())
    fields = [pa.field(name, kind, nullable=False) for name, kind in kinds.items()]
    old = pa.Table.from_pylist([row | sizes], schema=pa.schema(fields))
    pq.write_table(old, tmp_path / MANIFEST.file)
    (found,) = tables.read(MANIFEST, tmp_path).to_pylist()
    rest = {"group": None, "weight": None, "declared": None}
    assert found == row | sizes | rest


@pytest.mark.parametrize("name", ["text:", "features:x", "text"])
def test_names_of_no_network(name: str):
    assert all(kind.find(name) is None for kind in NON_IMAGE_ENCODERS.values())


def test_names_with_slashes_and_colons():
    spec = EncoderSpec.parse("text:/a/b-c:weights=random:7")
    assert (spec.backbone, spec.weights) == ("text:/a/b-c", "random:7")
    assert EncoderSpec.parse(spec.short()) == spec
    assert find_backbone(spec.backbone).name == "text:b-c"

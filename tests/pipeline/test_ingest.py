"""What ingest says beside the rows: first seen, weights, classes too small."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.exhaustive import more
from tl_pipeline import query
from tl_pipeline.config.datasets import DigitsSpec, ImageFolderSpec
from tl_pipeline.config.specs import EncoderSpec, HeadSpec, RunSpec
from tl_pipeline.config.split_specs import SplitSpec
from tl_pipeline.data.splits import SPLITS, TEST, TRAIN, VALIDATION, tiny
from tl_pipeline.errors import DatasetError, InvalidSpec
from tl_pipeline.heads import fitted, fitting
from tl_pipeline.pipeline import wiring
from tl_pipeline.pipeline.manifest import Manifest
from tl_pipeline.pipeline.stages import embed, ingest
from tl_pipeline.pipeline.stages.embed import Embed
from tl_pipeline.pipeline.stages.ingest import Ingest
from tl_pipeline.pipeline.stages.train import Train
from tl_pipeline.runs.planning import Workspace
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.sources import Entry, Source
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.files import file_sha256
from tl_pipeline.store.tables import MANIFEST, QUARANTINE

LOGISTIC = HeadSpec(name="logistic", params={"C": 0.1})
MLP = HeadSpec(
    name="mlp", params={"max_epochs": 30, "hidden": 8, "learning_rate": 0.01}
)
MAJORITY = HeadSpec(name="majority")
Crops = Callable[[str, int], Any]


class Weighed(Source):
    """40 images of two classes of which ``weights`` tells some weights."""

    def __init__(self, images: list[tuple[bytes, str]], weights: dict[int, float]):
        self._images = [*images[:20], *images[100:120]]
        self._weights = weights

    def entries(self) -> Iterator[Entry]:
        for number, (_, label) in enumerate(self._images):
            split = SPLITS[max(number % 10 - 7, 0)]
            weight = self._weights.get(number)
            yield Entry(f"x/{number}", label, split=split, weight=weight)

    def read(self, uri: str) -> bytes:
        return self._images[int(uri[2:])][0]


class Trained:
    """Ingest, embed and train with weights of the given source."""

    def __init__(self, store: Store, images: Any, patch: pytest.MonkeyPatch) -> None:
        self._images, self._patch = images, patch
        spec = RunSpec(
            dataset="digits",
            backbones=(EncoderSpec(backbone="lenet5"),),
            heads=(LOGISTIC, MLP, MAJORITY),
        )
        self.work = wiring.prepare(spec, store)
        dataset = DigitsSpec(type="digits", name="weighed")
        self.work = replace(self.work, dataset=dataset)
        self.manifest: Manifest

    def __call__(self, weights: dict[int, float], head: HeadSpec = LOGISTIC) -> Any:
        """The keys of the heads, and the one head fitted."""
        source = Weighed(self._images, weights)
        for stage in (ingest, embed):
            self._patch.setattr(stage, "open_source", lambda _: source)
        encoder = self.work.heads[0][0]
        work = self.work
        self.manifest = Ingest(work.at, work.dataset).run().output
        embedding = Embed(work.at, work.dataset, self.manifest, (encoder,))
        embeddings = embedding.run().output[encoder.key]
        search, seed = work.spec.search, work.spec.seed
        training = Train(
            work.at, self.manifest, embeddings, encoder, head, search, seed
        )
        key = training.run().step.keys["fitted"]
        return key, fitted.load(work.at.store.root / "heads" / key)


@pytest.fixture
def trained(store: Store, two_hundred: Any, monkeypatch: pytest.MonkeyPatch) -> Trained:
    return Trained(store, two_hundred, monkeypatch)


# First seen


def quarantined(store: Store, manifest: str) -> dict[str, tuple[str, datetime | None]]:
    found = store.find("manifests", manifest)
    assert found is not None
    rows = tables.read(QUARANTINE, store.path(found)).to_pylist()
    return {Path(r["uri"]).name: (r["reason"], r["first_seen"]) for r in rows}


def test_first_seen_is_carried_on_while_the_reason_stays(store: Store, folder: Path):
    spec = ImageFolderSpec(name="photos", path=folder, max_quarantined=1)
    broken, odd = folder / "china" / "broken.jpg", folder / "china" / "odd.jpg"
    broken.write_bytes(b"text")
    odd.write_bytes(b"")
    began = datetime.now(UTC)
    keys = Ingest(Workspace(store), spec).run().step.keys
    first = quarantined(store, keys["manifest"])
    assert [reason for reason, _ in first.values()] == ["not an image", "empty"]
    assert all(began <= seen <= datetime.now(UTC) for _, seen in first.values())
    odd.write_bytes(b"no image either")
    (folder / "china" / "new.jpg").write_bytes(b"text")
    later = datetime.now(UTC)
    at = Workspace(store, previous={("ingest", "photos"): keys})
    step = Ingest(at, spec).run().step
    assert step.reason.startswith("other files are refused or duplicate; 3 refused: ")
    found = quarantined(store, step.keys["manifest"])
    assert found["broken.jpg"] == first["broken.jpg"]
    assert found["odd.jpg"][0] == "not an image"
    assert min(found["odd.jpg"][1], found["new.jpg"][1]) >= later


def test_first_seen_is_no_part_of_the_key(store: Store, folder: Path, tmp_path: Path):
    (folder / "china" / "broken.jpg").write_bytes(b"text")
    spec = ImageFolderSpec(name="photos", path=folder, max_quarantined=1)
    other = Store.open(tmp_path / "other")
    steps = [Ingest(Workspace(s), spec).run().step for s in (store, store, other)]
    assert len({step.keys["manifest"] for step in steps}) == 1
    assert [step.cached for step in steps] == [False, True, False]


def age(store: Store, key: str) -> None:
    """Let the manifest be one of a version that knew no weights and no times."""
    place = store.root / "manifests" / key
    provenance = json.loads((place / "provenance.json").read_text())
    for name, column in (("quarantine", "first_seen"), ("manifest", "weight")):
        file = place / f"{name}.parquet"
        pq.write_table(pq.read_table(file).drop_columns(column), file)
        facts = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        provenance["files"][file.name] = facts
    (place / "provenance.json").write_text(json.dumps(provenance))


def test_what_an_older_version_refused_has_no_time(store: Store, folder: Path):
    (folder / "china" / "broken.jpg").write_bytes(b"text")
    spec = ImageFolderSpec(name="photos", path=folder, max_quarantined=1)
    keys = Ingest(Workspace(store), spec).run().step.keys
    age(store, keys["manifest"])
    assert quarantined(store, keys["manifest"])["broken.jpg"][1] is None
    (folder / "china" / "000.jpg").rename(folder / "china" / "moved.jpg")
    at = Workspace(store, previous={("ingest", "photos"): keys})
    step = Ingest(at, spec).run().step
    assert step.reason.startswith("1 moved; 1 refused: ")
    assert quarantined(store, step.keys["manifest"])["broken.jpg"][1] is None


def test_the_catalogue_tells_weights_and_times_of_old_and_new_manifests(
    folder: Path, tmp_path: Path
):
    (folder / "china" / "broken.jpg").write_bytes(b"text")
    whole = (folder / "china" / "000.jpg").read_bytes()
    (folder / "china" / "000.jpg").write_bytes(whole[: len(whole) // 2])
    began = datetime.now(UTC)
    record = run(folder, tmp_path / "s", SplitSpec())
    store = Store.open(tmp_path / "s")
    asked = "SELECT first_seen, encoder FROM quarantine ORDER BY encoder NULLS FIRST"
    rows = query.ask(store, asked).to_pylist()
    assert [row["encoder"] is None for row in rows] == [True, False]
    seen = [row["first_seen"].replace(tzinfo=UTC) for row in rows]
    assert all(began <= moment <= datetime.now(UTC) for moment in seen)
    weights = "SELECT DISTINCT weight FROM images"
    assert query.ask(store, weights).to_pylist() == [{"weight": None}]
    age(store, record.manifest)
    query.build(store)
    old = query.ask(store, asked).to_pylist()
    assert [row["first_seen"] for row in old] == [None, rows[1]["first_seen"]]
    assert query.ask(store, weights).to_pylist() == [{"weight": None}]


# Weights


def test_weights_reach_the_manifest_and_its_fingerprint(trained: Trained):
    trained({})
    plain = trained.manifest
    trained({0: 2.5, 3: 1})
    rows = tables.read(MANIFEST, trained.work.at.store.path(trained.manifest.artifact))
    weights = dict(tables.values(rows, "uri", "weight"))
    assert {u: w for u, w in weights.items() if w is not None} == {"x/0": 2.5, "x/3": 1}
    assert trained.manifest.artifact.fingerprint != plain.artifact.fingerprint


@pytest.mark.parametrize("head", [LOGISTIC, MAJORITY, *more(MLP)], ids=lambda h: h.name)
def test_heads_learn_by_the_weights(trained: Trained, head: HeadSpec):
    """The class whose images are heavy becomes the more probable.

    Not surely so of the MLP, which stops by three images: tests/contracts show it.
    """
    keys, shares = set(), []
    for heavy in (range(20), range(20, 40)):
        key, fitted_head = trained(dict.fromkeys(heavy, 20.0), head)
        keys.add(key)
        vectors = trained_vectors(trained)
        shares.append(fitted_head.predict_proba(vectors)[:, 0].mean())
    assert len(keys | {trained({}, head)[0]}) == 3
    assert shares[0] != shares[1]
    assert head is MLP or shares[0] > shares[1] + 0.01


def trained_vectors(trained: Trained) -> Any:
    from tl_pipeline.store.embeddings import EmbeddingFolder

    rows = tables.read(MANIFEST, trained.work.at.store.path(trained.manifest.artifact))
    folder = EmbeddingFolder(trained.work.at.store, trained.work.heads[0][0].key)
    return folder.load(rows["image_id"].to_pylist())


def test_weights_that_change_nothing_train_nothing_anew(trained: Trained):
    """All 1; or some of images that are not learned from."""
    plain, _ = trained({})
    assert trained(dict.fromkeys(range(40), 1.0))[0] == plain
    assert trained({9: 0.0})[0] == plain  # test


@pytest.mark.parametrize("head", [LOGISTIC, *more(MLP, MAJORITY)], ids=lambda h: h.name)
def test_an_image_of_weight_0_is_not_learned_from(trained: Trained, head: HeadSpec):
    """Whatever it holds: another image in its place gives the very same head."""
    key, _ = trained({0: 0.0}, head)
    trained._images[0], trained._images[50] = trained._images[50], trained._images[0]
    assert trained({0: 0.0}, head)[0] == key
    trained._images[1], trained._images[51] = trained._images[51], trained._images[1]
    assert trained({0: 0.0}, head)[0] != key


def test_a_class_of_weight_0_is_no_class_to_learn(trained: Trained):
    with pytest.raises(DatasetError, match="1 classes to learn"):
        trained(dict.fromkeys(range(20), 0.0))


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), 1e39])
def test_what_is_no_weight_is_refused_with_its_uri(trained: Trained, weight: float):
    with pytest.raises(DatasetError, match=r"1 weights are no weights: .* of x/7\. A"):
        trained({7: weight})


def test_nothing_but_weights_of_0_is_refused(trained: Trained):
    with pytest.raises(DatasetError, match="all training images have weight 0"):
        trained(dict.fromkeys(range(40), 0.0))


def test_changed_weights_are_told(trained: Trained):
    trained({})
    keys = {"manifest": trained.manifest.key}
    at = replace(trained.work.at, previous={("ingest", "weighed"): keys})
    source = Weighed(trained._images, {0: 2.0, 1: 1.0})
    trained._patch.setattr(ingest, "open_source", lambda _: source)
    assert Ingest(at, trained.work.dataset).plan().step.reason == "1 weighed anew"


def test_a_head_that_cannot_take_weights_is_refused(trained: Trained):
    with pytest.raises(InvalidSpec, match="'knn' cannot take the weights"):
        trained({0: 2.0}, HeadSpec.parse("knn:k=5,temperature=0.07"))


def test_a_head_that_cannot_take_weights_is_refused_before_anything_is_read(
    tmp_path: Path,
):
    """No network is looked for and nothing is embedded: the table is not even there."""
    catalog = tmp_path / "data_catalog.yaml"
    catalog.write_text(
        "version: 1\ndatasets:\n  few:\n    type: table\n    path: gone.csv\n"
        "    image_column: file\n    label_column: label\n    weight_column: times\n"
    )
    spec = RunSpec(dataset="few", heads=(HeadSpec(name="knn"), LOGISTIC))
    with pytest.raises(
        InvalidSpec, match=r"'knn' cannot .* few .*weight_column: times"
    ):
        wiring.prepare(spec, Store.open(tmp_path / "store"), catalog_file=catalog)


def test_every_step_of_a_pipeline_gets_the_weights():
    """As if the row stood there that many times, also for the standardisation."""
    import numpy as np

    from tl_pipeline.store.embeddings import Embeddings

    chance = np.random.default_rng(0)
    vectors = chance.normal(size=(30, 4)).astype(np.float32)
    labels = np.array(["a", "b", "c"] * 10)
    weights = chance.integers(1, 4, 30).astype(float)
    twice = np.repeat(np.arange(30), weights.astype(int))
    (config,) = HeadSpec(name="logistic", params={"C": 0.1, "pca": 3}).grid()
    ids = [f"{i}" for i in range(30)]
    weighed = fitting.fit(config, 0, Embeddings("e", ids, vectors), labels, weights)
    more = Embeddings("e", [ids[i] for i in twice], vectors[twice])
    repeated = fitting.fit(config, 0, more, labels[twice])
    rows = Embeddings("e", ids, vectors)
    np.testing.assert_allclose(
        weighed.predict_proba(rows), repeated.predict_proba(rows), atol=1e-4
    )
    mean = weighed.preparation.mean
    np.testing.assert_allclose(mean, vectors[twice].mean(axis=0), atol=1e-6)


# Classes too small


def table(rows: list[tuple[str, str, float | None]]) -> pa.Table:
    columns = list(zip(*rows, strict=True))
    kinds = (pa.string(), pa.string(), pa.float32())
    arrays = [pa.array(c, k) for c, k in zip(columns, kinds, strict=True)]
    return pa.table(arrays, ["label", "split", "weight"])


def test_tiny_names_the_classes_and_the_splits_they_lack():
    full = [("full", split, None) for split in SPLITS]
    some = [*full, ("one", TRAIN, 1.0), ("two", TEST, None), ("two", TRAIN, 0.0)]
    assert tiny(table(some)) == {
        "one": (VALIDATION, TEST),
        "two": (TRAIN, VALIDATION),
    }
    assert tiny(table(full)) == {}


def run(images: Path, store: Path, split: SplitSpec) -> RunRecord:
    catalog = images.parent / "data_catalog.yaml"
    settings = split.model_dump_json()
    catalog.write_text(
        "version: 1\ndatasets:\n  photos:\n    type: image_folder\n"
        f"    path: {images}\n    split: {settings}\n"
    )
    spec = RunSpec(
        dataset="photos",
        backbones=(EncoderSpec(backbone="lenet5"),),
        heads=(LOGISTIC, MLP),
        controls=False,
    )
    return wiring.run(wiring.prepare(spec, Store.open(store), catalog_file=catalog))


@pytest.mark.parametrize("strategy", ["auto", "stratified"])
def test_classes_of_one_and_two_images_go_through_a_whole_run(
    folder: Path, tmp_path: Path, crops: Crops, strategy: Any
):
    """``auto`` draws them out of train, and that is told.

    The only image of its class is never held out of folds.
    """
    one, two = folder / "one", folder / "two"
    for place, numbers in ((one, [300]), (two, [301, 302])):
        place.mkdir()
        for number in numbers:
            crops("flower", number).save(place / f"{number}.png")
    seed = 0
    while strategy == "auto" and set(sides(folder, seed)) != {TEST, VALIDATION}:
        seed += 1
    record = run(folder, tmp_path / "s", SplitSpec(strategy=strategy, seed=seed))
    reason = record.steps[0].reason
    classes = {c for c, lacks in told(reason).items() if TRAIN in lacks}
    if strategy == "auto":
        assert classes == {"one", "two"}
    else:
        assert told(reason) == {"one": {VALIDATION, TEST}, "two": {VALIDATION}}
    manifest = pq.read_table(
        tmp_path / "s" / "manifests" / record.manifest / MANIFEST.file
    )
    assert set(tiny(manifest)) == {"one", "two"}
    told_of = tables.values(manifest, "label", "split")
    places = [(label, split) for label, split in told_of if label in classes]
    learned = {label for label, split in places if split != TEST}
    for result in record.results:
        evaluation = tmp_path / "s" / "evaluations" / result.evaluation
        rows = pq.read_table(evaluation / "predictions.parquet").to_pylist()
        unknown = [row for row in rows if row["label"] in classes]
        tested = sorted(label for label, split in places if split == TEST)
        assert sorted(row["label"] for row in unknown) == tested
        assert {row["split"] for row in unknown} <= {TEST}
        assert all(
            row["predicted"] != row["label"]
            for row in unknown
            if row["label"] not in learned
        )


def sides(folder: Path, seed: int) -> list[str]:
    """Where the images of the two tiny classes stand."""
    from tl_pipeline.data.identity import image_id
    from tl_pipeline.data.splits import assign

    files = [*(folder / "one").iterdir(), *(folder / "two").iterdir()]
    columns = {
        "image_id": [image_id(file.read_bytes()) for file in files],
        "label": [file.parent.name for file in files],
        "group": pa.nulls(3, pa.string()),
        "split": pa.nulls(3, pa.string()),
    }
    return assign(pa.table(columns), SplitSpec(seed=seed)).to_pylist()


def told(reason: str) -> dict[str, set[str]]:
    """``too small for all splits: a (no train, test), b (no test)`` as a mapping."""
    _, _, listed = reason.partition("too small for all splits: ")
    parts = [part.partition(" (no ") for part in listed.rstrip(")").split("), ")]
    return {name: set(lacks.split(", ")) for name, _, lacks in parts if name}

"""The page of a run, as a browser would read it."""

import base64
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
import pytest
from PIL import Image
from sklearn.metrics import precision_recall_fscore_support

from tl_pipeline import report
from tl_pipeline.config import catalog
from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.config.specs import HeadSpec, RunSpec
from tl_pipeline.evaluation.choice import Comparison
from tl_pipeline.pipeline import wiring
from tl_pipeline.query import catalogue
from tl_pipeline.report import class_table, page, score_table
from tl_pipeline.report.tested import read
from tl_pipeline.runs import records
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.score import Score
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.tables import CLASS_SCORES, MANIFEST, PREDICTIONS

CLASSES = ("\"><script>alert('x')", "größe & <b>", "n" * 200)


class Element(NamedTuple):
    """A start tag."""

    tag: str
    attributes: dict[str, str]


class Parsed(HTMLParser):
    """The start tags of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data):
        self.texts.append(data)

    def of(self, tag: str, of_class: str = "") -> list[dict[str, str]]:
        return [
            e.attributes
            for e in self.elements
            if e.tag == tag
            and (not of_class or of_class in e.attributes.get("class", "").split())
        ]


class Made(NamedTuple):
    """A finished run, and the folder of its images."""

    store: Store
    record: RunRecord
    dataset: DatasetSpec
    root: Path


def noise(root: Path) -> None:
    """Classes that are little more than noise, so that there are errors."""
    chance = np.random.default_rng(5)
    for shade, label in enumerate(CLASSES):
        (root / label).mkdir(parents=True)
        for number in range(30):
            pixels = chance.integers(0, 200, (24, 30, 3)) + 8 * shade
            Image.fromarray(pixels.astype(np.uint8)).save(
                root / label / f"{number}.png"
            )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """A finished run."""
    place = tmp_path_factory.mktemp("made")
    noise(place / "noise")
    store = Store.open(place / "store")
    store.create()
    spec = RunSpec(
        dataset=str(place / "noise"),
        heads=(HeadSpec.parse("logistic:C=0.1"),),
        controls=False,
    )
    record = wiring.run(wiring.prepare(spec, store))
    return Made(store, record, catalog.find(spec.dataset), place / "noise")


@pytest.fixture(scope="module")
def text(made: Made) -> str:
    return report.render(made.store, made.record, made.dataset)


@pytest.fixture(scope="module")
def parsed(text: str) -> Parsed:
    return Parsed(text)


@pytest.fixture(scope="module")
def tested(made: Made) -> list[dict]:
    folder = made.store.path(Artifact("evaluations", made.record.best.evaluation, ""))
    rows = tables.read(PREDICTIONS, folder)
    return rows.filter(pc.equal(rows["split"], "test")).to_pylist()


def test_doubtful_labels_are_the_first_that_sql_lists(made: Made, parsed: Parsed):
    asked = "SELECT image_id, label, suggested FROM label_issues('noise')"
    queue = catalogue.ask(made.store, asked).to_pylist()
    shown = [figure["data-image"] for figure in parsed.of("figure", "doubt")]
    assert shown == [row["image_id"] for row in queue[:12]]
    assert len(shown) == 12


def test_the_first_error_is_the_most_confident_beside_its_nearest_image(
    made: Made, parsed: Parsed, tested: list[dict]
):
    wrong = [row for row in tested if row["label"] != row["predicted"]]
    assert wrong
    first = min(wrong, key=lambda row: (-row["confidence"], row["image_id"]))
    shown = parsed.of("figure", "error")
    assert len(shown) == len(wrong)
    assert shown[0]["data-image"] == first["image_id"]

    manifest = tables.read(
        MANIFEST, made.store.path(Artifact("manifests", made.record.manifest, ""))
    ).to_pylist()
    learned = [row["image_id"] for row in manifest if row["split"] != "test"]
    folder = EmbeddingFolder(made.store, made.record.best.encoder_key)
    mine, theirs = folder.load([first["image_id"]]), folder.load(learned)
    lengths = np.linalg.norm(theirs.vectors, axis=1)
    cosines = theirs.vectors @ mine.vectors[0] / lengths
    assert shown[0]["data-neighbour"] == theirs.image_ids[int(cosines.argmax())]


def test_the_matrix_has_the_counts(parsed: Parsed, tested: list[dict], text: str):
    names = json.loads(
        re.search(r'id="class-names">(.*?)</script>', text, re.DOTALL)[1]
    )
    cells = [one for one in parsed.of("rect") if "data-cell" in one]
    found = Counter()
    for cell in cells:
        label, predicted = map(int, cell["data-cell"].split())
        found[names[label], names[predicted]] = int(cell["data-n"])
    assert found == Counter((row["label"], row["predicted"]) for row in tested)


def test_classes_have_their_scores_the_worst_first(made: Made, tested: list[dict]):
    """The same numbers where an older version left no table of them."""
    wanted = precision_recall_fscore_support(
        [row["label"] for row in tested],
        [row["predicted"] for row in tested],
        labels=sorted(CLASSES),
        zero_division=0,
    )
    predicted = read(made.store, made.record.best.evaluation)
    arguments = made.record.best.evaluation, predicted, made.record.split_report
    found = class_table.table(made.store, *arguments)
    by_label = {row.label: row for row in found.rows}
    assert set(by_label) == set(CLASSES)
    for label, precision, recall, f1, images in zip(
        sorted(CLASSES), *wanted, strict=True
    ):
        row = by_label[label]
        assert row.scores["f1"].value == pytest.approx(f1)
        assert row.scores["recall"].value == pytest.approx(recall)
        if "precision" in row.scores:
            assert row.scores["precision"].value == pytest.approx(precision)
        assert row.images["test"] == images
        assert sum(row.images.values()) == 30
    f1s = [row.scores["f1"].value for row in found.rows]
    assert f1s == sorted(f1s)

    worst = found.rows[0]
    wrong = Counter(
        row["predicted"]
        for row in tested
        if row["label"] == worst.label != row["predicted"]
    )
    assert worst.taken_for
    assert worst.taken_for[1] == wrong[worst.taken_for[0]] == max(wrong.values())

    key = made.record.best.evaluation
    stored = made.store.path(Artifact("evaluations", key, key)) / CLASS_SCORES.file
    away = stored.rename(made.root.parent / "away.parquet")
    try:
        older = class_table.table(made.store, *arguments)
    finally:
        away.rename(stored)
    for row, other in zip(found.rows, older.rows, strict=True):
        assert row.label == other.label
        for metric, score in row.scores.items():
            assert other.scores[metric].model_dump() == pytest.approx(
                score.model_dump()
            )


def test_scores_are_those_of_the_table(made: Made, parsed: Parsed):
    found = score_table.table(made.store, made.record.best.evaluation)
    assert found.splits == ["test", "folds", "train"]
    by_name = {row.name: row.scores for row in found.rows}
    best = made.record.best
    assert by_name["accuracy"] == by_name["accuracy"] | {
        "test": best.test,
        "folds": best.folds,
    }
    assert {"balanced accuracy", "macro f1", "log loss", "ece"} <= set(by_name)
    assert f"{by_name['log loss']['train'].value:.3f}" in parsed.texts


def test_candidates_have_their_cost_and_whether_they_tie(made: Made):
    best = made.record.best.model_copy(update={"milliseconds": 1.25, "bytes": 2048})
    compared = Comparison(
        evaluation=best.evaluation,
        against="another",
        metric="accuracy",
        difference=Score(value=-0.02, low=-0.05, high=0.01),
        images=72,
        won=3,
        lost=4,
        p=0.4,
        p_holm=0.8,
    )
    record = made.record.model_copy(
        update={"results": [best], "comparisons": [compared]}
    )
    text = report.render(made.store, record, made.dataset)
    assert "1.25 ms, 2.0 kB for each image" in text
    (tie,) = (
        one
        for one in Parsed(text).of("span", "tag")
        if "-0.020" in one.get("title", "")
    )
    assert (
        "95 % interval -0.050 to +0.010; p 0.4, among all comparisons 0.8"
        in tie["title"]
    )


def test_thumbnails_are_the_images_of_the_source(parsed: Parsed, made: Made):
    pictures = [one for one in parsed.of("img") if one["src"].startswith("data:")]
    assert pictures
    for picture in pictures[:4]:
        assert (picture["width"], picture["height"]) == ("112", "90")
        data = base64.b64decode(picture["src"].split(",", 1)[1])
        shown = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float)
        file = Path(picture["alt"].split(": ", 1)[1])
        source = np.asarray(Image.open(made.root / file), float)
        assert abs(shown.mean() - source.mean()) < 3


def test_nothing_is_asked_for_and_names_are_only_text(parsed: Parsed, text: str):
    for element in parsed.elements:
        for name, value in element.attributes.items():
            if name in {"src", "href"}:
                assert value.startswith(("data:image/webp;base64,", "#"))
            assert not name.startswith("on")
    assert "url(" not in text
    assert "@import" not in text
    assert "//" not in re.sub(r"base64,[^\"]*", "", text).replace("file://", "")
    assert "<script>alert" not in text
    assert len(parsed.of("script")) == 3
    assert any(CLASSES[0] in one for one in parsed.texts)


def test_the_verdict_comes_first_and_says_what_to_do_next(parsed: Parsed, made: Made):
    said = re.sub(r"\s+", " ", "".join(parsed.texts))
    share = f"{100 * made.record.best.test.value:.1f} %"
    first = f"logistic(C=0.1) on lenet5 is the best: right in {share} of "
    assert first in said
    assert "version 1 is the champion: the first model of this dataset." in said
    assert said.index(first) < said.index("What was compared")
    assert "Next: label more test images" in said


def test_a_source_that_is_gone_shows_why_and_the_next_run_tries_again(
    made: Made, parsed: Parsed
):
    away = made.root.rename(made.root.with_name("away"))
    try:
        text = report.render(made.store, made.record, made.dataset)
    finally:
        away.rename(made.root)
    assert "no picture: unreadable: " in text
    assert 'name="content-key" content=""' in text
    gaps = Parsed(text)
    assert not gaps.of("img")
    assert [one["data-image"] for one in gaps.of("figure", "error")] == [
        one["data-image"] for one in parsed.of("figure", "error")
    ]


def test_embeddings_that_are_gone_leave_the_rest_of_the_page(
    made: Made, tmp_path: Path
):
    copy = tmp_path / "store"
    shutil.copytree(made.store.root, copy)
    for part in (copy / "embeddings").glob("*/*.parquet"):
        part.write_bytes(b"no Parquet")
    text = report.render(Store.open(copy), made.record, made.dataset)
    parsed = Parsed(text)
    assert parsed.of("rect")
    assert all("data-neighbour" not in one for one in parsed.of("figure", "error"))


def test_a_page_that_shows_the_same_is_not_written_again(made: Made):
    folder = made.store.root / "reports" / made.record.dataset
    before = sorted(folder.iterdir())
    assert [file.name for file in before] == [
        f"{made.record.run_id}.html",
        "latest.html",
    ]
    again = made.record.model_copy(
        update={"run_id": records.new_run_id(), "steps": made.record.steps[:1]}
    )
    report.write(made.store, again, made.dataset)
    assert report.path(made.store, again) == folder / "latest.html"
    assert sorted(folder.iterdir()) == before

    promoted = made.record.registered.model_copy(update={"champion": False})
    other = again.model_copy(update={"registered": promoted})
    report.write(made.store, other, made.dataset)
    assert report.path(made.store, other).stem == other.run_id
    assert "registered, not promoted" in (folder / "latest.html").read_text()


def test_a_page_that_cannot_be_made_fails_no_run(
    made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def broken(*_):
        raise ZeroDivisionError("by hand")

    monkeypatch.setattr(page, "render", broken)
    other = made.record.model_copy(update={"manifest": "another"})
    report.write(made.store, other, made.dataset)
    said = capsys.readouterr()
    assert (
        "the report was not written: ZeroDivisionError: by hand" in said.err + said.out
    )

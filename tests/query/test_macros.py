"""The macros of the SQL catalogue: the right values, and names with quotes in them."""

from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from tests.query.made import (
    EVALUATION,
    FIRST,
    SECOND,
    ask,
    described,
    image_id,
    manifest,
    scores,
)
from tests.runs.made import record, result
from tl_pipeline import query
from tl_pipeline.errors import InvalidSpec, TransferLearningError
from tl_pipeline.query import catalogue, macros
from tl_pipeline.query.views import columns
from tl_pipeline.runs import records
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.tables import PREDICTIONS

A, B, C, D, E = map(image_id, range(5))
OLD, NEW, OTHER = "a" * 32, "d" * 32, "e" * 32
QUOTED = 'it\'s "ü"\n|x|'
VECTORS = {A: (2, 0), B: (1, 1), C: (0, 3), D: (-1, 0), E: (0, 0)}
ROWS = [
    (A, "a.png", "x", "test"),
    (B, "b'\".png", QUOTED, "train"),
    (C, "c\nü.png", "x", "validation"),
    (D, "d.png", QUOTED, "train"),
    (E, "e.png", "x", "train"),
]
NAME = "lenet5/c5 same.pth"


@pytest.fixture
def built(store: Store) -> Store:
    """Five images of two classes; the embedding of E has no direction."""
    key = described(store, "a" * 64)
    vectors = np.array(list(VECTORS.values()), np.float32)
    EmbeddingFolder(store, key).add(list(VECTORS), vectors)
    manifest(store, OLD, ROWS)
    scores(store, EVALUATION, [A], key)
    records.write(store, record(FIRST, results=[result(EVALUATION, encoder_key=key)]))
    return store


def rows(store: Store, sql: str) -> list[tuple]:
    return [tuple(row.values()) for row in ask(store, sql)]


def plain(value: Any) -> Any:
    """``value`` with numbers rounded as far as two ways of a sum agree."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return round(value, 5) if isinstance(value, float) else value


def test_every_example_of_help_is_answered_alike_by_any_duckdb(built: Store):
    query.build(built)
    found = ask(built, "FROM help()")
    kinds = Counter(row["kind"] for row in found)
    assert kinds == {"view": 33, "macro": 17}
    with duckdb.connect(built.root / "catalog.duckdb", read_only=True) as other:
        for row in found:
            theirs = other.sql(row["example"]).to_arrow_table().to_pylist()
            ours = ask(built, row["example"])
            same = sorted(map(repr, plain(ours))) == sorted(map(repr, plain(theirs)))
            assert same, row["name"]


def test_help_lists_every_macro_and_the_columns_of_every_view(built: Store):
    made = rows(
        built,
        "SELECT DISTINCT function_name FROM duckdb_functions() WHERE NOT internal "
        "AND function_type IN ('macro', 'table_macro')",
    )
    told = rows(built, "SELECT name FROM help() WHERE kind = 'macro'")
    assert {name.partition("(")[0] for (name,) in told} == {
        name for (name,) in made if name != "help" and not name.endswith("_rows")
    }
    (near,) = ask(built, "FROM help() WHERE name = 'nearest_to(vector, k, encoder)'")
    assert near["comment"].endswith("one row for each dataset that has the image.")
    assert near["example"] == (
        f"FROM nearest_to((SELECT embedding FROM embeddings_of('{NAME}') "
        f"WHERE image_id = '{A}'), 3, '{NAME}')"
    )
    (images,) = ask(built, "FROM help() WHERE name = 'images'")
    split = next(c for c in images["columns"] if c["name"] == "split")
    assert split == {
        "name": "split",
        "type": "VARCHAR",
        "comment": columns()["split"],
    }


@pytest.mark.parametrize("name", [NAME, "lenet5", "KEY"])
def test_embeddings_of_an_encoder_are_arrays(built: Store, name: str):
    (encoder,) = ask(built, "SELECT encoder_key AS k FROM encoders")
    name = encoder["k"] if name == "KEY" else name
    (row,) = ask(
        built,
        "SELECT typeof(embedding) AS kind, "
        "array_cosine_similarity(embedding, [1, 0]::FLOAT[2]) AS cosine "
        f"FROM embeddings_of('{name}') WHERE image_id = '{B}'",
    )
    assert row["kind"] == "FLOAT[2]"
    assert row["cosine"] == pytest.approx(0.5**0.5)


def test_a_name_of_two_encoders_is_refused_with_the_choices(built: Store):
    key = described(built, "b" * 64)
    EmbeddingFolder(built, key).add([A], np.ones((1, 3), np.float32))
    records.write(built, record(SECOND))
    with pytest.raises(
        InvalidSpec, match=f'no encoder "lenet5"; .* "{NAME} #{key[:6]}"'
    ):
        query.ask(built, "FROM embeddings_of('lenet5')")
    (row,) = ask(built, f"SELECT embedding FROM embeddings_of('{NAME} #{key[:6]}')")
    assert row == {"embedding": [1, 1, 1]}


def test_a_backbone_means_the_trained_network_and_not_its_control():
    told = {"backbone": "net", "width": 2}
    control = {"encoder": "net/c random", "encoder_key": "f" * 32, "control": True}
    trained = {"encoder": "net/c it's", "encoder_key": "e" * 32, "control": False}
    names = macros.named([told | control, told | trained])
    assert names["net"] == names["net/c it's"] == names["e" * 32] == told | trained
    assert names["net/c random"] == told | control


def test_neighbours_are_the_most_alike_without_itself(built: Store):
    """An embedding without a direction is like none: it is left out."""
    found = rows(built, f"FROM neighbours('{A}', 10, '{NAME}')")
    assert [row[:5] for row in found] == [
        ("photos", *ROWS[1]),
        ("photos", *ROWS[2]),
        ("photos", *ROWS[3]),
    ]
    assert [row[5] for row in found] == pytest.approx([0.5**0.5, 0, -1])
    assert len(rows(built, f"FROM neighbours('{A}', 2, '{NAME}')")) == 2
    vector = f"FROM nearest_to([0.0, 7.0], 2, '{NAME}')"
    assert [row[1] for row in rows(built, vector)] == [C, B]


def test_an_image_that_left_is_nobodys_neighbour(built: Store):
    manifest(built, NEW, [row for row in ROWS if row[0] != B])
    records.write(built, record(SECOND, manifest=NEW))
    assert [r[1] for r in rows(built, f"FROM neighbours('{A}', 1, '{NAME}')")] == [C]


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("FROM neighbours('none', 3, 'lenet5')", "no embedding of image none"),
        ("FROM neighbours('none', 3, 'resnet')", "unknown encoder 'resnet'.* lenet5, "),
        ("FROM embeddings_of('resnet')", 'no encoder "resnet"; .* "lenet5/c5'),
        ("FROM outliers('none', 3, 'lenet5')", "no dataset none; FROM datasets"),
        ("FROM confusion('none')", "no dataset none"),
        ("FROM nearest_to([1, 2, 3], 1, 'lenet5')", "has 3 values, .* have 2"),
    ],
)
def test_what_does_not_exist_is_an_error_and_no_empty_table(
    built: Store, sql: str, said: str
):
    with pytest.raises(TransferLearningError, match=said):
        query.ask(built, sql)


FIRST_OF_ALL = "(SELECT embedding FROM embeddings ORDER BY ALL LIMIT 1)"


@pytest.mark.parametrize(
    "sql",
    [
        f"FROM neighbours('{A}', 10, '{NAME}')",
        f"FROM neighbours('{D}', 1, 'lenet5')",
        f"FROM nearest_to([0.5, 7.0], 3, '{NAME}')",
        "FROM nearest_to([1e-1, 1e3], 1::TINYINT, 'lenet5')",
        f"FROM nearest_to({FIRST_OF_ALL}, 2, 'lenet5')",
        "FROM nearest_to([0.0, 0.0], 2, 'lenet5')",
        "FROM nearest_to([1.0, 0.0], 0, 'lenet5')",
        "FROM nearest_to(NULL, 2, 'lenet5')",
        "FROM classify_knn('photos', 1, 'lenet5')",
        "FROM classify_knn('photos', 3, 'lenet5')",
        "SELECT * FROM duplicates('photos', 0.5, 'lenet5') ORDER BY ALL",
        "SELECT * FROM duplicates('photos', -1, 'lenet5') ORDER BY ALL",
        "FROM pair_rows('photos', 0.5, 'lenet5') ORDER BY ALL",
    ],
)
def test_any_duckdb_finds_the_same_neighbours(built: Store, sql: str):
    """Ours maps unit vectors, any other reads the parts."""
    query.build(built)
    with duckdb.connect(built.root / "catalog.duckdb", read_only=True) as other:
        theirs = other.sql(sql).fetchall()
    ours = rows(built, sql)
    assert [row[:-1] for row in ours] == [row[:-1] for row in theirs]
    assert [row[-1] for row in ours] == pytest.approx([row[-1] for row in theirs])


def test_test_images_are_classified_by_their_neighbours(built: Store):
    """Of three neighbours of A two are of the other class, B first."""
    (found,) = rows(built, "FROM classify_knn('photos', 3, 'lenet5')")
    assert found == (A, "a.png", "x", QUOTED, 2, False)


def test_means_of_classes_and_what_is_far_from_them(built: Store):
    means = {
        row["label"]: (row["images"], row["centroid"])
        for row in ask(built, "FROM centroids_of('photos', 'lenet5')")
    }
    third = pytest.approx([2 / 3, 1])
    assert means == {"x": (3, third), QUOTED: (2, [0, 0.5])}
    found = rows(
        built, "SELECT image_id, similarity FROM outliers('photos', 2, 'lenet5')"
    )
    cosine = (2 / 3) / ((2 / 3) ** 2 + 1) ** 0.5
    assert [row[0] for row in found] == [D, A]
    assert [row[1] for row in found] == pytest.approx([0, cosine])
    (pair,) = rows(built, "FROM class_similarity('photos', 'lenet5')")
    assert pair == (QUOTED, "x", pytest.approx(1 / ((2 / 3) ** 2 + 1) ** 0.5))


def test_pairs_that_are_alike_are_duplicates(built: Store):
    asked = (
        "SELECT image_id, near_id, near_label, cosine "
        "FROM duplicates('photos', {}, 'lenet5')"
    )
    found = sorted(rows(built, asked.format(0.7)))
    half = pytest.approx(0.5**0.5)
    assert found == [(A, B, QUOTED, half), (B, C, "x", half)]
    assert rows(built, asked.format(0.8)) == []


def test_drift_compares_the_classes_of_two_datasets(built: Store):
    manifest(built, OTHER, [(A, "a", "x", "test"), (B, "b", "new", "train")])
    records.write(built, record(SECOND, "others", manifest=OTHER))
    found = rows(built, "FROM drift('photos', 'others', 'lenet5')")
    distance = pytest.approx(1 - (2 / 3) / ((2 / 3) ** 2 + 1) ** 0.5)
    assert found == [
        (QUOTED, 2, 0, 0.4, 0, None),
        ("new", 0, 1, 0, 0.5, None),
        ("x", 3, 1, 0.6, 0.5, distance),
    ]


def test_what_changed_counts_images(built: Store):
    manifest(built, NEW, [(A, "a", "y", "train"), (B, "b", "y", "train")])
    records.write(built, record(SECOND, manifest=NEW))
    asked = "SELECT dataset, change, before, after, images FROM what_changed('{}')"
    assert rows(built, asked.format("2026-01-02")) == [
        ("photos", "left", "train", None, 2),
        ("photos", "left", "validation", None, 1),
        ("photos", "moved", "test", "train", 1),
        ("photos", "relabelled", QUOTED, "y", 1),
        ("photos", "relabelled", "x", "y", 1),
    ]
    assert rows(built, asked.format("2026-01-03")) == []


def test_mistakes_of_the_best_and_where_two_differ(built: Store):
    scores(built, NEW, [A, B], said="y")
    scores(built, OTHER, [A, B])
    told = [result(NEW), result(OTHER, "candidate", head="knn")]
    records.write(built, record(SECOND, results=told))
    assert rows(built, "FROM confusion('photos')") == [("x", "y", 2, 1)]
    found = rows(built, "SELECT image_id, uri, predicted FROM misclassified('photos')")
    assert found == [(A, "a.png", "y"), (B, "b'\".png", "y")]
    differ = rows(built, f"FROM disagreements('{OTHER}', '{NEW}')")
    assert [(r[1], r[4:6], r[7:9]) for r in differ] == [
        (A, ("knn", "x"), ("logistic(C=1.0)", "y")),
        (B, ("knn", "x"), ("logistic(C=1.0)", "y")),
    ]


def test_the_least_probable_labels_are_the_first_issues(built: Store):
    """Of C the label is predicted; D is of test, from which nobody learns."""
    other = 'y\'s "ü"'
    told = [
        (A, "folds", other, [0.3, 0.7]),
        (B, "folds", other, [0.1, 0.9]),
        (C, "folds", "x", [0.8, 0.2]),
        (D, "test", other, [0.0, 1.0]),
    ]
    rows_of = [
        {"evaluation": EVALUATION, "label": "x", "image_id": image, "split": split}
        | {"predicted": said, "confidence": max(proba), "probabilities": proba}
        for image, split, said, proba in told
    ]
    place = built.root / "evaluations" / EVALUATION
    tables.write(PREDICTIONS, tables.from_rows(PREDICTIONS, rows_of), place)
    assert rows(built, "FROM label_issues('photos')") == [
        (B, "b'\".png", "x", other, pytest.approx(0.1), pytest.approx(0.9)),
        (A, "a.png", "x", other, pytest.approx(0.3), pytest.approx(0.7)),
    ]


def test_coverage_counts_what_is_missing(built: Store):
    (key,) = rows(built, "SELECT encoder_key FROM encoders")[0]
    manifest(built, NEW, [*ROWS, *((image_id(n), f"{n}", "x", "test") for n in (7, 8))])
    EmbeddingFolder(built, key).refuse([(image_id(7), "truncated", "ends early")])
    records.write(built, record(SECOND, manifest=NEW))
    assert rows(built, "FROM coverage('photos')") == [(NAME, key, False, 7, 5, 1, 1)]


def test_whoever_attaches_the_catalogue_uses_it(built: Store):
    query.build(built)
    with duckdb.connect() as other:
        other.execute(f"ATTACH '{built.root / 'catalog.duckdb'}' AS c (READ_ONLY)")
        other.execute("USE c")
        found = other.sql(f"FROM neighbours('{A}', 1, 'lenet5')").fetchall()
    assert [row[1] for row in found] == [B]


@pytest.mark.parametrize(
    ("sql", "reads"),
    [
        ("FROM embeddings", True),
        ("SELECT * FROM Centroids", True),
        ("FROM neighbours ('x', 1, 'y')", True),
        ("FROM drift('a', 'b', 'c')", True),
        ("FROM duplicates('a', 1, 'c')", True),
        ("FROM duplicates", False),
        ("FROM predictions JOIN images USING (image_id)", False),
        ("FROM doubled_embeddings", False),
        ("FROM help()", False),
    ],
)
def test_what_reads_embeddings_is_known_by_its_name(sql: str, *, reads: bool):
    """Then the parts of a store at a URL are brought first."""
    assert bool(macros.reads_embeddings().search(sql)) is reads


@pytest.mark.parametrize("name", ["br[a]cket", 'it\'s a, "ü" *'])
def test_a_store_is_read_whatever_its_folder_is_called(
    built: Store, tmp_path: Path, name: str
):
    """As a copy, too: its original is gone."""
    copy = tmp_path / name
    built.root.rename(copy)
    there = Store.open(copy)
    assert [r[1] for r in rows(there, f"FROM neighbours('{A}', 1, 'lenet5')")] == [B]
    assert rows(there, "SELECT image_id, run_id FROM predictions") == [(A, FIRST)]
    assert rows(there, "SELECT uri FROM images ORDER BY image_id")[1] == ("b'\".png",)
    with pytest.raises(InvalidSpec, match="Cannot access file"):
        query.ask(there, f"FROM read_text('{tmp_path}/other/*')")


@pytest.mark.parametrize("fails", [False, True])
def test_what_reads_parts_that_are_merged_meanwhile_is_asked_again(
    built: Store, monkeypatch: pytest.MonkeyPatch, *, fails: bool
):
    answer, asked = catalogue._answer, []

    def merged(store: Store, sql: str):
        found = answer(store, sql)
        asked.append(sql)
        if len(asked) == 1:
            (part,) = built.root.glob("embeddings/*/part-*")
            part.unlink()
            key = part.parent.name.removeprefix("encoder=")
            EmbeddingFolder(built, key).add([B], np.array([[7, 8]], np.float32))
            if fails:
                raise InvalidSpec("IO Error: Cannot open file")
        return found

    monkeypatch.setattr(catalogue, "_answer", merged)
    found = rows(built, "SELECT image_id, embedding FROM embeddings")
    assert (found, len(asked)) == ([(B, [7, 8])], 2)
    with pytest.raises(InvalidSpec, match="nowhere"):
        query.ask(built, "FROM nowhere, embeddings")
    assert len(asked) == 2

"""The views of the SQL catalogue: what each row says, with the right values."""

from datetime import timedelta, timezone

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
from tests.runs.made import STARTED, record, result
from tl_pipeline.evaluation.choice import Comparison
from tl_pipeline.query import run_records
from tl_pipeline.query.views import columns
from tl_pipeline.runs import records
from tl_pipeline.score import Score
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder

A, B, C, D = map(image_id, range(4))
OLD, NEW = "a" * 32, "d" * 32


@pytest.fixture
def built(store: Store) -> Store:
    """A store of one run."""
    manifest(store, OLD, [(A, "a.png", "x", "test")])
    scores(store, EVALUATION, [A])
    records.write(store, record(FIRST))
    return store


def test_every_view_and_column_has_a_comment(built: Store):
    assert (
        ask(built, "FROM duckdb_columns() WHERE NOT internal AND comment IS NULL") == []
    )
    assert (
        ask(built, "FROM duckdb_views() WHERE NOT internal AND comment IS NULL") == []
    )
    assert ask(built, "FROM duckdb_tables() WHERE comment IS NULL") == []


def test_no_comment_is_of_a_column_that_does_not_exist(built: Store):
    rows = ask(
        built,
        "SELECT table_name AS t, column_name AS c FROM duckdb_columns() "
        "WHERE NOT internal",
    )
    known = {row["c"] for row in rows} | {f"{row['t']}.{row['c']}" for row in rows}
    assert columns().keys() - known == set()


def test_every_column_is_asked_for_without_quotes(built: Store):
    rows = ask(
        built,
        "SELECT table_name AS t, "
        "string_agg('x.' || column_name || ', ' || column_name) AS c "
        "FROM duckdb_columns() WHERE NOT internal GROUP BY t",
    )
    for row in rows:
        ask(built, f"SELECT {row['c']} FROM {row['t']} AS x LIMIT 0")


def test_times_are_plain_and_in_utc(built: Store):
    kinds = ask(
        built,
        "SELECT DISTINCT data_type AS k FROM duckdb_columns() WHERE NOT internal "
        "AND data_type LIKE 'TIME%'",
    )
    assert kinds == [{"k": "TIMESTAMP"}]


def test_changes_are_those_since_the_run_before(built: Store):
    rows = [
        (A, "moved/a.png", "y", "train"),
        (C, "c 'q\".png", "x", "validation"),
        (D, "d\nü.png", "y", "test"),
    ]
    manifest(
        built,
        OLD,
        [(A, "a.png", "x", "test"), (B, "b.png", "x", "test"), (D, *rows[2][1:])],
    )
    manifest(built, NEW, rows)
    records.write(built, record(SECOND, manifest=NEW))
    third = "20260103T000000000-000003"
    records.write(built, record(third, manifest=NEW))
    records.write(built, record(third.replace("3-", "4-"), "others", manifest=NEW))
    found = ask(
        built,
        "SELECT dataset, run_id, image_id, uri, label, change, before, after "
        "FROM changes ORDER BY image_id, change",
    )
    assert [tuple(row.values())[:2] for row in found] == [("photos", SECOND)] * 4
    assert [tuple(row.values())[2:] for row in found] == [
        (A, "moved/a.png", "y", "moved", "test", "train"),
        (A, "moved/a.png", "y", "relabelled", "x", "y"),
        (B, "b.png", "x", "left", "test", None),
        (C, "c 'q\".png", "x", "entered", None, "validation"),
    ]


def test_changes_are_not_told_where_a_manifest_is_gone(built: Store):
    records.write(built, record(SECOND, manifest=NEW))
    records.write(built, record("20260103T000000000-000003", manifest=OLD))
    assert ask(built, "FROM changes") == []


@pytest.mark.parametrize("view", ["predictions", "metrics"])
def test_a_view_is_of_the_latest_of_each_encoder_and_kind_of_head(
    store: Store, view: str
):
    """Of a run that left out an encoder or a head, the older ones stay, as no best."""
    manifest(store, OLD, [(A, "a.png", "x", "test")])
    first, second, other = EVALUATION, "d" * 32, "f" * 32
    for key in (first, second, other):
        scores(store, key, [A])
    told = [result(first), result(other, "candidate", encoder="lenet5/c3 LETTERS")]
    records.write(store, record(FIRST, results=[told[0].model_copy(), told[1]]))
    again = result(second, head="logistic(C=10.0)")
    records.write(store, record(SECOND, results=[again]))
    asked = "SELECT run_id, evaluation, role FROM {} ORDER BY ALL"
    assert [tuple(r.values()) for r in ask(store, asked.format(view))] == [
        (FIRST, other, "candidate"),
        (SECOND, second, "best"),
    ]
    every = ask(store, asked.format(f"{view}_history"))
    assert [(r["run_id"], r["evaluation"], r["role"]) for r in every] == [
        (FIRST, first, "best"),
        (FIRST, other, "candidate"),
        (SECOND, second, "best"),
    ]
    records.write(
        store, record("20260103T000000000-000003", results=[*told[1:], told[0]])
    )
    roles = ask(store, f"SELECT evaluation, role FROM {view} ORDER BY ALL")
    assert [tuple(r.values()) for r in roles] == [(first, "best"), (other, "candidate")]


def test_scores_of_classes_are_those_of_the_same_runs(built: Store):
    scores(built, "d" * 32, ["0" * 32])  # of no run
    (row,) = ask(built, "FROM class_scores")
    assert (row["dataset"], row["role"], row["evaluation"]) == (
        "photos",
        "best",
        EVALUATION,
    )
    told = [row[name] for name in ("split", "label", "metric", "value", "low", "high")]
    assert told == ["test", "x", "recall", 0.7, 0.4, 0.9]
    assert row["images"] == 1


def test_comparisons_say_which_candidate_is_known_to_be_worse(store: Store):
    against = {"against": EVALUATION, "metric": "accuracy", "images": 90, "p": 0.01}
    found = [
        Comparison(
            evaluation=other,
            difference=Score(value=-0.02, low=-0.05, high=high),
            won=1,
            lost=3,
            p_holm=p,
            **against,
        )
        for other, high, p in (("c" * 32, -0.01, 0.02), ("d" * 32, 0.01, 0.05))
    ]
    results = [
        result(EVALUATION),
        result("c" * 32, "candidate", milliseconds=2.5, bytes=2048),
        result("d" * 32, "candidate"),
    ]
    records.write(store, record(FIRST, results=results, comparisons=found))
    rows = ask(
        store,
        "SELECT evaluation, value, low, won, lost, p_holm, verdict, milliseconds, "
        "bytes FROM comparisons ORDER BY evaluation",
    )
    assert [tuple(row.values()) for row in rows] == [
        ("c" * 32, -0.02, -0.05, 1, 3, 0.02, "worse", 2.5, 2048),
        ("d" * 32, -0.02, -0.05, 1, 3, 0.05, "tie", None, None),
    ]


def test_classes_name_the_order_of_probabilities(built: Store):
    rows = ask(
        built,
        "SELECT c.position, c.label, p.probabilities[c.position] AS said "
        "FROM predictions AS p JOIN classes AS c USING (dataset, evaluation) "
        "ORDER BY position",
    )
    assert [(r["position"], r["label"]) for r in rows] == [(1, "x"), (2, 'y\'s "ü"')]
    assert [r["said"] for r in rows] == pytest.approx([0.9, 0.1])


def test_a_centroid_is_the_mean_of_the_embeddings_of_a_class(store: Store):
    key = described(store, "a" * 64)
    vectors = np.array([[1, 2, 3], [3, 6, 5], [0, 1, 0], [9, 9, 9]], np.float32)
    EmbeddingFolder(store, key).add([A, B, C, D], vectors)
    rows = [(A, "a", "x", "test"), (B, "b", "x", "train"), (C, "c", "it's", "test")]
    manifest(store, OLD, rows)
    records.write(store, record(FIRST))
    found = ask(
        store,
        "SELECT encoder_key, control, label, images, centroid FROM centroids "
        "ORDER BY label",
    )
    assert [tuple(row.values()) for row in found] == [
        (key, False, "it's", 1, [0, 1, 0]),
        (key, False, "x", 2, [2, 4, 4]),
    ]
    (encoder,) = ask(store, "SELECT width FROM encoders")
    assert encoder == {"width": 3}


def test_a_model_is_of_the_run_that_registered_it_first(store: Store):
    """Times are UTC, whatever zone the record was written in."""
    records.write(store, record(FIRST))
    there = timezone(timedelta(hours=2))
    records.write(store, record(SECOND, "others", finished=STARTED.astimezone(there)))
    records.write(store, record("20260103T000000000-000003"))
    found = run_records.known(sorted(store.root.glob("runs/*/*"), key=lambda f: f.name))
    plain = STARTED.replace(tzinfo=None)
    assert found.registered == {
        ("photos", 1): (FIRST, plain + timedelta(seconds=90)),
        ("others", 1): (SECOND, plain),
    }

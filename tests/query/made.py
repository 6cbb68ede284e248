"""Stores with few rows that no run made, and what is asked of them."""

import json
from typing import Any

from tl_pipeline import query
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.encoders.weight_names import Weights
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.tables import (
    CLASS_SCORES,
    DUPLICATES,
    MANIFEST,
    METRICS,
    PREDICTIONS,
    QUARANTINE,
)

FIRST, SECOND = "20260101T000000000-000001", "20260102T000000000-000002"
MANIFEST_KEY, EVALUATION = "a" * 32, "b" * 32


def image_id(number: int) -> str:
    return f"{number:032x}"


def images(store: Store, number: int) -> None:
    """Give the manifest ``number`` images, and a metric and a prediction for each."""
    ids = [image_id(n) for n in range(number)]
    manifest(store, MANIFEST_KEY, [(i, f"{i}.png", "x", "test") for i in ids])
    scores(store, EVALUATION, ids)


def manifest(store: Store, key: str, rows: list[tuple[str, str, str, str]]) -> None:
    """A manifest of (image id, uri, label, split)."""
    folder = store.root / "manifests" / key
    folder.mkdir(parents=True, exist_ok=True)
    names = ("image_id", "uri", "label", "split")
    told = [{**dict(zip(names, row, strict=True)), "bytes": 1} for row in rows]
    tables.write(MANIFEST, tables.from_rows(MANIFEST, told), folder)
    for table in (QUARANTINE, DUPLICATES):
        tables.write(table, tables.from_rows(table, []), folder)


def scores(
    store: Store, key: str, ids: list[str], encoder: str = "e" * 32, said: str = "x"
) -> None:
    """A metric and, for each image, a prediction: label x, predicted as ``said``."""
    folder = store.root / "evaluations" / key
    folder.mkdir(parents=True, exist_ok=True)
    metric = {
        "evaluation": key,
        "encoder_key": encoder,
        "encoder": "lenet5/c5 LETTERS",
        "family": "logistic",
        "head": "logistic(C=1.0)",
        "chosen": True,
        "split": "test",
        "metric": "accuracy",
        "value": 0.7,
        "images": len(ids),
    }
    tables.write(METRICS, tables.from_rows(METRICS, [metric]), folder)
    recall = {"evaluation": key, "split": "test", "label": "x", "metric": "recall"}
    recall |= {"value": 0.7, "low": 0.4, "high": 0.9, "images": len(ids)}
    of_class = tables.from_rows(CLASS_SCORES, [recall])
    tables.write(CLASS_SCORES, of_class, folder)
    told: dict[str, Any] = {"evaluation": key, "split": "test", "label": "x"}
    told |= {"predicted": said, "confidence": 0.9, "probabilities": [0.9, 0.1]}
    rows = [{"image_id": image_id, **told} for image_id in ids]
    tables.write(PREDICTIONS, tables.from_rows(PREDICTIONS, rows), folder)
    (folder / "chosen.json").write_text(json.dumps({"classes": ["x", 'y\'s "ü"']}))


def ask(store: Store, sql: str) -> list[dict[str, Any]]:
    return query.ask(store, sql).to_pylist()


def count(store: Store, view: str) -> int:
    return ask(store, f"SELECT count(*) AS n FROM {view}")[0]["n"]


def described(store: Store, sha256: str) -> str:
    """The key of an encoder that the store describes, with weights of that content."""
    weights = Weights(name="same.pth", sha256=sha256)
    fed = Preprocess(resize=32, crop=32, mean=(0.0,), std=(1.0,), grey=True)
    named: dict[str, Any] = {"backbone": "lenet5", "layer": "c5", "node": "flatten"}
    encoder = Encoder(
        **named, pooling="none", weights=weights, preprocess=fed, precision="fp32"
    )
    EmbeddingFolder(store, encoder.key).describe(encoder.model_dump_json())
    return encoder.key

"""The small tables that tell what lies in the store."""

import json
from collections.abc import Iterable

from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.query.small_table import Row, SmallTable, schema
from tl_pipeline.registry import index
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.store import duplicate_rows
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder


def store_tables(store: Store, records: list[RunRecord]) -> dict[str, SmallTable]:
    """Models, encoders, refused images, and embeddings that are there twice."""
    return {
        "models": SmallTable(
            index.models(store),
            schema(
                "name:s",
                "version:i",
                "aliases:l",
                "encoder head:s",
                "folds_accuracy validation_accuracy test_accuracy:f",
                "folder model:s",
            ),
            "One row per registered model version; aliases may hold champion.",
        ),
        "encoders": SmallTable(
            [*encoders(store), *_joints(store, records)],
            schema("encoder_key encoder backbone layer weights weights_sha256:s"),
            "One row per encoder that has embeddings in the store, and per joint of "
            "several, which has none of its own.",
        ),
        "refused": SmallTable(
            _refused(store),
            schema("encoder_key image_id reason detail:s", "first_seen:t"),
            "One row per encoder and image that could not be decoded.",
        ),
        "doubled_embeddings": SmallTable(
            _doubled(store),
            schema("file:s", "row:i"),
            "One row per embedding that another part file gives too; the view "
            "embeddings leaves it out.",
        ),
    }


def encoders(store: Store) -> Iterable[Row]:
    """One row per encoder that has embeddings in ``store``."""
    for file in sorted((store.root / "embeddings").glob("encoder=*/encoder.json")):
        encoder = Encoder.model_validate(json.loads(file.read_text()))
        yield {
            "encoder_key": encoder.key,
            "encoder": encoder.label,
            "backbone": encoder.backbone,
            "layer": encoder.layer,
            "weights": encoder.weights.name,
            "weights_sha256": encoder.weights.sha256,
        }


def _joints(store: Store, records: list[RunRecord]) -> Iterable[Row]:
    known = {row["encoder_key"]: row for row in encoders(store)}
    joints = {joint.key: joint for record in records for joint in record.joints}
    for joint in joints.values():
        members = [known[key] for key in joint.members if key in known]
        told = {
            name: " + ".join(member[name] for member in members)
            for name in ("backbone", "layer", "weights")
        }
        yield {"encoder_key": joint.key, "encoder": joint.label, **told}


def _refused(store: Store) -> Iterable[Row]:
    for row in encoders(store):
        folder = EmbeddingFolder(store, row["encoder_key"])
        for refusal in folder.refusals().values():
            yield {"encoder_key": row["encoder_key"], **refusal}


def _doubled(store: Store) -> Iterable[Row]:
    for row in encoders(store):
        parts = EmbeddingFolder(store, row["encoder_key"]).parts().whole
        for file, rows in duplicate_rows.find(parts).items():
            yield from ({"file": str(file), "row": int(again)} for again in rows)

"""The few rows of the SQL catalogue that neither a record nor a Parquet table holds."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from tl_pipeline.encoders import labels
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.registry import index
from tl_pipeline.runs.records import JointEncoder, RunRecord
from tl_pipeline.store import duplicate_rows
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder, described

Row = Mapping[str, Any]
_TEXT, _NUMBER, _REAL, _FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()


class Computed(NamedTuple):
    """The rows of one table, its columns, and what one row is."""

    rows: Iterable[Row]
    schema: pa.Schema
    comment: str


def tables(
    store: Store,
    latest: Mapping[str, RunRecord],
    last: Mapping[str, str],
    joints: Iterable[JointEncoder],
) -> dict[str, Computed]:
    """Every computed table by its name.

    ``latest`` has the last record of each dataset, ``last`` the manifest of its
    last run, be it refused; ``joints`` are those of all records, each once.
    """
    files = described(store)
    return {
        "datasets": Computed(
            (
                {
                    "dataset": name,
                    "run_id": latest[name].run_id if name in latest else None,
                    "manifest": latest[name].manifest if name in latest else None,
                    "last_manifest": last[name],
                }
                for name in sorted(last)
            ),
            _schema(_TEXT, "dataset", "run_id", "manifest", "last_manifest"),
            "One row per dataset: its latest finished run and the manifest of that; "
            "last_manifest is of a later run if that was refused.",
        ),
        "models": Computed(
            map(_model, index.models(store)),
            pa.schema(
                [
                    pa.field("name", _TEXT),
                    pa.field("version", _NUMBER),
                    pa.field("aliases", pa.list_(_TEXT)),
                    *_schema(_TEXT, "encoder", "encoder_key", "head"),
                    *_schema(_REAL, *(f"{s}_accuracy" for s in _SCORES)),
                    *_schema(_TEXT, "folder", "model"),
                    pa.field("control", _FLAG),
                ]
            ),
            "One row per registered model version; aliases may hold champion.",
        ),
        "encoders": Computed(
            _named([*_encoders(files), *_joined(files, joints)]),
            pa.schema(
                [
                    *_schema(_TEXT, "encoder_key", "encoder", "label", "backbone"),
                    *_schema(_TEXT, "layer", "weights", "weights_sha256", "precision"),
                    pa.field("control", _FLAG),
                ]
            ),
            "One row per encoder that has embeddings in the store, and per joint of "
            "several, which has none of its own. encoder is unique: its label, and the "
            "beginning of its key where labels are equal. control: it is untrained.",
        ),
        "refused": Computed(
            _refused(store, files),
            pa.schema(
                [
                    *_schema(_TEXT, "encoder_key", "image_id", "reason", "detail"),
                    pa.field("first_seen", pa.timestamp("us")),
                ]
            ),
            "One row per encoder and image that could not be decoded. Times are UTC.",
        ),
        "doubled_embeddings": Computed(
            _doubled(store, files),
            pa.schema([*_schema(_TEXT, "encoder_key", "file"), ("row", _NUMBER)]),
            "One row per embedding that another part file gives too; the view "
            "embeddings leaves it out.",
        ),
    }


_SCORES = ("folds", "validation", "test")


def _schema(kind: pa.DataType, *names: str) -> pa.Schema:
    return pa.schema([pa.field(name, kind) for name in names])


def _model(row: Row) -> Row:
    """``row`` of the registry with the key of the encoder, of several as a sum."""
    file = Path(row["folder"] or "", "model.json")
    about = json.loads(file.read_text()) if file.is_file() else {}
    members = [key for m in about.get("members", []) for key in m["encoder_keys"]]
    several = "+".join(dict.fromkeys(members)) or None
    return {**row, "encoder_key": about.get("encoder_key", several), "control": False}


def _encoder(file: Path) -> Encoder:
    return Encoder.model_validate(json.loads(file.read_text()))


def _named(rows: list[Row]) -> list[Row]:
    """``rows`` with the unique name of each encoder."""
    names = labels.unique({row["encoder_key"]: row["label"] for row in rows})
    return [{**row, "encoder": names[row["encoder_key"]]} for row in rows]


def _encoders(files: Mapping[str, Path]) -> Iterator[Row]:
    for key, file in files.items():
        encoder = _encoder(file)
        yield {
            "encoder_key": key,
            "label": encoder.label,
            "backbone": encoder.backbone,
            "layer": encoder.layer,
            "weights": encoder.weights.name,
            "weights_sha256": encoder.weights.sha256,
            "precision": encoder.precision,
            "control": encoder.weights.seed is not None,
        }


def _joined(files: Mapping[str, Path], joints: Iterable[JointEncoder]) -> Iterator[Row]:
    known = {row["encoder_key"]: row for row in _encoders(files)}
    for joint in joints:
        members = [known[key] for key in joint.members if key in known]
        told = {
            name: " + ".join(member[name] for member in members)
            for name in ("backbone", "layer", "weights", "precision")
        }
        control = bool(members) and all(member["control"] for member in members)
        yield {
            "encoder_key": joint.key,
            "label": joint.label,
            "control": control,
            **told,
        }


def _refused(store: Store, keys: Iterable[str]) -> Iterator[Row]:
    for key in keys:
        for refusal in EmbeddingFolder(store, key).refusals().values():
            seen = refusal["first_seen"]
            seen = seen.replace(tzinfo=None) if seen else None
            yield {"encoder_key": key, **refusal, "first_seen": seen}


def _doubled(store: Store, keys: Iterable[str]) -> Iterator[Row]:
    for key in keys:
        parts = EmbeddingFolder(store, key).parts().whole
        for file, rows in duplicate_rows.find(parts).items():
            for row in rows:
                yield {"encoder_key": key, "file": file.name, "row": int(row)}

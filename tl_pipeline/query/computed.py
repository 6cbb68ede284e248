"""The few rows of the SQL catalogue that neither a record nor a Parquet table holds."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tl_pipeline.encoders import labels
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.query.run_records import Known
from tl_pipeline.registry import index
from tl_pipeline.runs.records import JointEncoder, Record
from tl_pipeline.store import duplicate_rows
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder, described

Row = Mapping[str, Any]
PARTS = "part-*.parquet"
_TEXT, _NUMBER, _REAL, _FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()


class Computed(NamedTuple):
    """The rows of one table, its columns, and what one row is."""

    rows: Sequence[Row]
    schema: pa.Schema
    comment: str


def tables(
    store: Store,
    latest: Mapping[str, Record],
    last: Mapping[str, str],
    known: Known,
) -> dict[str, Computed]:
    """Every computed table by its name.

    ``latest`` has the last record of each dataset, of a run or else of a batch,
    ``last`` the manifest of its last run, be it refused; ``known`` is what all records
    tell.
    """
    files = described(store)
    encoders = list(_encoders(store, files))
    return {
        "datasets": Computed(
            [
                {
                    "dataset": name,
                    "run_id": latest[name].run_id if name in latest else None,
                    "manifest": latest[name].manifest if name in latest else None,
                    "last_manifest": last[name],
                }
                for name in sorted(last)
            ],
            _schema(_TEXT, "dataset", "run_id", "manifest", "last_manifest"),
            "One row per dataset: its latest finished run, or batch where it has no "
            "run, and the manifest of that; last_manifest is of a later run if that "
            "was refused.",
        ),
        "models": Computed(
            [_model(row, known) for row in index.models(store)],
            pa.schema(
                [
                    pa.field("name", _TEXT),
                    pa.field("version", _NUMBER),
                    pa.field("aliases", pa.list_(_TEXT)),
                    *_schema(_TEXT, "encoder", "encoder_key", "head"),
                    *_schema(_REAL, *(f"{s}_accuracy" for s in _SCORES)),
                    *_schema(_TEXT, "folder", "model"),
                    pa.field("control", _FLAG),
                    pa.field("run_id", _TEXT),
                    pa.field("registered", pa.timestamp("us")),
                ]
            ),
            "One row per registered model version; aliases may hold champion.",
        ),
        "current_evaluations": Computed(
            [
                {"run_id": run_id, "evaluation": evaluation}
                for run_id, evaluations in known.current.values()
                for evaluation in evaluations
            ],
            _schema(_TEXT, "run_id", "evaluation"),
            "One row per evaluation in the view predictions, and the last run that "
            "had it.",
        ),
        "encoders": Computed(
            _named([*encoders, *_joined(encoders, known.joints.values())]),
            pa.schema(
                [
                    *_schema(_TEXT, "encoder_key", "encoder", "label", "backbone"),
                    *_schema(_TEXT, "layer", "weights", "weights_sha256", "precision"),
                    pa.field("width", _NUMBER),
                    pa.field("control", _FLAG),
                ]
            ),
            "One row per encoder that has embeddings in the store, and per joint of "
            "several, which has none of its own. encoder is unique: its label, and the "
            "beginning of its key where labels are equal. control: it is untrained.",
        ),
        "refused": Computed(
            list(_refused(store, files)),
            pa.schema(
                [
                    *_schema(_TEXT, "encoder_key", "image_id", "reason", "detail"),
                    pa.field("first_seen", pa.timestamp("us")),
                ]
            ),
            "One row per encoder and image that could not be decoded. Times are UTC.",
        ),
        "doubled_embeddings": Computed(
            list(_doubled(store, files)),
            pa.schema([*_schema(_TEXT, "encoder_key", "file"), ("row", _NUMBER)]),
            "One row per embedding that another part file gives too; the view "
            "embeddings leaves it out.",
        ),
    }


_SCORES = ("folds", "validation", "test")


def _schema(kind: pa.DataType, *names: str) -> pa.Schema:
    return pa.schema([pa.field(name, kind) for name in names])


def _model(row: Row, known: Known) -> Row:
    """``row`` of the registry with its run and the key of the encoder.

    That of several encoders is written as a sum.
    """
    file = Path(row["folder"] or "", "model.json")
    about = json.loads(file.read_text()) if file.is_file() else {}
    members = [key for m in about.get("members", []) for key in m["encoder_keys"]]
    several = "+".join(dict.fromkeys(members)) or None
    run_id, finished = known.registered.get((row["name"], row["version"]), (None, None))
    return {
        **row,
        "encoder_key": about.get("encoder_key", several),
        "control": False,
        "run_id": run_id,
        "registered": finished,
    }


def _encoder(file: Path) -> Encoder:
    return Encoder.model_validate(json.loads(file.read_text()))


def _named(rows: list[Row]) -> list[Row]:
    """``rows`` with the unique name of each encoder."""
    names = labels.unique({row["encoder_key"]: row["label"] for row in rows})
    return [{**row, "encoder": names[row["encoder_key"]]} for row in rows]


def _encoders(store: Store, files: Mapping[str, Path]) -> Iterator[Row]:
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
            "width": _width(store, key),
            "control": encoder.weights.seed is not None,
        }


def _width(store: Store, key: str) -> int | None:
    """How many values an embedding has, as the first part tells; None without parts."""
    for part in sorted((store.root / "embeddings" / f"encoder={key}").glob(PARTS)):
        with contextlib.suppress(OSError, pa.ArrowInvalid):
            return pq.read_schema(part).field("embedding").type.list_size
    return None


def _joined(encoders: Iterable[Row], joints: Iterable[JointEncoder]) -> Iterator[Row]:
    known = {row["encoder_key"]: row for row in encoders}
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

"""The few rows of the SQL catalogue that neither a record nor a Parquet table holds.

``views.sql`` makes their tables and says what a row is.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

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


def tables(
    store: Store,
    latest: Mapping[str, Record],
    last: Mapping[str, str],
    known: Known,
) -> dict[str, list[Row]]:
    """The rows of every computed table by its name.

    ``latest`` has the last record of each dataset, of a run or else of a batch,
    ``last`` the manifest of its last run, be it refused; ``known`` is what all records
    tell.
    """
    files = described(store)
    encoders = list(_encoders(store, files))
    return {
        "datasets": [_dataset(name, last[name], latest.get(name)) for name in last],
        "models": [_model(row, known) for row in index.models(store)],
        "current_evaluations": [
            {"run_id": run_id, "evaluation": evaluation}
            for run_id, evaluations in known.current.values()
            for evaluation in evaluations
        ],
        "encoders": _named([*encoders, *_joined(encoders, known.joints.values())]),
        "refused": list(_refused(store, files)),
        "doubled_embeddings": list(_doubled(store, files)),
    }


def _dataset(name: str, last_manifest: str, latest: Record | None) -> Row:
    return {
        "dataset": name,
        "run_id": latest and latest.run_id,
        "manifest": latest and latest.manifest,
        "last_manifest": last_manifest,
    }


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


def _named(rows: list[Row]) -> list[Row]:
    """``rows`` with the unique name of each encoder."""
    names = labels.unique({row["encoder_key"]: row["label"] for row in rows})
    return [{**row, "encoder": names[row["encoder_key"]]} for row in rows]


def _encoders(store: Store, files: Mapping[str, Path]) -> Iterator[Row]:
    for key, file in files.items():
        encoder = Encoder.model_validate(json.loads(file.read_text()))
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

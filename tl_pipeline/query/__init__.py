"""``catalog.duckdb``: everything in the store as SQL, opened read-only by anyone.

It is built beside the live file and replaces it, so that readers keep what they have
open and nobody waits for a lock. Views hold absolute paths: a store that was moved gets
a right catalogue from its next run.
"""

import json
import uuid
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from tl_pipeline import registry, runs
from tl_pipeline.artifacts import Store
from tl_pipeline.embeddings import EmbeddingFolder
from tl_pipeline.encoders import Encoder
from tl_pipeline.errors import InvalidSpec, StoreError
from tl_pipeline.runs import RunRecord
from tl_pipeline.tables import DUPLICATES, MANIFEST, METRICS, PREDICTIONS, QUARANTINE

CATALOG = "catalog.duckdb"
CONTENTS = """
SELECT name, comment FROM (
    SELECT table_name AS name, comment FROM duckdb_tables()
    UNION ALL
    SELECT view_name, comment FROM duckdb_views() WHERE NOT internal
) ORDER BY name
"""


def connect(store: Store) -> duckdb.DuckDBPyConnection:
    """Open the catalogue of ``store``, read-only.

    Raises:
        StoreError: no run has built one yet.
    """
    file = store.root / CATALOG
    if not file.exists():
        raise StoreError(f"{file} does not exist yet; `tl run DATASET` builds it")
    return duckdb.connect(file, read_only=True)


def ask(store: Store, sql: str) -> pa.Table:
    """The rows that ``sql`` gives.

    Raises:
        InvalidSpec: DuckDB refuses the query; its message says where.
        StoreError: see ``connect``.
    """
    with connect(store) as connection:
        try:
            return connection.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            raise InvalidSpec(f"{error}") from None


def show(rows: pa.Table) -> None:
    """Print ``rows`` as DuckDB's shell does, the middle of a long table left out."""
    duckdb.from_arrow(rows).show(max_rows=100, max_width=200)


def build(store: Store) -> Path:
    """Build the catalogue from the run records and replace the live one."""
    records = runs.every(store)
    beside = store.root / f".{CATALOG}.{uuid.uuid4().hex}"
    connection = duckdb.connect()
    try:
        # The oldest format, so that an older DuckDB on an analyst's laptop reads it.
        connection.execute(
            f"ATTACH '{_quoted(beside)}' AS catalog (STORAGE_VERSION 'v1.0.0')"
        )
        connection.execute("USE catalog")
        for name, (rows, schema, comment) in _tables(store, records).items():
            connection.register("rows", pa.Table.from_pylist(list(rows), schema))
            connection.execute(f"CREATE TABLE {name} AS FROM rows")
            connection.unregister("rows")
            connection.execute(f"COMMENT ON TABLE {name} IS '{_quoted(comment)}'")
        for statement in _views(store, records):
            connection.execute(statement)
        connection.execute("USE memory")
        connection.execute("DETACH catalog")
        beside.replace(store.root / CATALOG)
    finally:
        connection.close()
        beside.unlink(missing_ok=True)
    return store.root / CATALOG


def _views(store: Store, records: list[RunRecord]) -> Iterable[str]:
    latest = {record.dataset: record for record in records}.values()
    manifests = [store.root / "manifests" / record.manifest for record in latest]
    scored = {r.evaluation for record in records for r in record.results}
    current = {r.evaluation for record in latest for r in record.results}
    evaluations = store.root / "evaluations"
    files = {
        "manifests": [folder / MANIFEST.file for folder in manifests],
        "quarantines": [folder / QUARANTINE.file for folder in manifests],
        "duplicates": [folder / DUPLICATES.file for folder in manifests],
        "metrics": [evaluations / key / METRICS.file for key in sorted(scored)],
        "predictions": [
            evaluations / key / PREDICTIONS.file for key in sorted(current)
        ],
        "embeddings": [store.root / "embeddings" / "encoder=*" / "part-*.parquet"],
    }
    text = (resources.files(__name__) / "views.sql").read_text()
    code = "\n".join(line for line in text.splitlines() if line[:2] != "--")
    for name, paths in files.items():
        # a run whose artifacts were deleted keeps its record, not its rows
        there = [path for path in paths if "*" in str(path) or path.exists()]
        listed = ", ".join(f"'{_quoted(path)}'" for path in there)
        code = code.replace(f"{{{name}}}", f"[{listed}]")
    return [statement for statement in code.split(";\n") if statement.strip()]


def _tables(
    store: Store, records: list[RunRecord]
) -> Mapping[str, tuple[Iterable[Mapping[str, Any]], pa.Schema, str]]:
    latest = {record.dataset: record for record in records}
    return {
        "runs": (
            [_run(record) for record in records],
            _schema(
                "run_id dataset manifest best_encoder best_head:s",
                "started finished:t",
                "images quarantined duplicates:i",
                "seconds test_accuracy gain_by_transfer:f",
            ),
            "One row per finished run.",
        ),
        "stages": (
            [_step(record, step) for record in records for step in record.steps],
            _schema("run_id dataset stage subject reason:s", "cached:b", "seconds:f"),
            "One row per run, stage and subject: what was cached, what ran, and why.",
        ),
        "models": (
            registry.models(store),
            _schema(
                "name:s",
                "version:i",
                "aliases:l",
                "encoder head:s",
                "validation_accuracy test_accuracy:f",
                "folder model:s",
            ),
            "One row per registered model version; aliases may hold champion.",
        ),
        "encoders": (
            list(_encoders(store)),
            _schema("encoder_key encoder backbone layer weights weights_sha256:s"),
            "One row per encoder that has embeddings in the store.",
        ),
        "refused": (
            list(_refused(store)),
            _schema("encoder_key image_id reason detail:s"),
            "One row per encoder and image that could not be decoded.",
        ),
        "latest_manifests": (
            [_manifest(store, record) for record in latest.values()],
            _schema("dataset run_id manifest_file quarantine_file duplicates_file:s"),
            "One row per dataset: the files of its latest run.",
        ),
        "run_evaluations": (
            [
                {
                    "run_id": record.run_id,
                    "dataset": record.dataset,
                    "evaluation": result.evaluation,
                    "encoder": result.encoder,
                    "head": result.head,
                    "role": result.role,
                    "latest": latest[record.dataset].run_id == record.run_id,
                }
                for record in records
                for result in record.results
            ],
            _schema("run_id dataset evaluation encoder head role:s", "latest:b"),
            "One row per run and evaluation: best, candidate or control.",
        ),
    }


def _run(record: RunRecord) -> Mapping[str, Any]:
    best = record.best
    return {
        "run_id": record.run_id,
        "dataset": record.dataset,
        "manifest": record.manifest,
        "started": record.started,
        "finished": record.finished,
        "seconds": (record.finished - record.started).total_seconds(),
        "images": record.images,
        "quarantined": record.quarantined,
        "duplicates": record.duplicates,
        "best_encoder": best.encoder,
        "best_head": best.head,
        "test_accuracy": best.test.value,
        "gain_by_transfer": record.gain.value if record.gain else None,
    }


def _step(record: RunRecord, step: runs.Step) -> Mapping[str, Any]:
    return {
        "run_id": record.run_id,
        "dataset": record.dataset,
        "stage": step.stage,
        "subject": step.subject,
        "reason": step.reason,
        "cached": step.cached,
        "seconds": step.seconds,
    }


def _manifest(store: Store, record: RunRecord) -> Mapping[str, str]:
    folder = store.root / "manifests" / record.manifest
    return {
        "dataset": record.dataset,
        "run_id": record.run_id,
        "manifest_file": str(folder / MANIFEST.file),
        "quarantine_file": str(folder / QUARANTINE.file),
        "duplicates_file": str(folder / DUPLICATES.file),
    }


def _encoders(store: Store) -> Iterable[Mapping[str, str]]:
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


def _refused(store: Store) -> Iterable[Mapping[str, str]]:
    for row in _encoders(store):
        folder = EmbeddingFolder(store, row["encoder_key"])
        for image_id, (reason, detail) in folder.refused().items():
            yield {
                "encoder_key": row["encoder_key"],
                "image_id": image_id,
                "reason": reason,
                "detail": detail,
            }


_KINDS = {
    "s": pa.string(),
    "i": pa.int64(),
    "f": pa.float64(),
    "b": pa.bool_(),
    "t": pa.timestamp("us", "UTC"),
    "l": pa.list_(pa.string()),
}


def _schema(*groups: str) -> pa.Schema:
    """``"a b:s"`` means the columns a and b, both strings."""
    fields = []
    for group in groups:
        names, _, kind = group.partition(":")
        fields += [(name, _KINDS[kind]) for name in names.split()]
    return pa.schema(fields)


def _quoted(text: object) -> str:
    return str(text).replace("'", "''")

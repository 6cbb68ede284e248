"""``catalog.duckdb``: everything in the store as SQL, opened read-only by anyone.

It is built beside the live file and replaces it, so that readers keep what they have
open and nobody waits for a lock. Views hold absolute paths: a store that was moved gets
a right catalogue from its next run.
"""

import re
import uuid
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import duckdb
import pyarrow as pa

from tl_pipeline.errors import InvalidSpec, StoreError
from tl_pipeline.query.small_tables import small_tables
from tl_pipeline.query.store_tables import encoders
from tl_pipeline.runs import records as runs
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.tables import (
    DUPLICATES,
    MANIFEST,
    METRICS,
    PREDICTIONS,
    QUARANTINE,
)

__all__ = ["ask", "build", "connect", "show"]

CATALOG = "catalog.duckdb"
# A query that reads them, or may: then they are brought to a mirror.
_EMBEDDINGS = re.compile(r"\bembeddings\b", re.IGNORECASE)
CONTENTS = """
SELECT name, comment FROM (
    SELECT table_name AS name, comment FROM duckdb_tables()
    UNION ALL
    SELECT view_name, comment FROM duckdb_views() WHERE NOT internal
) ORDER BY name
"""


def connect(store: Store) -> duckdb.DuckDBPyConnection:
    """Open the catalogue of ``store``, read-only.

    That of a mirror is built anew when other machines have finished or removed runs.

    Raises:
        StoreError: no run has built one yet.
    """
    file = store.root / CATALOG
    if store.mirror.url and _is_behind(store, file):
        build(store)
    if not file.exists():
        raise StoreError(f"{file} does not exist yet; `tl run DATASET` builds it")
    return duckdb.connect(file, read_only=True)


def ask(store: Store, sql: str) -> pa.Table:
    """The rows that ``sql`` gives.

    Raises:
        InvalidSpec: DuckDB refuses the query, or it gives no rows.
        StoreError: see ``connect``.
    """
    with connect(store) as connection:
        try:
            if store.mirror.url and _EMBEDDINGS.search(sql):
                for row in encoders(store):
                    EmbeddingFolder(store, row["encoder_key"]).gather()
            found = connection.sql(sql)
            if found is not None:
                return found.to_arrow_table()
        except duckdb.Error as error:
            raise InvalidSpec(f"{error}") from None
    raise InvalidSpec(f"{sql!r} gives no rows; ask with SELECT or FROM")


def show(rows: pa.Table) -> None:
    """Print ``rows`` as DuckDB's shell does, the middle of a long table left out."""
    duckdb.from_arrow(rows).show(max_rows=100, max_width=200)


def build(store: Store) -> Path:
    """Build the catalogue from the run records and replace the live one."""
    records = runs.every(store)
    _fetch(store, records)
    beside = store.root / f".{CATALOG}.{uuid.uuid4().hex}"
    connection = duckdb.connect()
    try:
        # The oldest format, so that an older DuckDB on an analyst's laptop reads it.
        connection.execute(
            f"ATTACH '{_quoted(beside)}' AS catalog (STORAGE_VERSION 'v1.0.0')"
        )
        connection.execute("USE catalog")
        for name, (rows, schema, comment) in small_tables(store, records).items():
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


def _is_behind(store: Store, file: Path) -> bool:
    """Whether other machines have added or removed run records since it was built."""
    wanted = {record.run_id for record in runs.every(store)}
    if not wanted or not file.exists():
        return bool(wanted)
    with duckdb.connect(file, read_only=True) as connection:
        found = connection.sql("SELECT run_id FROM runs").fetchall()
    return wanted != {run_id for (run_id,) in found}


def _fetch(store: Store, records: list[RunRecord]) -> None:
    """Bring to a mirror what the catalogue is made of.

    Of the embeddings that is one part, which a view must see when it is made. What is
    gone or damaged there is missing here, as in a local store.
    """
    if store.mirror.url is None:
        return
    store.mirror.fetch_each(store.root / "embeddings", "encoder.json")
    for record in runs.latest_of_each(records).values():
        store.find("manifests", record.manifest)
    for key in {r.evaluation: None for record in records for r in record.results}:
        store.find("evaluations", key)
    for row in encoders(store):
        if not any((store.root / "embeddings").glob("encoder=*/part-*.parquet")):
            EmbeddingFolder(store, row["encoder_key"]).gather(1)


def _views(store: Store, records: list[RunRecord]) -> Iterable[str]:
    latest = runs.latest_of_each(records).values()
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


def _quoted(text: object) -> str:
    return str(text).replace("'", "''")

"""Build, open and ask ``catalog.duckdb``, the SQL catalogue of a store.

It is built beside the live file and replaces it, under a lock, so that readers keep
what they have open and no finished run is lost. Views name files by absolute paths and
refuse to answer from another place than they were built for; whoever opens a copy or a
moved store by ``connect`` gets a catalogue of that store.
"""

import errno
import hashlib
import re
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

import duckdb
import pyarrow as pa

from tl_pipeline import progress
from tl_pipeline.errors import InvalidSpec, StoreError
from tl_pipeline.query import computed, macros, run_records, sandbox, views
from tl_pipeline.query.columns import COLUMNS
from tl_pipeline.runs import records
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder, described

FILE = "catalog.duckdb"
CONTENTS = "SELECT name, comment FROM help()"
_COLUMNS = """
SELECT table_name, column_name, data_type, comment FROM duckdb_columns()
WHERE NOT internal AND table_name LIKE ? ORDER BY table_name, column_index
"""
_COMMENTS = """
SELECT table_name, comment FROM duckdb_tables() WHERE table_name <> 'built'
UNION ALL SELECT view_name, comment FROM duckdb_views() WHERE NOT internal
"""
# With the records of finished and of refused runs, and of batches.
_FOLDERS = ("runs", "refused", "batches")
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


def connect(store: Store) -> duckdb.DuckDBPyConnection:
    """Open the SQL catalogue of ``store``, read-only.

    It is built anew first if it is missing, does not open, was built for another place
    or other run records than there are, or if a killed shell left its log beside it. Of
    a store that cannot be written to, it is built in a temporary folder.

    Raises:
        StoreError: no run has finished; or another program has it open for writing.
    """
    file = store.root / FILE
    for folder in _FOLDERS:
        store.mirror.fetch_folder(store.root / folder)
    if not (file.exists() or any(_record_files(store, name) for name in _FOLDERS)):
        raise StoreError(f"{file} does not exist yet; `tl run DATASET` builds it")
    log = _log(file).exists()
    opened = _open(file)
    if opened:
        if not log and _built(opened) == _state(store, file):
            return opened
        opened.close()
    try:
        return _opened(build(store))
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
    with tempfile.TemporaryDirectory(prefix="tl-sql-") as folder:
        beside = Path(folder).resolve() / FILE
        _write(store, beside, beside)
        return _opened(beside)  # it stays open when its name is gone


def ask(store: Store, sql: str) -> pa.Table:
    """The rows that ``sql`` gives, which reads the store and nothing else.

    Raises:
        InvalidSpec: it does more, DuckDB refuses it, or it gives no rows.
        StoreError: see ``connect``.
    """
    sandbox.check(sql)
    with connect(store) as connection:
        try:
            sandbox.close(connection, store.root)
            if store.mirror.url and macros.reads_embeddings().search(sql):
                for key in described(store):
                    EmbeddingFolder(store, key).gather()
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
    """Build the SQL catalogue from the run records and replace the live one.

    One process of a machine does so at a time: the later one sees the records of both.
    """
    file = store.root / FILE
    with store.lock("catalogue"):
        beside = store.root / f".{FILE}.{uuid.uuid4().hex}"
        try:
            _write(store, beside, file)
            # The log of a shell that was killed would be replayed over the new file.
            _log(file).unlink(missing_ok=True)
            beside.replace(file)
        finally:
            beside.unlink(missing_ok=True)
    return file


def _write(store: Store, beside: Path, home: Path) -> None:
    """Write the catalogue to ``beside``, to be opened as ``home``."""
    state, known = _state(store, home), run_records.known(_record_files(store))
    latest = records.latest_of_each(
        record
        for folder in sorted((store.root / "runs").glob("*/"))
        if (record := records.latest(store, folder.name))
    )
    batches = records.latest_batches(store)
    views.fetch(store, [*batches.values()])
    of_any_kind = {**batches, **latest}
    last = records.last_manifests(store, of_any_kind.values())
    with duckdb.connect() as connection:
        # The oldest format, so that an older DuckDB on an analyst's laptop reads it.
        connection.execute(
            f"ATTACH '{views.quoted(beside)}' AS written (STORAGE_VERSION 'v1.0.0')"
        )
        connection.execute("USE written")
        connection.execute("BEGIN")  # else each statement is written for itself
        made = computed.tables(store, of_any_kind, last, known)
        for name, table in made.items():
            _create(connection, name, table)
        connection.execute(f"CREATE TABLE built AS SELECT '{state}' AS state")
        connection.execute("COMMENT ON TABLE built IS 'What this file was built of.'")
        read = views.Read(
            list(latest.values()),
            list(batches.values()),
            set(last.values()),
            known,
            _record_files(store, "batches"),
        )
        for statement in views.statements(store, read, home):
            connection.execute(statement)
        _describe(connection)
        encoders = made["encoders"].rows
        for statement in macros.statements(encoders):
            connection.execute(statement)
        _help(connection, macros.examples(store, latest, encoders))
        connection.execute("COMMIT")
        connection.execute("USE memory")
        connection.execute("DETACH written")


def _describe(connection: duckdb.DuckDBPyConnection, table: str = "%") -> None:
    """Comment the columns of the tables and views like ``table``."""
    columns = connection.execute(_COLUMNS, [table]).fetchall()
    for statement in views.comments(column[:2] for column in columns):
        connection.execute(statement)


def _help(connection: duckdb.DuckDBPyConnection, names: Mapping[str, str]) -> None:
    """Make the macro ``help()`` and its table."""
    columns = connection.execute(_COLUMNS, ["%"]).fetchall()
    comments = dict(connection.execute(_COMMENTS).fetchall())
    rows = macros.help_rows(columns, comments, names)
    told = computed.Computed(rows, macros.HELP, "What help() gives.")
    _create(connection, "contents", told)
    _describe(connection, "contents")
    connection.execute("CREATE MACRO help() AS TABLE FROM contents")


def _create(
    connection: duckdb.DuckDBPyConnection, name: str, table: computed.Computed
) -> None:
    rows = pa.Table.from_pylist(list(table.rows), table.schema)
    connection.register("rows", rows)
    connection.execute(f"CREATE TABLE {name} AS FROM rows")
    connection.unregister("rows")
    comment = views.quoted(table.comment)
    connection.execute(f"COMMENT ON TABLE {name} IS '{comment}'")


def _open(file: Path) -> duckdb.DuckDBPyConnection | None:
    """The file, read-only; None if it is missing or DuckDB cannot read it.

    Raises:
        StoreError: another program has it open for writing.
    """
    if not file.exists():
        return None
    try:
        return _opened(file)
    except StoreError:
        raise
    except duckdb.Error as error:
        first = str(error).partition("\n")[0]
        progress.notice(f"{file} does not open and is built anew: {first}")
        return None


def _opened(file: Path) -> duckdb.DuckDBPyConnection:
    """Attach ``file`` to a DuckDB of its own: its settings are nobody else's."""
    connection = duckdb.connect()
    try:
        connection.execute(f"ATTACH '{views.quoted(file)}' AS catalog (READ_ONLY)")
        connection.execute("USE catalog")
    except duckdb.IOException as error:
        connection.close()
        if "lock" not in str(error):
            raise
        holder = re.search(r"PID (\d+)", str(error))
        who = f"process {holder[1]}" if holder else "another program"
        raise StoreError(
            f"{who} has {file} open for writing, and DuckDB then lets nobody else read "
            "it; close that shell, or open it with -readonly (read_only=True)"
        ) from None
    return connection


def _log(file: Path) -> Path:
    """Where DuckDB keeps what it has not yet written into ``file``."""
    return file.with_name(f"{file.name}.wal")


def _record_files(store: Store, folder: str = "runs") -> list[Path]:
    found = (store.root / folder).glob("*/[!.]*.json")
    return sorted(found, key=lambda file: (file.name, file.parent.name))


def _state(store: Store, home: Path) -> str:
    """What a catalogue depends on that anybody may have changed since it was built."""
    files = [file for name in _FOLDERS for file in _record_files(store, name)]
    names = [str(file.relative_to(store.root)) for file in files]
    made = (views.text(), macros.text(), str(COLUMNS))
    text = "\n".join([str(home), str(store.root), *made, *names])
    return hashlib.sha256(text.encode()).hexdigest()


def _built(connection: duckdb.DuckDBPyConnection) -> str | None:
    """The state that the catalogue says it was built of; None of an older version."""
    try:
        rows = connection.execute("SELECT state FROM built").fetchall()
    except duckdb.Error:
        return None
    return rows[0][0] if rows else None

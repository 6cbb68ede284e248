"""Build, open and ask ``catalog.duckdb``, the SQL catalogue of a store.

It is built beside the live file and replaces it, under a lock, so that readers keep
what they have open and no finished run is lost. Views name files by absolute paths and
refuse to answer from another place than they were built for; whoever opens a copy or a
moved store by ``connect`` gets a catalogue of that store.
"""

import errno
import hashlib
import re
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

import duckdb
import pyarrow as pa

from tl_pipeline import progress
from tl_pipeline.errors import InvalidSpec, StoreError
from tl_pipeline.query import computed, macros, run_records, sandbox, views
from tl_pipeline.query.neighbours import ASKED, Neighbours
from tl_pipeline.runs import records
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder, described

FILE = "catalog.duckdb"
CONTENTS = "SELECT name, comment FROM help()"
_COLUMNS = "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal"
_BUILT = "SELECT name, digest FROM written.built"
# With the records of finished and of refused runs, and of batches.
_FOLDERS = ("runs", "refused", "batches")
_TRIES = 20
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
        if not log and _built(opened) == state(store):
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

    It is asked again where parts of embeddings were merged meanwhile.

    Raises:
        InvalidSpec: it does more, DuckDB refuses it, or it gives no rows.
        StoreError: see ``connect``; or parts are merged whenever it is asked.
    """
    sandbox.check(sql)
    folder = store.root / "embeddings"
    reads = macros.reads_embeddings().search(sql)
    for _ in range(_TRIES if reads else 1):
        parts = set(folder.glob("*/part-*.parquet")) if reads else set()
        try:
            found = _answer(store, sql)
        except InvalidSpec:
            if all(part.exists() for part in parts):
                raise
        else:
            if all(part.exists() for part in parts):
                return found
    raise StoreError(f"{folder}: parts vanish while they are read")


def _answer(store: Store, sql: str) -> pa.Table:
    near = None
    with connect(store) as connection:
        try:
            if ASKED.search(sql):
                near = Neighbours(store, connection)
                near.put_into(connection)
            sandbox.close(connection, store.root)
            if store.mirror.url and macros.reads_embeddings().search(sql):
                for key in described(store):
                    EmbeddingFolder(store, key).gather()
            found = connection.sql(sql)
            if found is not None:
                return found.to_arrow_table()
        except duckdb.Error as error:
            said = str(error).removeprefix("Invalid Input Error: ")  # of error()
            raise (near and near.fault) or InvalidSpec(said) from None
    raise InvalidSpec(f"{sql!r} gives no rows; ask with SELECT or FROM")


def show(rows: pa.Table) -> None:
    """Print ``rows`` as DuckDB's shell does, the middle of a long table left out."""
    duckdb.from_arrow(rows).show(max_rows=150, max_width=200)


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


def state(store: Store, home: Path | None = None) -> str:
    """What a catalogue depends on that anybody may have changed since it was built."""
    files = [file for name in _FOLDERS for file in _record_files(store, name)]
    names = [str(file.relative_to(store.root)) for file in files]
    return _digest("\n".join([str(home or store.root / FILE), str(store.root), *names]))


def _write(store: Store, beside: Path, home: Path) -> None:
    """Write the catalogue to ``beside``, to be opened as ``home``."""
    now, known = state(store, home), run_records.known(_record_files(store))
    latest = records.latest_of_each(
        record
        for folder in sorted((store.root / "runs").glob("*/"))
        if (record := records.latest(store, folder.name))
    )
    batches = records.latest_batches(store)
    views.fetch(store, [*batches.values()])
    of_any_kind = {**batches, **latest}
    last = records.last_manifests(store, of_any_kind.values())
    read = views.Read(
        list(latest.values()),
        list(batches.values()),
        set(last.values()),
        known,
        _record_files(store, "batches"),
    )
    rows = computed.tables(store, of_any_kind, last, known)
    code = {
        **views.statements(store, read, home),
        **macros.statements(store, latest, rows["encoders"]),
    }
    rows["built"] = [{"name": name, "digest": _digest(code[name])} for name in code]
    rows["built"].append({"name": "", "digest": now})
    with duckdb.connect() as connection:
        kept = _begin(connection, beside, home)
        if kept and kept.keys() != {*code, ""}:
            kept = _begin(connection, beside, None)
        _make(connection, code, rows, kept)


def _begin(
    connection: duckdb.DuckDBPyConnection, beside: Path, home: Path | None
) -> dict[str, str]:
    """Attach ``beside`` for writing: a copy of ``home``, or empty if that is no use.

    Returns:
        What is there -> the digest of its statements.
    """
    connection.execute("DETACH DATABASE IF EXISTS written")
    beside.unlink(missing_ok=True)
    # The oldest format, so that an older DuckDB on an analyst's laptop reads it.
    attach = f"ATTACH '{views.quoted(beside)}' AS written (STORAGE_VERSION 'v1.0.0')"
    if home is None or not home.exists():
        connection.execute(attach)
        return {}
    try:
        shutil.copyfile(home, beside)
        connection.execute(attach)
        return dict(connection.execute(_BUILT).fetchall())
    except (FileNotFoundError, duckdb.Error):  # of an older version, or damaged
        return _begin(connection, beside, None)


def _make(
    connection: duckdb.DuckDBPyConnection,
    code: Mapping[str, str],
    rows: Mapping[str, list[computed.Row]],
    kept: Mapping[str, str],
) -> None:
    """Make what ``code`` tells but for what is ``kept``; tables are filled anew."""
    new = {n: c for n, c in code.items() if n in rows or kept.get(n) != _digest(c)}
    connection.execute("USE written")
    connection.execute("BEGIN")  # else each statement is written for itself
    for name, statements in new.items():
        connection.execute(statements)
        if rows.get(name):
            columns = dict.fromkeys(column for row in rows[name] for column in row)
            table = {column: [r.get(column) for r in rows[name]] for column in columns}
            connection.register("rows", pa.table(table))
            connection.execute(f"INSERT INTO {name} BY NAME FROM rows")
            connection.unregister("rows")
    found = connection.execute(_COLUMNS).fetchall()
    comments = [views.comment(*column) for column in found if column[0] in new]
    connection.execute(";".join(comments))
    connection.execute("COMMIT")
    connection.execute("USE memory")
    connection.execute("DETACH written")


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


def _digest(text: str) -> str:
    """The digest of ``text`` as this version would write and comment it."""
    made = (text, *map(views.text, ("views.sql", "macros.sql", "columns.txt")))
    return hashlib.sha256("\n".join(made).encode()).hexdigest()


def _built(connection: duckdb.DuckDBPyConnection) -> str | None:
    """The state that the catalogue says it was built of; None of an older version."""
    try:
        rows = connection.execute("SELECT digest FROM built WHERE name = ''").fetchall()
    except duckdb.Error:
        return None
    return rows[0][0] if rows else None

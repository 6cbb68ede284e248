"""MLflow's database, read without MLflow, whose import takes longer than most commands.

It is only read, and only if its schema is one that the installed MLflow knows.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import util
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tl_pipeline.errors import StoreError
from tl_pipeline.registry.entries import (
    EVALUATIONS,
    HISTORY,
    RegisteredModel,
    Version,
    history_of,
)

REBUILD = "`tl models rebuild` makes it again from the model folders"
_WAIT_S = 20.0  # for a process that writes
_DELETED = "Deleted_Internal"  # the stage of a version that was deleted


def read(file: Path) -> list[RegisteredModel]:
    """All registered models in the database ``file``.

    Raises:
        StoreError: it is damaged, half made, or of a newer MLflow.
    """
    with _opened(file) as database:
        return list(_models(database))


def is_logged(file: Path, experiment: str, evaluations: str) -> bool:
    """Whether a run of ``experiment`` with these evaluations is logged.

    Raises:
        StoreError: see ``read``.
    """
    with _opened(file) as database:
        found = database.execute(
            "SELECT 1 FROM tags JOIN runs USING (run_uuid)"
            " JOIN experiments USING (experiment_id)"
            " WHERE experiments.name = ? AND tags.key = ? AND tags.value = ?"
            " AND runs.lifecycle_stage = 'active'",
            (experiment, EVALUATIONS, evaluations),
        )
        return found.fetchone() is not None


def revision(file: Path) -> str:
    """The revision of its schema.

    Raises:
        StoreError: see ``read``.
    """
    with _opened(file) as database:
        return _revision(database)


@contextmanager
def _opened(file: Path) -> Iterator[sqlite3.Connection]:
    # Who died while writing left a journal: only who may write can roll that back.
    mode = "rw" if file.with_name(f"{file.name}-journal").exists() else "ro"
    uri = f"file:{quote(str(file))}?mode={mode}"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=_WAIT_S)) as database:
            found = _revision(database)
            if not _is_known(found):
                raise StoreError(
                    f"{file} was written by a newer MLflow (schema {found}): install "
                    f"that one; or {REBUILD}"
                )
            yield database
    except sqlite3.Error as error:
        raise StoreError(
            f"{file}, MLflow's database, is damaged or half made ({error}): {REBUILD}"
        ) from None


def _revision(database: sqlite3.Connection) -> str:
    (found,) = database.execute(
        "SELECT version_num FROM alembic_version"
    ).fetchone() or ("none",)
    return found


def _is_known(found: str) -> bool:
    """Whether the installed MLflow has a migration that ends in schema ``found``."""
    package = util.find_spec("mlflow")
    places = (package and package.submodule_search_locations) or []
    folders = [Path(place, "store", "db_migrations", "versions") for place in places]
    return any(any(folder.glob(f"{found}_*.py")) for folder in folders)


def _models(database: sqlite3.Connection) -> Iterator[RegisteredModel]:
    tags = _grouped(database, "name, version, key, value FROM model_version_tags", 2)
    aliases = _grouped(
        database, "name, alias, version FROM registered_model_aliases", 1
    )
    params = _grouped(
        database,
        "run_uuid, key, value FROM params WHERE run_uuid IN"
        " (SELECT run_id FROM model_versions)",
        1,
    )
    metrics = _grouped(
        database,
        "run_uuid, key, value FROM latest_metrics WHERE NOT is_nan AND run_uuid IN"
        " (SELECT run_id FROM model_versions)",
        1,
    )
    versions: dict[str, list[Version]] = defaultdict(list)
    for name, number, run in database.execute(
        "SELECT name, version, run_id FROM model_versions WHERE current_stage IS NULL"
        " OR current_stage != ? ORDER BY name, version",
        (_DELETED,),
    ):
        told = Version.of(number, tags[name, number], params[run,], metrics[run,])
        versions[name].append(told)
    histories = _grouped(database, "name, key, value FROM registered_model_tags", 1)
    for (name,) in database.execute("SELECT name FROM registered_models ORDER BY name"):
        yield RegisteredModel(
            name=name,
            versions=tuple(versions[name]),
            aliases=aliases[name,],
            history=history_of(histories[name,].get(HISTORY)),
        )


def _grouped(
    database: sqlite3.Connection, what: str, width: int
) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The last two columns as a dictionary, for each of the first ``width`` ones."""
    found: dict[tuple[Any, ...], dict[str, Any]] = defaultdict(dict)
    for row in database.execute(f"SELECT {what}"):
        found[row[:width]][row[width]] = row[width + 1]
    return found

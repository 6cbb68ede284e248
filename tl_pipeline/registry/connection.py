"""Where the registry is, and the way to read it and to change it.

By default it is ``mlflow.db`` in the store. A database of ours is made, upgraded and
made again beside and then renamed, so a kill or a full disk never leaves half of one.
A store at a URL keeps it as ``registry/mlflow-<number>.db``: a change makes the next
number, which only one machine can. ``MLFLOW_TRACKING_URI`` names another registry: a
server, or a database, that is asked through MLflow alone.
"""

import logging
import os
import re
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tl_pipeline.errors import StoreError
from tl_pipeline.registry import sqlite
from tl_pipeline.registry.entries import RegisteredModel
from tl_pipeline.store.artifacts import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from tl_pipeline.registry.tracking import Registry

VARIABLE = "MLFLOW_TRACKING_URI"
FILE = "mlflow.db"
FOLDER = "registry"
_NUMBERED = re.compile(r"mlflow-(\d{6,})\.db")
# Without these MLflow calls home, keeps deleted files open, and asks a server that is
# down for minutes.
_ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_Result = TypeVar("_Result")
Work = Callable[["Registry"], _Result]


def foreign(store: Store) -> str | None:
    """The URI that ``MLFLOW_TRACKING_URI`` names, if that is not the store's own."""
    uri = os.environ.get(VARIABLE, "").strip()
    scheme, _, path = uri.partition(":///")
    own = store.root / FILE
    ours = scheme == "sqlite" and Path(path).expanduser().resolve() == own
    return None if ours or not uri else uri


def uri(store: Store) -> str:
    """What MLflow is told to find the registry of ``store``."""
    return foreign(store) or f"sqlite:///{store.root / FILE}"


def shown_uri(store: Store) -> str:
    """``uri`` without a password, for people."""
    return _shown(uri(store))


def read(store: Store, name: str | None = None) -> list[RegisteredModel] | None:
    """The registered models, or the one of that ``name``; None without a database.

    MLflow is imported for a registry that is not the store's own.

    Raises:
        StoreError: the registry does not answer, or is damaged or of a newer MLflow.
    """
    if other := foreign(store):
        with _answering(other):
            from tl_pipeline.registry.tracking import Registry  # noqa: PLC0415

            return Registry(_client(other), store, own=False).models(name)
    file = _current(store)
    if file is None:
        return None
    return [one for one in sqlite.read(file) if name in (None, one.name)]


def is_logged(store: Store, experiment: str, evaluations: str) -> bool:
    """Whether a run of ``experiment`` with these evaluations is logged.

    Raises:
        StoreError: see ``read``.
    """
    if other := foreign(store):
        with _answering(other):
            from tl_pipeline.registry.tracking import Registry  # noqa: PLC0415

            registry = Registry(_client(other), store, own=False)
            return registry.is_logged(experiment, evaluations)
    file = _current(store)
    return file is not None and sqlite.is_logged(file, experiment, evaluations)


def change(store: Store, work: Work[_Result], fill: Work[None]) -> _Result:
    """Let ``work`` change the registry, one process of this machine at a time.

    ``fill`` is called first with a new, empty database where there is none. At a URL
    ``work`` is called again if another machine was faster.

    Raises:
        StoreError: see ``read``; or the registry cannot be written.
    """
    with store.lock("registry"):
        if other := foreign(store):
            with _answering(other):
                return work(_opened(_client(other), store, own=False))
        if store.mirror.url:
            return _change_at_url(store, work, fill)
        file = store.root / FILE
        if file.exists():
            _upgrade(store, file)
            return _work(store, file, work)
        with _building(store) as beside:
            _fill(store, beside, fill)
            result = _work(store, beside, work)
            beside.replace(file)
            return result


def remake(store: Store, fill: Work[None]) -> None:
    """Replace the database by a new one that ``fill`` fills; the old is set aside.

    Raises:
        StoreError: it cannot be written, or the registry is not the store's own.
    """
    if other := foreign(store):
        raise StoreError(
            f"the registry is {_shown(other)}, not one of this store; unset {VARIABLE} "
            "to make the store's own again"
        )
    with store.lock("registry"), _building(store) as beside:
        _fill(store, beside, fill)
        if store.mirror.url:
            last = _last_number(store)
            number = last + 1 if last else _first_number(store)
            if not _append(store, beside, number):
                raise StoreError(
                    f"{store.uri}: another machine changed the registry just now; "
                    "look at `tl models`, and rebuild again"
                )
            return
        file = store.root / FILE
        if file.exists():
            file.rename(file.with_name(f".damaged-{FILE}-{uuid.uuid4().hex[:8]}"))
        beside.replace(file)


def examine(store: Store) -> str:
    """Say in what state the registry is.

    Raises:
        StoreError: it cannot be used.
    """
    found = read(store)
    if found is None:
        return "none yet"
    versions = sum(len(one.versions) for one in found)
    return f"{shown_uri(store)}: {len(found)} models, {versions} versions"


def _current(store: Store) -> Path | None:
    """The database of ``store`` as it is now, if there is one."""
    if store.mirror.url is None:
        file = store.root / FILE
        return file if file.exists() else None
    while number := _last_number(store):
        file = _numbered(store, number)
        try:
            store.mirror.fetch([file])
        except FileNotFoundError:  # two changes since it was listed
            continue
        return file
    return None


def _change_at_url(store: Store, work: Work[_Result], fill: Work[None]) -> _Result:
    while True:
        with _building(store) as beside:
            if file := _current(store):
                following = _number_of(file) + 1
                shutil.copyfile(file, beside)
                _upgrade(store, beside)
            else:
                following = _first_number(store)
                _fill(store, beside, fill)
            result = _work(store, beside, work)
            if _append(store, beside, following):
                return result


def _append(store: Store, database: Path, number: int) -> bool:
    """Make ``database`` the current one; False if another machine was faster."""
    if _last_number(store) >= number:
        return False
    if not store.mirror.append(_numbered(store, number), database.read_bytes()):
        return False
    database.replace(store.root / FILE)  # for people, and for MLflow's pages
    old = _numbered(store, number - 2)  # a reader may be fetching the one before
    store.mirror.remove([old.relative_to(store.root).as_posix()])
    old.unlink(missing_ok=True)
    return True


def _first_number(store: Store) -> int:
    """That of a new database: after all that mirrors may hold of one that was lost."""
    folder = store.root / FOLDER
    return int(time.time()) if store.mirror.listing(folder) else 1


def _last_number(store: Store) -> int:
    folder = store.root / FOLDER
    store.mirror.forget(folder)
    found = map(_NUMBERED.fullmatch, store.mirror.listing(folder))
    return max((int(match[1]) for match in found if match), default=0)


def _number_of(file: Path) -> int:
    return int(file.stem.removeprefix("mlflow-"))


def _numbered(store: Store, number: int) -> Path:
    return store.root / FOLDER / f"mlflow-{number:06d}.db"


@contextmanager
def _building(store: Store) -> Iterator[Path]:
    """A place for a database that is being made; it vanishes when the block ends."""
    folder = store.root / ".building" / uuid.uuid4().hex
    folder.mkdir(parents=True)
    try:
        yield folder / FILE
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fill(store: Store, file: Path, fill: Work[None]) -> None:
    with _answering(str(file)):
        make_empty(file)
    _work(store, file, fill)


def make_empty(file: Path) -> None:
    """Make MLflow's database, without models or runs, at ``file``.

    Its some seventy migrations run in memory: on a disk each would wait for it.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.store.db import utils  # noqa: PLC0415 - two seconds
    from mlflow.store.tracking import sqlalchemy_store  # noqa: F401, PLC0415 - its tables
    from sqlalchemy import StaticPool, create_engine  # noqa: PLC0415

    with (
        closing(sqlite3.connect(":memory:")) as memory,
        closing(sqlite3.connect(file)) as on_disk,
    ):
        engine = create_engine(
            "sqlite://", creator=lambda: memory, poolclass=StaticPool
        )
        utils._initialize_tables(engine)  # noqa: SLF001 - as MLflow fills an empty file
        memory.backup(on_disk)


def _work(store: Store, file: Path, work: Work[_Result]) -> _Result:
    with _answering(str(file)):
        return work(_opened(_client(f"sqlite:///{file}"), store, own=True))


def _upgrade(store: Store, file: Path) -> None:
    """Bring the schema of ``file`` to that of the installed MLflow, beside.

    Raises:
        StoreError: it is damaged, half made, or of a newer MLflow.
    """
    found = sqlite.revision(file)
    with _answering(str(file)):
        from mlflow.store.db import utils  # noqa: PLC0415

        if found == utils._get_latest_schema_revision():  # noqa: SLF001 - no public one
            return
        with _building(store) as beside:
            with (
                closing(sqlite3.connect(file)) as old,
                closing(sqlite3.connect(beside)) as new,
            ):
                old.backup(new)
            engine = utils.create_sqlalchemy_engine(f"sqlite:///{beside}")
            utils._upgrade_db(engine)  # noqa: SLF001 - what `mlflow db upgrade` calls
            beside.replace(file)


def _opened(client: "MlflowClient", store: Store, *, own: bool) -> "Registry":
    from tl_pipeline.registry.tracking import Registry  # noqa: PLC0415 - imports MLflow

    return Registry(client, store, own=own)


def _client(where: str) -> "MlflowClient":
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient  # noqa: PLC0415 - two seconds

    # Of a server, where models are may be said apart, by MLFLOW_REGISTRY_URI.
    registry = where if where.startswith("sqlite:") else None
    return MlflowClient(where, registry)


@contextmanager
def _answering(where: str) -> Iterator[None]:
    """Errors of the registry at ``where`` become one message, without log lines.

    Raises:
        StoreError: the registry does not answer, or refuses.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401, PLC0415 - sets the levels of its loggers
    from alembic.util import CommandError  # noqa: PLC0415
    from mlflow.exceptions import MlflowException  # noqa: PLC0415
    from sqlalchemy.exc import OperationalError, SQLAlchemyError  # noqa: PLC0415

    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    except (MlflowException, SQLAlchemyError, CommandError, ImportError) as error:
        reason = _shown(" ".join(str(error).split()))[:400]
        cure = (
            f"if it is damaged, {sqlite.REBUILD}"
            if where.endswith(FILE)
            else f"{VARIABLE} or --registry names it"
        )
        # What may pass: a server that is down, or answers 5xx.
        status = getattr(error, "get_http_status_code", lambda: 0)()
        refused = status >= 500 or isinstance(error, OperationalError)
        down = refused and "://" in where and not where.startswith("sqlite")
        raise StoreError(
            f"the registry {_shown(where)} does not do what is asked: {reason}; {cure}"
        ) from (ConnectionError(reason) if down else None)
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _shown(text: str) -> str:
    """``text`` without the passwords of its URLs."""
    return re.sub(r"//[^/@\s]+@", "//", text)

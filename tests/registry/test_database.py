"""MLflow's database in the store: made whole, found broken, made again."""

import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.exhaustive import more
from tests.submissions import right, submitted
from tl_pipeline.errors import StoreError
from tl_pipeline.registry import (
    backup,
    connection,
    index,
    rebuilding,
    registration,
    sqlite,
)
from tl_pipeline.store.artifacts import Store


def register(store: Store, head: str, wrong: int = 0, **options: str) -> int:
    given = submitted(store, head, right(50, wrong=wrong), **options)
    return registration.register(store, given).version


def execute(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


def table(store: Store) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in index.models(store)]


# Reading without MLflow


def test_sqlite_and_mlflow_say_the_same(store: Store, monkeypatch: pytest.MonkeyPatch):
    """More models and versions than fit on one page of what MLflow is asked for."""
    from tl_pipeline.registry import tracking

    register(store, "ridge")
    client = connection._client(connection.uri(store))
    for number in range(16):
        client.create_registered_model(f"model {number:03d}")
    for _ in range(8):
        made = client.create_model_version("photos", "file:///elsewhere")
    client.delete_model_version("photos", made.version)
    client.set_registered_model_alias("photos", "second", "2")
    monkeypatch.setattr(tracking, "_PAGE", 7)
    registry = tracking.Registry(client, store, own=True)
    found = index.registered(store)
    assert len(found) == 17
    (photos,) = [model for model in found if model.name == "photos"]
    assert [version.number for version in photos.versions] == list(range(1, 9))
    assert photos.aliases == {"champion": 1, "second": 2}
    by_mlflow = registry.models()
    assert sorted(by_mlflow, key=lambda m: m.name) == sorted(
        found, key=lambda m: m.name
    )
    assert registry.models("photos") == [photos]


def test_what_runs_are_logged_is_seen_by_both(store: Store):
    from tl_pipeline.registry import tracking

    given = submitted(store, "ridge", right(50))
    registration.register(store, given)
    client = connection._client(connection.uri(store))
    registry = tracking.Registry(client, store, own=True)
    from tl_pipeline.registry.logged_run import fingerprint

    for key, known in ((fingerprint(given.evaluations), True), ("0" * 32, False)):
        assert connection.is_logged(store, "photos", key) is known
        assert registry.is_logged("photos", key) is known


def test_reading_imports_no_mlflow(store: Store):
    register(store, "ridge")
    code = (
        "import sys\n"
        "from tl_pipeline.registry import index\n"
        "from tl_pipeline.store.artifacts import Store\n"
        "(row,) = index.models(Store.open(sys.argv[1]))\n"
        "names = {'mlflow', 'sqlalchemy', 'torch', 'sklearn', 'scipy.stats'}\n"
        "print(row['version'], sorted(names & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, store.root],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    assert done.stdout == "1 []\n"


# Broken databases

BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda file: file.write_bytes(b""), "damaged or half made"),
    "text": (lambda file: file.write_text("no database" * 99), "damaged or half made"),
    "short": (
        lambda file: file.write_bytes(file.read_bytes()[:300_000]),
        "damaged or half made",
    ),
    # as a kill during the migrations of an older version left it
    "half made": (
        lambda file: execute(
            file,
            "DROP TABLE registered_model_aliases",
            "UPDATE alembic_version SET version_num = '27a6a02d2cf1'",
        ),
        "half made (no such table: registered_model_aliases)",
    ),
    "without a schema": (
        lambda file: execute(file, "DROP TABLE alembic_version"),
        "half made (no such table: alembic_version)",
    ),
    "newer": (
        lambda file: execute(file, "UPDATE alembic_version SET version_num = 'f00'"),
        "was written by a newer MLflow (schema f00): install that one",
    ),
}


@pytest.mark.parametrize(
    "name", ["short", "half made", "newer", *more("empty", "text", "without a schema")]
)
def test_a_broken_database_is_one_message_with_the_cure(store: Store, name: str):
    register(store, "ridge")
    register(store, "poor", wrong=5)
    before = table(store)
    damage, said = BREAKS[name]
    damage(store.root / "mlflow.db")
    new = submitted(store, "lda", right(50))
    for ask in (
        lambda: index.models(store),
        lambda: index.load_model(store, "photos"),
        lambda: registration.register(store, new),
        lambda: registration.promote(store, "photos", 2, ""),
        lambda: connection.examine(store),
    ):
        with pytest.raises(StoreError) as error:
            ask()
        assert said in str(error.value)
        assert "`tl models rebuild` makes it again" in str(error.value)
    new_folder = store.path(new.model)
    new_folder.rename(new_folder.with_name(".elsewhere"))
    rebuilding.rebuild(store)
    assert table(store) == before
    assert [p.name[:19] for p in store.root.glob(".damaged*")] == [
        ".damaged-mlflow.db-"
    ]


def test_an_older_schema_is_upgraded_beside(store: Store):
    from alembic import command
    from mlflow.store.db import utils

    register(store, "ridge")
    file = store.root / "mlflow.db"
    newest = sqlite.revision(file)
    engine = utils.create_sqlalchemy_engine(f"sqlite:///{file}")
    config = utils._get_alembic_config(str(engine.url))
    with engine.begin() as made:
        config.attributes["connection"] = made
        command.downgrade(config, "-1")
    assert sqlite.revision(file) != newest
    assert [row["version"] for row in index.models(store)] == [1]
    assert register(store, "lda") == 2
    assert sqlite.revision(file) == newest
    assert [row["version"] for row in index.models(store)] == [2, 1]
    assert list((store.root / ".building").iterdir()) == []


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError(28, "No space left")])
def test_what_stops_its_making_leaves_no_half_of_it(
    store: Store, monkeypatch: pytest.MonkeyPatch, fault: BaseException
):
    def stop(file: Path) -> None:
        execute(file, "CREATE TABLE trace_info (id INT)")
        raise fault

    given = submitted(store, "ridge", right(50))
    with monkeypatch.context() as patch:
        patch.setattr(connection, "make_empty", stop)
        with pytest.raises(type(fault) if isinstance(fault, OSError) else fault):
            registration.register(store, given)
    assert not (store.root / "mlflow.db").exists()
    assert list((store.root / ".building").iterdir()) == []
    assert registration.register(store, given).version == 1


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may become larger, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_does_no_harm(store: Store):
    register(store, "ridge")
    given = submitted(store, "lda", right(50), others=[f"h{n}" for n in range(40)])
    file = store.root / "mlflow.db"
    with largest_file(file.stat().st_size), pytest.raises(StoreError) as error:
        registration.register(store, given)
    assert f"the registry {file} does not do what is asked" in str(error.value)
    assert registration.register(store, given).version == 2
    assert [row["aliases"] for row in index.models(store)] == [["champion"], []]


# The database made again


def test_a_lost_database_is_made_again_with_numbers_and_aliases(store: Store):
    for head, wrong in (("one", 0), ("two", 0), ("poor", 5), ("four", 0)):
        register(store, head, wrong)
    register(store, "other", dataset="paper")
    client = connection._client(connection.uri(store))
    client.delete_model_version("photos", "2")
    client.set_registered_model_alias("photos", "second", "3")
    registration.promote(store, "photos", 1, "it is small")
    before, history = table(store), index.find(store, "photos").history
    assert [row[1] for row in before] == [1, 4, 3, 1]
    (store.root / "mlflow.db").unlink()
    with pytest.raises(StoreError) as error:
        index.models(store)
    assert str(error.value) == (
        f"{store.root / 'mlflow.db'} is gone, in which 4 versions of paper, photos "
        "were registered: `tl models rebuild` makes it again; if they are in another "
        "registry, name it by MLFLOW_TRACKING_URI or --registry"
    )
    rebuilding.rebuild(store)
    assert table(store) == before
    assert index.find(store, "photos").history == history
    assert register(store, "five") == 5


def test_a_run_makes_a_lost_database_again_by_itself(store: Store):
    register(store, "one")
    register(store, "two")
    (store.root / "mlflow.db").unlink()
    assert register(store, "poor", wrong=5) == 3
    rows = index.models(store)
    assert [row["version"] for row in rows] == [3, 2, 1]
    assert [row["aliases"] for row in rows] == [[], ["champion"], []]


def test_without_a_backup_folders_are_numbered_by_their_age(store: Store):
    given = [submitted(store, head, right(50)) for head in ("one", "two", "three")]
    for number, one in enumerate(given):
        file = store.path(one.model) / "provenance.json"
        text = file.read_text()
        at = text.index('"finished": "') + len('"finished": "')
        file.write_text(f"{text[:at]}202{5 - number}{text[at + 4 :]}")
    found = rebuilding.rebuild(store)
    assert [v.head for v in found[0].versions] == ["three", "two", "one"]
    assert found[0].champion is None
    made = registration.register(store, given[0])
    assert (made.version, made.champion) == (3, True)
    assert made.reason == "there was no champion"


def test_a_damaged_backup_is_named(store: Store):
    register(store, "ridge")
    (file,) = (store.root / "registry").iterdir()
    file.write_text("")
    with pytest.raises(StoreError, match=r"photos.backup.json is damaged.*Delete it"):
        backup.read(store)


# Other registries


def test_another_database_is_asked_through_mlflow(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two stores, such as those of two machines, share versions and champion."""
    uri = f"sqlite:///{tmp_path / 'shared.db'}"
    connection.make_empty(tmp_path / "shared.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    other = Store(tmp_path / "other")
    other.create()
    assert register(store, "ridge") == 1
    assert register(other, "poor", wrong=5) == 2
    assert [row["version"] for row in index.models(store)] == [2, 1]
    assert index.models(other)[0]["head"] == "poor"
    assert not (store.root / "mlflow.db").exists()
    with pytest.raises(StoreError, match="unset MLFLOW_TRACKING_URI"):
        rebuilding.rebuild(store)
    client = connection._client(uri)
    place = client.get_model_version_download_uri("photos", "1")
    assert place.startswith(f"file://{store.root}/mlflow/photos/models/m-")
    assert Path(place[7:], "model.json").is_file()


def test_the_stores_own_database_may_be_named_too(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store.root / 'mlflow.db'}")
    assert connection.foreign(store) is None
    assert register(store, "ridge") == 1


def test_a_server_that_is_down_is_one_message_without_its_password(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StoreError) as error:
        index.models(store)
    said = str(error.value)
    assert said.startswith("the registry http://127.0.0.1:9 does not do what is asked")
    assert said.endswith("; MLFLOW_TRACKING_URI or --registry names it")
    assert "secret" not in said
    assert "\n" not in said

"""The registry of a store at a URL: one database, which several machines change."""

import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.exhaustive import more
from tests.object_store import ObjectStore
from tests.submissions import right, submitted
from tl_pipeline.errors import StoreError
from tl_pipeline.registry import connection, index, rebuilding, registration
from tl_pipeline.registry.registration import Registration, Submission
from tl_pipeline.store.artifacts import Store

At = Callable[[str], Store]


def listed(store: Store) -> list[tuple[object, ...]]:
    return [(r["version"], r["head"], r["aliases"]) for r in index.models(store)]


@pytest.mark.parametrize("machines", ["AB", *more("ABCD")])
def test_machines_that_register_at_the_same_time_give_no_number_twice(
    at: At, machines: str
):
    at("A").create()
    stores = [at(name) for name in machines]
    given = [
        submitted(store, f"h{number}", right(50, wrong=number))
        for number, store in enumerate(stores)
    ]
    start = threading.Barrier(len(stores))

    def register(pair: tuple[Store, Submission]) -> Registration:
        start.wait()
        return registration.register(*pair)

    with ThreadPoolExecutor(len(stores)) as threads:
        found = list(threads.map(register, zip(stores, given, strict=True)))
    numbers = list(range(1, len(machines) + 1))
    assert sorted(one.version for one in found) == numbers
    seen = [listed(at(name)) for name in [*machines, "E"]]
    assert all(rows == seen[0] for rows in seen)
    heads = {head for _, head, _ in seen[0]}
    assert heads == {f"h{number - 1}" for number in numbers}
    # whoever comes last, the best of those that came is champion
    (best,) = [head for _, head, aliases in seen[0] if aliases]
    assert best == "h0"


def test_a_model_is_registered_once_by_whoever_comes_first(at: At):
    at("A").create()
    first, second = at("A"), at("B")
    there = registration.register(first, submitted(first, "ridge", right(50)))
    again = registration.register(second, submitted(second, "ridge", right(50)))
    assert (again.version, again.model, again.champion) == (1, there.model, True)


@pytest.mark.exhaustive  # a local one: test_database.py
def test_the_last_two_databases_are_kept(at: At, object_server: ObjectStore, url: str):
    at("A").create()
    for number, head in enumerate(("one", "two", "three")):
        store = at("AB"[number % 2])
        registration.register(store, submitted(store, head, right(50)))
    names = {n for n in object_server.objects(url) if n.endswith(".db")}
    assert names == {"registry/mlflow-000002.db", "registry/mlflow-000003.db"}
    registration.roll_back(at("C"), "photos", "")
    assert [row[2] for row in listed(at("A"))] == [[], ["champion"], []]


def test_files_of_a_version_lie_at_the_url_as_mlflow_reads_them(
    at: At, object_server: ObjectStore, url: str
):
    store = at("A")
    store.create()
    made = registration.register(store, submitted(store, "ridge", right(50)))
    with sqlite3.connect(store.root / "mlflow.db") as database:
        (source,) = database.execute("SELECT source FROM model_versions").fetchone()
    assert source.startswith(f"{url}/mlflow/photos/models/m-")
    there = object_server.objects(source)
    folder = store.root / "models" / made.model
    assert there == {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_lost_database_at_a_url_is_made_again(
    at: At, object_server: ObjectStore, url: str
):
    store = at("A")
    store.create()
    for head, wrong in (("one", 0), ("poor", 5)):
        registration.register(store, submitted(store, head, right(50, wrong=wrong)))
    before = listed(at("B"))
    for name in list(object_server.objects(url)):
        if name.endswith(".db"):
            store.mirror.remove([name])
    with pytest.raises(StoreError, match="in which 2 versions of photos were"):
        index.models(at("B"))
    rebuilding.rebuild(at("B"))
    assert listed(at("A")) == listed(at("C")) == before


def test_a_change_that_is_not_sent_is_none(at: At, object_server: ObjectStore):
    store = at("A")
    store.create()
    given = submitted(store, "ridge", right(50))
    object_server.before = lambda method, path: (
        403 if method == "PUT" and path.endswith(".db") else None
    )
    with pytest.raises(StoreError):
        registration.register(store, given)
    object_server.before = None
    assert connection.read(at("A")) is None
    assert registration.register(at("A"), given).version == 1

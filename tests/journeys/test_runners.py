"""Embed on real workers of Dask and Ray: the same table, also if one is killed."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.command_line import in_this_process
from tests.conftest import REPOSITORY
from tests.exhaustive import more
from tests.object_store import ObjectStore
from tests.prefect_server import flow_server
from tl_pipeline.config.specs import HeadSpec, RunSpec
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.pipeline import wiring
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder

PART_ROWS, IMAGES = 8, 240
SHARDS = IMAGES // PART_ROWS
# Ray's workers step back behind all others, here behind the other tests.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - as Ray reads it

pytestmark = [
    pytest.mark.filterwarnings(
        # Prefect's test server and both engines leave sockets and processes to the
        # garbage collector.
        "ignore::pytest.PytestUnraisableExceptionWarning",
        "ignore::ResourceWarning",
        "ignore::DeprecationWarning",
        "ignore:Tip. In future versions of Ray:FutureWarning",
    ),
]


@pytest.fixture(params=["ray", *more("dask")])
def runner(request: pytest.FixtureRequest) -> str:
    """An engine that is installed."""
    why = f"pip install 'tl-pipeline[{request.param}]'"
    pytest.importorskip(f"prefect_{request.param}", reason=why)
    return request.param


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """One Prefect server with a database of its own for this file."""
    with flow_server():
        yield


@pytest.fixture(scope="module")
def photos(
    tmp_path_factory: pytest.TempPathFactory,
    crops: Callable[[str, int], Image.Image],
) -> Path:
    """Small photos of two classes."""
    root = tmp_path_factory.mktemp("photos")
    for label in ("china", "flower"):
        (root / label).mkdir()
        for number in range(IMAGES // 2):
            crops(label, number).save(root / label / f"{number:03d}.jpg")
    return root


@pytest.fixture(scope="module")
def expected(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> "Table":
    """What a run in this process gives."""
    store = Store.open(tmp_path_factory.mktemp("local") / "store")
    spec = RunSpec(
        dataset=str(photos),
        heads=(HeadSpec(name="logistic", params={"C": 0.1}),),
        controls=False,
        part_rows=PART_ROWS,
    )
    return Table(store, wiring.run(wiring.prepare(spec, store)))


class Table:
    """The rows of the one encoder of a run."""

    def __init__(self, store: Store, record: RunRecord) -> None:
        (step,) = (s for s in record.steps if s.stage == "embed")
        folder = EmbeddingFolder(store, step.keys["encoder"])
        self.rows = [
            image_id
            for rows in folder.parts().whole.values()
            for image_id in rows["image_id"].to_pylist()
        ]
        self.parts = sorted(file.name for file in folder.parts().whole)
        self.left = [f.name for f in folder.path.iterdir() if f.name[0] == "."]
        self.vectors = folder.load(self.rows).vectors
        self.step = step


def spread_out(
    photos: Path, store: Path | str, runner: str, address: str | None = None
) -> Table:
    from flows.transfer_learning import transfer_learning

    record = transfer_learning(
        str(photos),
        heads=["logistic:C=0.1"],
        controls=False,
        part_rows=PART_ROWS,
        store=str(store),
        runner=runner,
        address=address,
    )
    return Table(Store.open(store), record)


def assert_equal(found: Table, expected: Table) -> None:
    assert sorted(found.rows) == sorted(set(expected.rows))
    assert found.parts == expected.parts
    assert found.left == []
    assert found.vectors.shape == expected.vectors.shape
    cosine = (found.vectors * expected.vectors).sum(1)
    cosine /= np.linalg.norm(found.vectors, axis=1)
    cosine /= np.linalg.norm(expected.vectors, axis=1)
    assert cosine.min() >= 0.9999
    assert not found.step.cached
    assert found.step.units == IMAGES


# test_mirror.py has a worker elsewhere, but none of an engine.
@pytest.mark.exhaustive
@pytest.mark.usefixtures("server")
def test_workers_make_it_in_an_object_store_which_each_mirrors_for_itself(
    photos: Path,
    url: str,
    object_server: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    expected: Table,
):
    pytest.importorskip("prefect_dask", reason="pip install 'tl-pipeline[dask]'")
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "flow"))
    with dask_workers(tmp_path, "A", "B") as address:
        found = spread_out(photos, url, "dask", address)
    assert_equal(found, expected)
    assert_sent(object_server, url, expected)
    for name in "AB":
        mirrored = list((tmp_path / name).glob("*/embeddings/*/part-*"))
        assert 0 < len(mirrored) < len(expected.parts)


@pytest.mark.exhaustive  # workers of Dask make it there in every `make test`
@pytest.mark.usefixtures("server")
def test_workers_of_ray_make_it_in_an_object_store(
    photos: Path,
    url: str,
    object_server: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    expected: Table,
):
    pytest.importorskip("prefect_ray", reason="pip install 'tl-pipeline[ray]'")
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "all"))
    assert_equal(spread_out(photos, url, "ray"), expected)
    assert_sent(object_server, url, expected)


def assert_sent(server: ObjectStore, url: str, expected: Table) -> None:
    """The parts are in the object store, and no lists of partitions any more."""
    objects = server.objects(url)
    parts = [name.rpartition("/")[2] for name in objects if "/part-" in name]
    assert parts == expected.parts
    assert not [name for name in objects if ".building" in name]


@contextmanager
def dask_workers(folder: Path, *names: str) -> Iterator[str]:
    """The address of a cluster whose workers have mirrors of their own."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=0, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        worker = (sys.executable, "-m", "distributed.cli.dask_worker", address)
        options = ("--nthreads", "1", "--no-nanny", "--no-dashboard")
        started = [
            subprocess.Popen(
                [*worker, *options, "--local-directory", str(folder)],
                cwd=REPOSITORY,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "TL_CACHE": str(folder / name)},
            )
            for name in names
        ]
        try:
            with cluster.get_client() as client:
                client.wait_for_workers(len(names), timeout=60)
            yield address
        finally:
            for process in started:
                process.kill()
                process.wait()


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("server")
def test_workers_make_the_table_of_a_local_run_though_one_is_killed(
    photos: Path, tmp_path: Path, runner: str, expected: Table
):
    """They start and stop as without the kill, which costs nothing but time."""
    store, killed, ended = tmp_path / "store", [], threading.Event()
    watch = threading.Thread(target=kill_a_worker, args=(store, runner, killed, ended))
    watch.start()
    try:
        found = spread_out(photos, store, runner)
    finally:
        ended.set()
        watch.join()
    assert len(killed) == 1
    assert 0 < killed[0] < SHARDS
    assert_equal(found, expected)
    asked = expected.step.reason
    assert found.step.reason == f"{asked}; in {SHARDS} partitions on {runner}"


def kill_a_worker(
    store: Path, runner: str, killed: list[int], ended: threading.Event
) -> None:
    """SIGKILL a worker once there are parts; note how many there were."""
    import psutil

    title = {"dask": "spawn_main", "ray": "ray::partition"}[runner]
    while not ended.wait(0.01):
        parts = len(list(store.glob("embeddings/*/part-*")))
        if parts > 2:
            below = psutil.Process().children(recursive=True)
            found = [p for p in below if title in " ".join(command(p))]
            if found:
                found[0].send_signal(signal.SIGKILL)
                killed.append(parts)
                return


def command(process) -> list[str]:
    import psutil

    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


@pytest.mark.usefixtures("server")
def test_an_error_on_a_worker_is_the_error_of_the_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Here: a worker of a cluster that is there, on which the data lies nowhere."""
    pytest.importorskip("prefect_dask", reason="pip install 'tl-pipeline[dask]'")
    from distributed import LocalCluster

    from tl_pipeline.errors import DatasetError
    from tl_pipeline.pipeline import partitions

    table = partitions._table
    monkeypatch.setattr(
        partitions, "_table", lambda images: table([(i, f"x/{u}") for i, u in images])
    )
    workers = {"n_workers": 1, "threads_per_worker": 1, "processes": False}
    with (
        LocalCluster(**workers, protocol="tcp", dashboard_address=None) as cluster,
        pytest.raises(DatasetError, match=r"on a worker: .* cannot read"),
    ):
        spread_out(photos, tmp_path / "store", "dask", cluster.scheduler_address)
    assert not list((tmp_path / "store").glob("embeddings/*/*.parquet"))


def test_a_partition_that_kills_every_worker_ends_the_run_with_advice():
    pytest.importorskip("prefect_dask", reason="pip install 'tl-pipeline[dask]'")
    from types import SimpleNamespace

    from distributed import KilledWorker

    from flows import partitions
    from tl_pipeline.errors import WorkerLost

    class Lost:
        def result(self) -> None:
            raise KilledWorker("key", SimpleNamespace(address="tcp://a:1"), 4)

    partition: Any = SimpleNamespace(number=3)
    with pytest.raises(WorkerLost, match="partition 3 of 7 was given up"):
        partitions._result(Lost(), partition, 7)


def test_a_runner_that_is_not_installed_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
):
    from flows import clusters

    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InvalidSpec, match=r"pip install 'tl-pipeline\[dask\]'"):
        clusters.check("dask", None)
    clusters.check("threads", None)


def test_an_address_without_a_cluster_is_refused():
    from flows import clusters

    with pytest.raises(InvalidSpec, match="runner dask or ray"):
        clusters.check("threads", "tcp://localhost:8786")


@pytest.mark.usefixtures("server")
def test_no_cluster_at_the_address_ends_with_exit_code_2(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from flows import clusters

    pytest.importorskip("prefect_dask", reason="pip install 'tl-pipeline[dask]'")
    monkeypatch.setattr(clusters, "_PATIENCE", "1s")
    tl = in_this_process(tmp_path, monkeypatch)
    run = tl("run", photos, "--runner", "dask", "--address", "tcp://127.0.0.1:9")
    assert run.returncode == 2, run.stderr
    assert "no Dask cluster answers at tcp://127.0.0.1:9" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_cluster_without_workers_is_refused_and_not_waited_for():
    from flows import clusters

    pytest.importorskip("prefect_dask", reason="pip install 'tl-pipeline[dask]'")
    from distributed import LocalCluster

    with (
        LocalCluster(n_workers=0, dashboard_address=None) as cluster,
        pytest.raises(InvalidSpec, match="has no workers; start some"),
        clusters.started("dask", cluster.scheduler_address),
    ):
        pass


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([{"CPU": 64.0}, {"CPU": 4.0}], {"num_cpus": 4}),
        ([{"CPU": 64.0}, {"CPU": 64.0}], {"num_cpus": 8}),
        (
            [{"CPU": 8.0}, {"CPU": 16.0, "GPU": 2.0}, {"CPU": 16.0, "GPU": 2.0}],
            {"num_cpus": 16, "num_gpus": 2, "max_calls": 0},
        ),
        (
            [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 16.0, "GPU": 1.0}],
            {"num_cpus": 1, "num_gpus": 1},
        ),
    ],
)
def test_a_partition_on_ray_takes_a_machine_s_gpus_or_some_cores(
    nodes: list[dict], expected: dict
):
    from flows import clusters

    there = [{"Alive": True, "Resources": has} for has in nodes]
    gone = {"Alive": False, "Resources": {"CPU": 1.0, "GPU": 9.0}}
    assert clusters.share([*there, gone], local=False) == expected

"""The engines that run partitions of embed, behind two methods: Dask and Ray.

Both are optional libraries, and guests on a user's console: quiet, without a dashboard,
without a call home.
"""

import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

from prefect.futures import PrefectFuture

from tl_pipeline.embedding.process import cores
from tl_pipeline.errors import InvalidSpec

Runner = Literal["threads", "dask", "ray"]
# More cores than that hardly make one forward pass faster.
_MOST_CORES = 8
# How long a Dask cluster is waited for at an address.
_PATIENCE = "10s"


class Cluster(Protocol):
    """Workers that take partitions, each as many at a time as it has room for."""

    def submit(self, task: Any, parameters: dict[str, Any]) -> PrefectFuture[Any]:
        """Queue a task; a worker that dies with it is replaced, and it is queued anew.

        ``parameters`` lacks ``cores``, which the cluster knows.
        """
        ...

    def completed(
        self, futures: Sequence[PrefectFuture[Any]]
    ) -> Iterator[PrefectFuture[Any]]:
        """Each of ``futures`` when it is done."""
        ...


def check(runner: Runner, address: str | None) -> None:
    """Refuse a runner whose library is not installed, before anything is done.

    Raises:
        InvalidSpec: says what to install, or to leave away.
    """
    if runner == "threads":
        if address:
            raise InvalidSpec(
                f"address={address} is of a cluster; say of which kind: runner dask "
                "or ray"
            )
    elif importlib.util.find_spec(f"prefect_{runner}") is None:
        raise InvalidSpec(
            f"the runner {runner} needs the package prefect-{runner}: "
            f"pip install 'tl-pipeline[{runner}]'"
        )


@contextmanager
def started(runner: Runner, address: str | None) -> Iterator[Cluster]:
    """Workers of the cluster at ``address``, or else of one for this block alone.

    Raises:
        InvalidSpec: there is no such cluster.
    """
    with _dask(address) if runner == "dask" else _ray(address) as cluster:
        yield cluster


def local_workers() -> tuple[int, int]:
    """How many workers a cluster on this machine gets, and the cores of each."""
    available = cores()
    workers = max(2, available // _MOST_CORES)
    return workers, max(1, available // workers)


@contextmanager
def _dask(address: str | None) -> Iterator[Cluster]:
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    import distributed
    from prefect_dask.task_runners import DaskTaskRunner

    from tl_pipeline.embedding.devices import devices

    workers, each = local_workers()
    if devices()[0].type == "cuda":
        # One process drives all GPUs; several would share each of them.
        workers, each = 1, cores()
    options = {
        "n_workers": workers,
        "threads_per_worker": 1,
        "memory_limit": None,  # one that is exceeded kills workers
        "dashboard_address": None,
        "silence_logs": logging.CRITICAL,
    }
    where = {"address": address} if address else {"cluster_kwargs": options}
    patience = {"timeout": _PATIENCE}
    with DaskTaskRunner(**where, client_kwargs=patience) as tasks:  # pyright: ignore[reportArgumentType]
        try:
            _ = tasks.client
        except (OSError, TimeoutError, ValueError) as error:
            raise _no_cluster("Dask", address, error) from None
        if address:
            _ask_workers(tasks.client, address)
        yield _Dask(tasks, distributed, None if address else each)


def _ask_workers(client: Any, address: str) -> None:
    """Refuse a Dask cluster that would let us wait for ever: no worker has our code."""
    if not client.scheduler_info(n_workers=-1)["workers"]:
        raise InvalidSpec(
            f"the Dask cluster at {address} has no workers; start some with "
            f"`dask worker {address} --nthreads 1`"
        )
    try:
        client.run_on_scheduler(importlib.import_module, "flows.partitions")
        client.run(importlib.import_module, "flows.partitions")
    except ImportError as error:
        raise InvalidSpec(
            f"the Dask cluster at {address} cannot run our code ({error}): install "
            "the same tl-pipeline for its scheduler and for each worker"
        ) from None


class _Dask:
    def __init__(self, tasks: Any, distributed: Any, cores: int | None) -> None:
        self._tasks, self._distributed, self._cores = tasks, distributed, cores

    def submit(self, task: Any, parameters: dict[str, Any]) -> PrefectFuture[Any]:
        return self._tasks.submit(task, {**parameters, "cores": self._cores})

    def completed(
        self, futures: Sequence[PrefectFuture[Any]]
    ) -> Iterator[PrefectFuture[Any]]:
        of = {future.wrapped_future.key: future for future in futures}  # pyright: ignore[reportAttributeAccessIssue]
        loop = self._tasks.client.loop
        wrapped = [future.wrapped_future for future in futures]  # pyright: ignore[reportAttributeAccessIssue]
        for done in self._distributed.as_completed(wrapped, loop=loop):
            yield of[done.key]


@contextmanager
def _ray(address: str | None) -> Iterator[Cluster]:
    # Read when Ray is imported or starts; who set them knows better.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray
    from prefect_ray.task_runners import RayTaskRunner

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        workers, each = local_workers()
        options |= {"num_cpus": workers * each, "include_dashboard": False}
    try:
        tasks = RayTaskRunner(address, options)
        entered = tasks.__enter__()
    except (OSError, RuntimeError, ValueError) as error:
        raise _no_cluster("Ray", address, error) from None
    try:
        yield _Ray(entered, ray, share(ray.nodes(), local=address is None))
    finally:
        tasks.__exit__(None, None, None)


def share(nodes: Sequence[dict[str, Any]], *, local: bool) -> dict[str, Any]:
    """The part of a Ray cluster that one partition takes, as options of a task.

    Where there are GPUs it is a whole machine, since one process drives all of its
    GPUs. Ray then need not end the process after each task, which it does so that
    another may see another GPU.
    """
    there = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = {int(has["GPU"]) for has in there if has.get("GPU")}
    if len(gpus) == 1:
        least = min(int(has.get("CPU", 1)) for has in there if has.get("GPU"))
        return {"num_cpus": least, "num_gpus": gpus.pop(), "max_calls": 0}
    if gpus:  # machines that differ
        return {"num_cpus": 1, "num_gpus": 1}
    if local:
        return {"num_cpus": local_workers()[1]}
    least = min((int(has["CPU"]) for has in there if has.get("CPU")), default=1)
    return {"num_cpus": max(1, min(_MOST_CORES, least))}


class _Ray:
    def __init__(self, tasks: Any, ray: Any, share: dict[str, Any]) -> None:
        self._tasks, self._ray, self._share = tasks, ray, share

    def submit(self, task: Any, parameters: dict[str, Any]) -> PrefectFuture[Any]:
        from prefect_ray.context import remote_options

        # max_retries is of workers that die; what a task raises is Prefect's to retry.
        with remote_options(max_retries=3, **self._share):
            given = {**parameters, "cores": self._share["num_cpus"]}
            return self._tasks.submit(task, given)

    def completed(
        self, futures: Sequence[PrefectFuture[Any]]
    ) -> Iterator[PrefectFuture[Any]]:
        of = {future.wrapped_future: future for future in futures}  # pyright: ignore[reportAttributeAccessIssue]
        waiting = list(of)
        while waiting:
            done, waiting = self._ray.wait(waiting)
            for one in done:
                yield of[one]


def _no_cluster(kind: str, address: str | None, error: Exception) -> InvalidSpec:
    at = f"no {kind} cluster answers at {address}" if address else f"{kind} won't start"
    return InvalidSpec(f"{at}: {str(error).strip().partition(chr(10))[0]}")

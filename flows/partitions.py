"""Embed on the workers of a cluster: one task for each partition of shards.

It is called inside the task of the stage, which plans before and embeds what is left
afterwards. Workers report to the flow's Prefect server, so they must reach it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.clusters import Cluster, Runner, started
from flows.tasks import may_pass
from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.errors import InvalidSpec, TransferLearningError, WorkerLost
from tl_pipeline.pipeline import partitions
from tl_pipeline.pipeline.partitions import Partition
from tl_pipeline.pipeline.stages.embed import Group, RemoteResult
from tl_pipeline.progress import Track
from tl_pipeline.store.artifacts import Store

_HERE = {"localhost", "127.0.0.1", "::1", "0.0.0.0"}  # noqa: S104 - only compared

# What Dask and Ray raise when a partition was lost more often than they try again.
_LOST = {"KilledWorker", "NodeDiedError", "OutOfMemoryError", "WorkerCrashedError"}


@task(
    name="partition",
    task_run_name="embed partition {partition.number}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=3,
    retry_delay_seconds=[1, 5, 30],
    retry_condition_fn=may_pass,
)
def embed_partition(partition: Partition, cores: int | None) -> Mapping[str, Any]:
    """Embed a partition on a worker; ``cores`` is None where the worker knows them."""
    try:
        return partitions.embed(partition, cores or _cores_of_worker())
    except TransferLearningError as error:
        error.args = (f"on a worker: {error}",)
        raise


@dataclass(frozen=True)
class ClusterExecutor:
    """Embeds groups of images on the cluster of kind ``runner`` at ``address``."""

    runner: Runner
    address: str | None

    def __call__(
        self,
        store: Store,
        dataset: DatasetSpec,
        part_rows: int,
        groups: Sequence[Group],
        track: Track,
    ) -> RemoteResult:
        """See ``tl_pipeline.pipeline.stages.embed.Executor``.

        Raises:
            InvalidSpec: there is no such cluster, or it cannot reach our server.
            WorkerLost: the workers of one partition died again and again.
            TransferLearningError: the error of the first partition that failed.
        """
        with (
            _server(self.address),
            partitions.cut(store, dataset, part_rows, groups) as found,
            started(self.runner, self.address) as cluster,
        ):
            done = _all(cluster, found, track)
        said = f"in {len(found):,} partition{'s' if len(found) > 1 else ''}"
        return RemoteResult(done, f"; {said} on {self.runner}")


def _all(
    cluster: Cluster, wanted: Sequence[Partition], track: Track
) -> Mapping[str, Any]:
    """What the workers did, by encoder key."""
    of = {cluster.submit(embed_partition, {"partition": one}): one for one in wanted}
    total: dict[str, Any] = {}
    for future in cluster.completed(list(of)):
        partition = of[future]
        for key, done in _result(future, partition, len(wanted)).items():
            total[key] = total[key] + done if key in total else done
        track.advance(partition.images * len(partition.encoders))
    return total


def _result(
    future: PrefectFuture[Any], partition: Partition, number: int
) -> Mapping[str, Any]:
    try:
        return future.result()
    except Exception as error:
        kind = type(error)
        if kind.__name__ not in _LOST or kind.__module__.startswith("torch"):
            raise
        raise WorkerLost(
            f"partition {partition.number} of {number} was given up: each worker that "
            f"took it died ({error}). Memory may be too small: give workers more, or "
            "start fewer. What was finished is kept; run again"
        ) from None


@contextmanager
def _server(address: str | None) -> Iterator[None]:
    """Tell workers the address of our Prefect server; else each starts its own."""
    from prefect.server.api.server import SubprocessASGIServer

    if PREFECT_API_URL.value():
        yield
        return
    host = urlsplit(address if "//" in (address or "") else f"//{address}").hostname
    if address and address != "auto" and host not in _HERE:
        raise InvalidSpec(
            f"the workers at {address} cannot reach the temporary Prefect server of "
            "this process: run `prefect server start --host 0.0.0.0` and set "
            "PREFECT_API_URL to its address"
        )
    with temporary_settings({PREFECT_API_URL: SubprocessASGIServer().api_url}):
        yield


def _cores_of_worker() -> int:
    import distributed

    return distributed.get_worker().state.nthreads

"""The flow of a batch: new images, embedded and predicted once by a model."""

from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Failed
from pydantic import Field

from flows import announcing, clusters
from flows.clusters import Runner
from flows.partitions import ClusterExecutor
from flows.tasks import TaskPerStage
from flows.watching import logged
from tl_pipeline.embedding import process
from tl_pipeline.pipeline import batch
from tl_pipeline.runs.records import BatchRecord
from tl_pipeline.store.artifacts import Store

# The patterns make Prefect refuse a wrong parameter before it creates a run.
_ENDING = rf"({'|'.join(batch.OUTPUTS)})$".replace(".", r"\.")
Name = Annotated[str, Field(min_length=1)]
Output = Annotated[str, Field(pattern=_ENDING)]
Positive = Annotated[int, Field(ge=1)]


@flow(
    name="batch-predict",
    flow_run_name="{dataset} by {model}",
)
def batch_predict(  # noqa: PLR0917 - Prefect passes them by name
    model: Name,
    dataset: Name,
    alias: Name = "champion",
    output: Output | None = None,
    part_rows: Positive = batch.PART_ROWS,
    verify: bool = False,
    catalog: str | None = None,
    store: str = "tl_store",
    runner: Runner = "threads",
    address: str | None = None,
) -> BatchRecord | State[Any]:
    """Predict those images of a dataset that the model has not predicted yet.

    Args:
        model: its name, which is that of the dataset that it learned from.
        dataset: a name in the data catalogue, or a folder of images.
        alias: which of its versions, or the number of one.
        output: also write all predictions of the images to this file: .parquet, .csv
            or .jsonl.
        part_rows: images per embedding part file, the most that a crash loses.
        verify: read every input again instead of trusting size and time.
        catalog: the data catalogue, ./data_catalog.yaml when None.
        store: the folder of all artifacts, which workers must see under the same
            path; or its URL in an object store, s3://BUCKET/NAME.
        runner: what embeds: threads of this process, or workers of dask or ray.
        address: of an existing cluster; without one, workers start on this machine.
    """
    process.claim()
    clusters.check(runner, address)

    def prepare() -> batch.Batch:
        return batch.prepare(
            model,
            dataset,
            Store.open(store),
            alias=alias,
            catalog_file=Path(catalog) if catalog else None,
            part_rows=part_rows,
            verify=verify,
            output=Path(output) if output else None,
        )

    execute = TaskPerStage()
    work = execute.attempt(f"prepare {Path(dataset).name}", prepare)
    executor = None if runner == "threads" else ClusterExecutor(runner, address)
    with logged():
        record = batch.run(work, execute, executor, execute.attempt)
        announcing.batch_finished(work.store, record)
    fails = work.dataset.drift.action == "fail"
    if fails and (tripped := [one.statistic for one in record.drift if one.tripped]):
        return Failed(name="Drift", message=f"{dataset}: {', '.join(tripped)}")
    return record

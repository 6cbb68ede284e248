"""The flow: ingest, embed, train, evaluate, register, each cached by the store."""

from pathlib import Path
from typing import Annotated

from prefect import flow
from pydantic import Field

from flows import announcing, clusters
from flows.clusters import Runner
from flows.partitions import ClusterExecutor
from flows.tasks import TaskPerStage
from flows.watching import logged
from tl_pipeline.config.encoder_specs import backbone_of, texts_of
from tl_pipeline.config.finetune_specs import FinetuneSpec
from tl_pipeline.config.specs import (
    Choose,
    ChooseBy,
    Ensemble,
    ErrorRate,
    HeadSpec,
    Method,
    RunSpec,
    SearchSpec,
    TuneSpec,
)
from tl_pipeline.embedding import process
from tl_pipeline.encoders.backbones import PATTERN
from tl_pipeline.heads import HEADS, PRESETS
from tl_pipeline.pipeline import wiring
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.store.artifacts import Store
from tl_pipeline.studies import tune_stage


def _heads() -> str:
    """A pattern of all heads, each with the names of its own parameters."""
    found = list(PRESETS)
    for name, head in HEADS.items():
        value = rf"({'|'.join(head.parameters)})=[^,]+"
        found.append(rf"{name}(:{value}(,{value})*)?")
    return rf"^({'|'.join(found)})$"


_FIELD = rf"({'|'.join(FinetuneSpec.model_fields)}|lr)=[^,]+"
_PART = rf"({'|'.join(TuneSpec.model_fields)})=[^,]+"
_TUNE = rf"^(true|{_PART}(,{_PART})*)$"
# The patterns make Prefect refuse a wrong name before it creates a run.
BackboneText = Annotated[str, Field(pattern=PATTERN)]
ConcatText = Annotated[list[BackboneText], Field(min_length=2)]
HeadText = Annotated[str, Field(pattern=_heads())]
NotNegative = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
FinetuneText = Annotated[str, Field(pattern=rf"^(all|head|{_FIELD})(,{_FIELD})*$")]
TuneText = Annotated[str, Field(pattern=_TUNE)]
SearchText = Annotated[str, Field(pattern=r"^(validation|cross_validation)(:.+=.+)?$")]
DEFAULTS = RunSpec(dataset="-")
BACKBONES_BY_DEFAULT = list(map(texts_of, DEFAULTS.backbones))
SEARCH_BY_DEFAULT = DEFAULTS.search.short()
HEADS_BY_DEFAULT = [head.short() for head in DEFAULTS.heads]


@flow(
    name="transfer-learning",
    flow_run_name="{dataset}",
)
def transfer_learning(  # noqa: PLR0917 - Prefect passes them by name
    dataset: str,
    backbones: list[BackboneText | ConcatText] = BACKBONES_BY_DEFAULT,
    heads: list[HeadText] = HEADS_BY_DEFAULT,
    tune: bool | TuneText = False,
    finetune: list[FinetuneText] = [],  # noqa: B006 - Prefect reads it, nobody writes
    search: SearchText = SEARCH_BY_DEFAULT,
    ensemble: Ensemble | None = None,
    calibration: Method = DEFAULTS.calibration,
    error: ErrorRate = DEFAULTS.error,
    choose: Choose = DEFAULTS.choose,
    choose_by: ChooseBy = DEFAULTS.choose_by,
    controls: bool = True,
    seed: NotNegative = 0,
    part_rows: Positive = DEFAULTS.part_rows,
    verify: bool = False,
    download: bool = True,
    catalog: str | None = None,
    store: str = "tl_store",
    runner: Runner = "threads",
    address: str | None = None,
) -> RunRecord:
    """Try every head on the embeddings of every backbone; register the best.

    Args:
        dataset: a name in the data catalogue, or a folder of images.
        backbones: each NAME or NAME:layer=...,weights=...; a list of them is one
            candidate, their embeddings side by side.
        heads: each NAME or NAME:param=value, a slash between the values of a grid;
            or quick or thorough.
        tune: first compare sides and pools of the backbones on a sample, and go on
            with the best; true, or side=96/128,pool=gap/grid2,images=2000,minutes=5.
            The choice is kept until there are a quarter more training images.
        finetune: ways to fine-tune each backbone besides, such as all, head, or
            blocks=2,epochs=5.
        search: cross_validation or validation, and how, such as
            cross_validation:folds=5,strategy=halving.
        ensemble: also average heads: the best of each encoder, or greedily chosen.
        calibration: of probabilities, learned from held-out images.
        error: how often label sets may miss, and accepted predictions be wrong.
        choose: of candidates that cannot be told apart by held-out images, the cheaper
            or still the best.
        choose_by: the metric that compares candidates, such as balanced_accuracy.
        controls: also run untrained twins and the majority class.
        seed: of heads, controls and bootstrap; the split has its own.
        part_rows: images per embedding part file, the most that a crash loses.
        verify: read every input again instead of trusting size and time.
        download: fetch missing named weights by torchvision's own loader.
        catalog: the data catalogue, ./data_catalog.yaml when None.
        store: the folder of all artifacts, which workers must see under the same
            path; or its URL in an object store, s3://BUCKET/NAME.
        runner: what embeds: threads of this process, or workers of dask or ray.
        address: of an existing cluster; without one, workers start on this machine.
    """
    process.claim()
    clusters.check(runner, address)
    spec = RunSpec(
        dataset=dataset,
        backbones=tuple(map(backbone_of, backbones)),
        heads=tuple(map(HeadSpec.parse, heads)),
        tune=TuneSpec.parse("true" if tune is True else tune) if tune else None,
        finetune=tuple(map(FinetuneSpec.parse, finetune)),
        search=SearchSpec.parse(search),
        ensemble=ensemble,
        calibration=calibration,
        error=error,
        choose=choose,
        choose_by=choose_by,
        controls=controls,
        seed=seed,
        part_rows=part_rows,
    )
    file = Path(catalog) if catalog else None
    executor = None if runner == "threads" else ClusterExecutor(runner, address)
    execute = TaskPerStage()

    def prepare() -> wiring.Work:
        return wiring.prepare(
            spec, Store.open(store), catalog_file=file, verify=verify, download=download
        )

    work = execute.attempt(f"prepare {Path(dataset).name}", prepare)
    with logged():
        work = tune_stage.tuned(work, execute, catalog_file=file, download=download)
        record = wiring.run(work, execute, executor, execute.attempt)
        announcing.run_finished(work.at.store, record)
    return record

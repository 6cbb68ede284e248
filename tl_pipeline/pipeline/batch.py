"""A batch: new images of a dataset -> what a registered model says of each, once.

Ingest and embed are those of a run; nothing is trained. Images that any run or batch
has embedded are not embedded again, and those that this very model has predicted are
not predicted again: a new champion costs its heads alone.
"""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from tl_pipeline import query
from tl_pipeline.config import catalog
from tl_pipeline.config.dataset_entry import PixelSpec, RemoteEntry
from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.config.specs import RunSpec
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.errors import DatasetError, InvalidSpec
from tl_pipeline.evaluation.drift import Drift
from tl_pipeline.inputs import modalities
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.pipeline.manifest import Manifest
from tl_pipeline.pipeline.stages.compare import Compare
from tl_pipeline.pipeline.stages.embed import Embed, Executor
from tl_pipeline.pipeline.stages.ingest import Ingest
from tl_pipeline.pipeline.stages.predict import Predict, Predicted
from tl_pipeline.pipeline.stages.reference import Reference
from tl_pipeline.pipeline.wiring import Attempt, Execute, Perform, at_once, directly
from tl_pipeline.pipeline.work import check_source, source
from tl_pipeline.registry import index, model_folder
from tl_pipeline.runs import records
from tl_pipeline.runs.planning import Step, Workspace
from tl_pipeline.runs.records import BatchRecord
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.keys import keys_in
from tl_pipeline.store.tables import BATCH_PREDICTIONS, DUPLICATES, QUARANTINE

PART_ROWS = int(RunSpec.model_fields["part_rows"].default)
OUTPUTS = (".parquet", ".csv", ".jsonl")


@dataclass(frozen=True)
class Batch:
    """A batch with every name resolved: a ``version`` on ``dataset``.

    The model is called ``name``, its key is ``model``, and its encoders are
    ``encoders``. Predictions are written to ``output``, too.
    """

    store: Store
    dataset: DatasetSpec
    name: str
    version: int
    model: str
    encoders: tuple[Encoder, ...]
    part_rows: int = PART_ROWS
    verify: bool = False
    output: Path | None = None


def prepare(
    name: str,
    dataset: str,
    store: Store,
    *,
    alias: str = index.CHAMPION,
    catalog_file: Path | None = None,
    part_rows: int = PART_ROWS,
    verify: bool = False,
    output: Path | None = None,
) -> Batch:
    """Resolve all names: of a model, and of a dataset of the catalogue or a folder.

    Raises:
        CatalogError, UnknownName: there is no such dataset, model or version.
        InvalidSpec: the model takes something else, or reads it in another way; the
            folder has the name of another one; or ``output`` cannot be written.
        DamagedArtifact: the folder of the model is gone.
    """
    _check_output(output)
    version = index.find_version(store, name, alias)
    key = str(version.model)
    encoders = model_folder.encoders_of(store.root / "models" / key, store)
    entry = _read_as(catalog.find(dataset, catalog_file), name, encoders)
    if isinstance(entry, RemoteEntry):
        entry = entry.model_copy(update={"labels": "none"})
    check_source(dataset, entry, records.latest_batch(store, entry.name))
    return Batch(
        store=store,
        dataset=entry,
        name=name,
        version=version.number,
        model=key,
        encoders=encoders,
        part_rows=part_rows,
        verify=verify,
        output=output,
    )


def plan(batch: Batch) -> list[Step]:
    """What ``run`` would do and why; nothing is computed, the store is not touched.

    Raises:
        TooManyRefused: see ``run``.
    """
    steps: list[Step] = []
    with batch.store.overlay() as overlay:

        def perform(stage: Any) -> Any:
            outcome = stage.plan()
            steps.extend(outcome.steps)
            return outcome.output

        _wire(replace(batch, store=overlay), _last(batch), perform)
    return steps


def run(
    batch: Batch,
    execute: Execute = directly,
    executor: Executor | None = None,
    attempt: Attempt = at_once,
) -> BatchRecord:
    """Ingest, embed, predict and compare, each by ``execute``; record the batch.

    That is by ``attempt``: see ``wiring.run``.

    Batches of one dataset run one after another on a machine.

    Raises:
        TooManyRefused: more inputs than ``max_quarantined`` of the dataset allows.
        WeightsError, DatasetError: see the stages.
    """
    started, steps, store = datetime.now(UTC), list[Step](), batch.store
    name = batch.dataset.name
    store.check_writable()

    def perform(stage: Any) -> Any:
        outcome = execute(stage)
        steps.extend(outcome.steps)
        return outcome.output

    used = [batch.model, *(encoder.key for encoder in batch.encoders)]
    with store.lock(f"batch-{name}", f"another batch of {name} to end"):
        last = _last(batch)
        known = keys_in(last.model_dump_json()) if last else set()
        with store.in_use([*known, *used]):
            try:
                manifest, found, drift = _wire(batch, last, perform, executor)
            except DatasetError:
                if steps:  # else ingest has noted it
                    records.note_refused(store, name, steps[0].keys["manifest"])
                query.build(store)
                raise
            record = _recorded(batch, last, started, steps, manifest, found, drift)

            def publish() -> None:
                records.write(store, record)
                query.build(store)

            attempt(f"publish {name}", publish)
        if batch.output:
            _write(batch.output, _rows(store, manifest, found.keys))
    return record


def _last(batch: Batch) -> BatchRecord | None:
    return records.latest_batch(batch.store, batch.dataset.name)


def _wire(
    batch: Batch,
    last: BatchRecord | None,
    perform: Perform,
    executor: Executor | None = None,
) -> tuple[Manifest, Predicted, tuple[Drift, ...]]:
    """The stages in their order, after the ``last`` batch of the dataset."""
    at = Workspace(batch.store, records.keys_used(last))
    dataset, before = batch.dataset, last.predictions if last else {}
    manifest = perform(Ingest(at, dataset, batch.verify, labelled=False))
    perform(Embed(at, dataset, manifest, batch.encoders, batch.part_rows, executor))
    reference = None
    if dataset.drift.action != "ignore":
        reference = perform(Reference(at, batch.name, batch.model, batch.encoders))
    found = perform(
        Predict(
            at,
            manifest,
            batch.name,
            batch.version,
            batch.model,
            batch.encoders,
            tuple(before.get(batch.model, ())),
            reference,
        )
    )
    compared: Sequence[Drift] = ()
    if reference:
        key = found.keys[-1] if found.keys else None
        compared = perform(
            Compare(at, dataset, batch.encoders, reference, key, found.new)
        )
    return manifest, found, tuple(compared)


def _read_as(
    entry: DatasetSpec, model: str, encoders: Sequence[Encoder]
) -> DatasetSpec:
    """``entry`` as the model reads images: range, bands, pages.

    Raises:
        InvalidSpec: it holds something else, or says itself to read it otherwise.
    """
    how = encoders[0].preprocess
    takes = modalities.named(how)
    if takes != entry.modality:
        raise InvalidSpec(
            f"model {model} takes {takes}s, but {entry.name} holds {entry.modality}s"
        )
    if not isinstance(how, Preprocess):
        return entry
    for field in sorted(PixelSpec.model_fields.keys() & entry.model_fields_set):
        wanted, used = getattr(entry, field), getattr(how.pixels, field)
        if wanted != used:
            raise InvalidSpec(
                f"{entry.name} says {field}: {wanted}, but model {model} was trained "
                f"with {field}: {used}; leave it out, or train on images read so"
            )
    return entry.model_copy(update=dict(how.pixels))


def _recorded(
    batch: Batch,
    last: BatchRecord | None,
    started: datetime,
    steps: Sequence[Step],
    manifest: Manifest,
    found: Predicted,
    drift: Sequence[Drift],
) -> BatchRecord:
    store, folder = batch.store, batch.store.path(manifest.artifact)
    before = last.predictions if last else {}
    refused = set[str]()
    for encoder in batch.encoders:
        refused |= EmbeddingFolder(store, encoder.key).refused().keys()
    undecoded = refused.intersection(manifest.table["image_id"].to_pylist())
    return BatchRecord(
        run_id=records.new_run_id(),
        dataset=batch.dataset.name,
        started=started,
        finished=datetime.now(UTC),
        steps=list(steps),
        manifest=manifest.key,
        images=manifest.table.num_rows,
        quarantined=tables.count(QUARANTINE, folder) + len(undecoded),
        duplicates=tables.count(DUPLICATES, folder),
        source=source(batch.dataset),
        name=batch.name,
        version=batch.version,
        model=batch.model,
        new=len(found.new),
        predictions={**before, batch.model: list(found.keys)},
        drift=list(drift),
    )


def _rows(store: Store, manifest: Manifest, keys: Sequence[str]) -> pa.Table:
    """The predictions of the images of ``manifest``, with their present uris."""
    made = (store.path(Artifact("predictions", key, key)) for key in keys)
    parts = [tables.read(BATCH_PREDICTIONS, folder) for folder in made]
    rows = pa.concat_tables([BATCH_PREDICTIONS.schema.empty_table(), *parts])
    images = manifest.images
    place = pc.index_in(rows["image_id"], images["image_id"].combine_chunks())
    uris = images["uri"].take(place)
    rows = rows.set_column(rows.column_names.index("uri"), "uri", uris)
    return rows.filter(pc.is_valid(place)).sort_by("uri")


def _check_output(output: Path | None) -> None:
    """Refuse, before anything is computed, what could not be written in the end.

    Raises:
        InvalidSpec: its ending is of no format, or its folder is not there.
    """
    if output and output.suffix not in OUTPUTS:
        raise InvalidSpec(
            f"--output {output}: the ending tells the format: {', '.join(OUTPUTS)}"
        )
    if output and not output.parent.is_dir():
        raise InvalidSpec(f"--output {output}: there is no folder {output.parent}")


def _write(file: Path, rows: pa.Table) -> None:
    """Write ``rows`` to ``file``; lists are JSON in the cells of a CSV file."""
    beside = file.with_name(f".{file.name}.writing")
    if file.suffix == ".parquet":
        pq.write_table(rows, beside, compression="zstd")
    elif file.suffix == ".csv":
        for at, name in enumerate(rows.column_names):
            if pa.types.is_nested(rows[name].type):
                cells = [_json(cell) for cell in rows[name].to_pylist()]
                rows = rows.set_column(at, name, pa.array(cells, pa.string()))
        pyarrow.csv.write_csv(rows, beside)
    else:
        with beside.open("w", encoding="utf-8") as lines:
            lines.writelines(f"{_json(row)}\n" for row in rows.to_pylist())
    beside.replace(file)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)

"""The five stages wired once, for whoever calls them: a flow, a plan, a notebook.

``wire`` is handed the way to call a stage. ``run`` calls them directly, ``plan`` asks
each what it would do, and the Prefect flow submits them as tasks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from tl_pipeline import catalog, encoders, heads, query, report, runs, tables
from tl_pipeline.artifacts import Artifact, Store
from tl_pipeline.datasets import DatasetSpec
from tl_pipeline.embeddings import EmbeddingFolder
from tl_pipeline.encoders import Encoder
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.planning import Context, Outcome, Step
from tl_pipeline.runs import RunRecord
from tl_pipeline.specs import HeadSpec, RunSpec
from tl_pipeline.stages import embed, evaluate, ingest, register, train
from tl_pipeline.stages.register import Best
from tl_pipeline.tables import DUPLICATES, MANIFEST, QUARANTINE

STAGES = {
    "ingest": ingest,
    "embed": embed,
    "train": train,
    "evaluate": evaluate,
    "register": register,
}
MAJORITY = HeadSpec(name="majority")

# call(stage name, *inputs) -> a handle to its output, fit to be another's input
Call = Callable[..., Any]


@dataclass(frozen=True)
class Work:
    """A run with every name resolved: the heads to train on each encoder."""

    spec: RunSpec
    context: Context
    heads: list[tuple[Encoder, list[HeadSpec]]]


class Wired(NamedTuple):
    """Handles to what the stages after the last one need."""

    manifest: Any
    evaluations: list[Any]
    registered: Any


def prepare(
    spec: RunSpec,
    store: Store,
    *,
    catalog_file: Path | None = None,
    verify: bool = False,
    download: bool = False,
) -> Work:
    """Resolve every name in ``spec`` before anything is computed or written.

    With ``download`` missing named weights are fetched by torchvision, and weights that
    were never used in this store are tried on; with ``verify`` no memo of unchanged
    files is trusted.

    Raises:
        CatalogError, UnknownName, InvalidSpec, WeightsError: see ``errors``.
    """
    dataset: DatasetSpec = catalog.find(spec.dataset, catalog_file)
    wanted = [heads.complete(head) for head in spec.heads]
    if all(heads.HEADS[head.name].control for head in wanted):
        raise InvalidSpec(
            f"{', '.join(head.name for head in wanted)} is a control, run by itself; "
            "name a head to compare with it"
        )
    for wish in spec.backbones:
        encoders.check_names(wish)
    work: list[tuple[Encoder, list[HeadSpec]]] = []
    for wish in spec.backbones:
        if download:
            encoders.fetch(wish)
        encoder = encoders.resolve(wish, store, trust=not verify)
        if download and not EmbeddingFolder(store, encoder.key).path.exists():
            encoders.load(encoder)
        floor = [MAJORITY] if spec.controls and not work else []
        work.append((encoder, wanted + floor))
    if spec.controls:
        for wish in spec.backbones:
            twin = encoders.untrained_twin(wish, spec.seed)
            encoder = encoders.resolve(twin, store, control=True)
            if encoder.key not in {known.key for known, _ in work}:
                work.append((encoder, wanted))
    context = Context(
        store=store,
        dataset=dataset,
        seed=spec.seed,
        part_rows=spec.part_rows,
        trust_memo=not verify,
        previous=runs.keys_used(runs.latest(store, dataset.name)),
    )
    return Work(spec, context, work)


def wire(work: Work, call: Call) -> Wired:
    """Every head on every encoder, then the best; in the order of the README."""
    context = work.context
    manifest = call("ingest", context)
    evaluations, used = [], []
    for encoder, specs in work.heads:
        embedded = call("embed", context, manifest, encoder)
        for head in specs:
            given = (manifest, embedded)
            trained = call("train", context, *given, encoder, head)
            scored = call("evaluate", context, *given, trained, encoder, head)
            evaluations.append(scored)
            used.append(encoder)
    return Wired(manifest, evaluations, call("register", context, evaluations, used))


def plan(work: Work) -> list[Step]:
    """What a run would do and why; nothing is computed, and the store is not touched.

    Raises:
        DatasetError: the dataset cannot be learned from.
    """
    steps: list[Step] = []
    with work.context.store.overlay() as overlay:
        context = Context(**{**vars(work.context), "store": overlay})

        def call(stage: str, *inputs: Any) -> Any:
            outcome = STAGES[stage].plan(*inputs)
            steps.append(outcome.step)
            return outcome.output

        wire(Work(work.spec, context, work.heads), call)
    return steps


def run(work: Work) -> RunRecord:
    """Run everything in this process, without Prefect; see ``wire``.

    Raises:
        DatasetError, WeightsError: see the stages.
    """
    started, steps = datetime.now(UTC), []

    def call(stage: str, *inputs: Any) -> Any:
        outcome: Outcome[Any] = STAGES[stage].run(*inputs)
        steps.append(outcome.step)
        return outcome.output

    wired = wire(work, call)
    return finish(work, started, steps, wired)


def finish(
    work: Work, started: datetime, steps: Sequence[Step], wired: Wired
) -> RunRecord:
    """Record a run whose stages are done; rebuild the catalogue and write the report.

    ``wired`` holds the outputs themselves, not handles.
    """
    from tl_pipeline import registry  # noqa: PLC0415 - imports scikit-learn

    store, best = work.context.store, wired.registered
    assert isinstance(best, Best)  # noqa: S101 - None only while planning
    found, gain = runs.results(
        store, wired.evaluations, best.evaluation.key, work.spec.seed
    )
    entry = registry.registration(store, best.model.key)
    assert entry is not None  # noqa: S101 - register has just written it
    record = RunRecord(
        run_id=runs.new_run_id(),
        dataset=work.context.dataset.name,
        started=started,
        finished=datetime.now(UTC),
        spec=work.spec,
        steps=list(steps),
        images=_rows(store, wired.manifest, MANIFEST),
        quarantined=_rows(store, wired.manifest, QUARANTINE)
        + _refused(work, wired.manifest),
        duplicates=_rows(store, wired.manifest, DUPLICATES),
        split_report=runs.splits(store, wired.manifest, work.context.dataset.name),
        manifest=wired.manifest.key,
        results=found,
        gain=gain,
        registered=runs.Registered(
            name=work.context.dataset.name,
            version=entry.version,
            model=best.model.key,
            champion=entry.champion,
            reason=entry.reason,
        ),
    )
    runs.write(store, record)
    query.build(store)
    report.write(store, record)
    return record


def _rows(store: Store, manifest: Artifact, table: tables.Table) -> int:
    return tables.count(table, store.path(manifest))


def _refused(work: Work, manifest: Artifact) -> int:
    """Images of ``manifest`` that some encoder of this run could not decode."""
    store = work.context.store
    ids = tables.read(MANIFEST, store.path(manifest), ["image_id"])["image_id"]
    refused: set[str] = set()
    for encoder, _ in work.heads:
        refused |= EmbeddingFolder(store, encoder.key).refused().keys()
    return len(refused.intersection(ids.to_pylist())) if refused else 0

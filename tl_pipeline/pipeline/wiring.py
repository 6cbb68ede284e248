"""The stages wired once, for whoever calls them: a flow, a plan, a notebook.

``wire`` is handed the way to call a stage. ``run`` calls them directly, ``plan`` asks
each what it would do, and the Prefect flow submits them as tasks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from tl_pipeline import query, report
from tl_pipeline.config.specs import HeadSpec
from tl_pipeline.encoders.concat import AnyEncoder, ConcatEncoder, members_of
from tl_pipeline.evaluation import decisions
from tl_pipeline.heads import HEADS
from tl_pipeline.pipeline.stages import (
    audit,
    average,
    embed,
    evaluate,
    ingest,
    register,
    search,
    shuffle,
    train,
)
from tl_pipeline.pipeline.stages.register import Best
from tl_pipeline.pipeline.work import Work, prepare
from tl_pipeline.runs import controls, records, results
from tl_pipeline.runs.controls import Subject
from tl_pipeline.runs.planning import ONE_BY_ONE, UNTRAINED, Context, Outcome, Step
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.tables import DUPLICATES, MANIFEST, QUARANTINE

__all__ = ["STAGES", "Wired", "Work", "finish", "plan", "prepare", "run", "wire"]

STAGES = {
    "ingest": ingest,
    "embed": embed,
    "audit": audit,
    "shuffle": shuffle,
    "train": train,
    "search": search,
    "evaluate": evaluate,
    "average": average,
    "register": register,
}

# call(stage name, *inputs) -> a handle to its output, fit to be another's input
Call = Callable[..., Any]


class Wired(NamedTuple):
    """Handles to what the stages after the last one need.

    ``subjects[i]`` is what ``evaluations[i]`` scores; it is no handle.
    """

    manifest: Any
    evaluations: list[Any]
    registered: Any
    subjects: list[Subject]


def wire(work: Work, call: Call) -> Wired:
    """Every head on every encoder, then the best; in the order of the README."""
    context = work.context
    ingested = manifest = call("ingest", context)
    embedded = call("embed", context, ingested, work.encoders)
    evaluations: list[Any] = []
    subjects: list[Subject] = []
    used: list[AnyEncoder | None] = []
    # Of candidates and of their untrained twins: what may be averaged.
    together: dict[bool, list[Any]] = {False: [], True: []}

    def score(context: Context, rows: Any, encoder: AnyEncoder, head: HeadSpec) -> None:
        # a control has nothing to choose
        single = context.search.trains_all or HEADS[head.name].control
        stage = "train" if single else "search"
        trained = call(stage, context, rows, embedded, encoder, head)
        scored = call("evaluate", context, rows, embedded, trained, encoder, head)
        evaluations.append(scored)
        subjects.append(Subject(encoder.key, head.short(), context.control))
        used.append(encoder)
        if not (context.control or HEADS[head.name].control):
            together[encoder.control].append(scored)

    if work.eye:
        manifest = call("audit", context, ingested, embedded, work.eye)
    for encoder, specs in work.heads:
        for head in specs:
            score(context, manifest, encoder, head)
    if work.leakage:
        encoder, specs = work.leakage
        control = replace(context, control=ONE_BY_ONE)
        shuffled = call("shuffle", control, manifest)
        for head in specs:
            score(control, shuffled, encoder, head)
    for subject, scored in _averaged(work, call, manifest, together):
        evaluations.append(scored)
        subjects.append(subject)
        used.append(None)
    registered = call("register", context, evaluations, used)
    return Wired(manifest, evaluations, registered, subjects)


def _averaged(
    work: Work, call: Call, manifest: Any, scored: dict[bool, list[Any]]
) -> Iterator[tuple[Subject, Any]]:
    """The heads of a run together, and as a control those of the untrained twins."""
    ensemble, context = work.spec.ensemble, work.context
    if ensemble:
        made = call("average", context, manifest, scored[False], ensemble)
        yield Subject("", ensemble), made
    if ensemble and len(scored[True]) > 1 and not work.skipped:
        control = replace(context, control=UNTRAINED)
        made = call("average", control, manifest, scored[True], ensemble)
        yield Subject("", ensemble, UNTRAINED), made


def plan(work: Work) -> list[Step]:
    """What a run would do and why; nothing is computed, and the store is not touched.

    Raises:
        DatasetError: the dataset cannot be learned from.
    """
    steps: list[Step] = []
    with work.context.store.overlay() as overlay:
        context = replace(work.context, store=overlay)

        def call(stage: str, *inputs: Any) -> Any:
            outcome = STAGES[stage].plan(*inputs)
            steps.extend(outcome.steps)
            return outcome.output

        wire(replace(work, context=context), call)
    return steps + work.skipped


def run(work: Work) -> RunRecord:
    """Run everything in this process, without Prefect; see ``wire``.

    Raises:
        DatasetError, WeightsError: see the stages.
    """
    started, steps = datetime.now(UTC), []

    def call(stage: str, *inputs: Any) -> Any:
        outcome: Outcome[Any] = STAGES[stage].run(*inputs)
        steps.extend(outcome.steps)
        return outcome.output

    wired = wire(work, call)
    return finish(work, started, steps, wired)


def finish(
    work: Work, started: datetime, steps: Sequence[Step], wired: Wired
) -> RunRecord:
    """Record a run whose stages are done; rebuild the catalogue and write the report.

    ``wired`` holds the outputs themselves, not handles.
    """
    store, dataset = work.context.store, work.context.dataset.name
    best = wired.registered
    assert isinstance(best, Best)  # noqa: S101 - None only while planning
    keys = [evaluation.key for evaluation in wired.evaluations]
    paired = controls.pair(wired.subjects, keys, work.baselines)
    found = results.results(store, wired.evaluations, best.evaluation.key, paired)
    split = results.split_report(store, wired.manifest, dataset)
    record = RunRecord(
        run_id=records.new_run_id(),
        dataset=dataset,
        started=started,
        finished=datetime.now(UTC),
        spec=work.spec,
        steps=[*steps, *work.skipped],
        images=_rows(store, wired.manifest, MANIFEST),
        quarantined=_rows(store, wired.manifest, QUARANTINE)
        + _refused(work, wired.manifest),
        duplicates=_rows(store, wired.manifest, DUPLICATES),
        split_report=split.model_copy(update={"leakage": controls.leakage(found)}),
        manifest=wired.manifest.key,
        results=found,
        joints=_joints(work),
        gain=controls.gain(store, found[0], work.spec.seed),
        decisions=decisions.of(store.path(best.evaluation)),
        registered=_registered(store, dataset, best.model.key),
        chosen=best.chosen,
    )
    records.write(store, record)
    query.build(store)
    report.write(store, record)
    return record


def _joints(work: Work) -> list[records.JointEncoder]:
    """Those that heads learned from, each once."""
    return [
        records.JointEncoder(
            key=encoder.key,
            label=encoder.label,
            members=[part.key for part in encoder.members],
        )
        for encoder in dict.fromkeys(used for used, _ in work.heads)
        if isinstance(encoder, ConcatEncoder)
    ]


def _registered(store: Store, dataset: str, model: str) -> records.Registered:
    """How the model of that key stands in the registry."""
    from tl_pipeline.registry import index  # noqa: PLC0415 - imports scikit-learn

    entry = index.registration(store, model)
    assert entry is not None  # noqa: S101 - register has just written it
    return records.Registered(
        name=dataset,
        version=entry.version,
        model=model,
        champion=entry.champion,
        reason=entry.reason,
    )


def _rows(store: Store, manifest: Artifact, table: tables.Table) -> int:
    return tables.count(table, store.path(manifest))


def _refused(work: Work, manifest: Artifact) -> int:
    """Images of ``manifest`` that some encoder of this run could not decode."""
    store = work.context.store
    ids = tables.read(MANIFEST, store.path(manifest), ["image_id"])["image_id"]
    refused: set[str] = set()
    for part in (part for encoder, _ in work.heads for part in members_of(encoder)):
        refused |= EmbeddingFolder(store, part.key).refused().keys()
    return len(refused.intersection(ids.to_pylist())) if refused else 0

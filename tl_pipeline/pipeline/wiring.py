"""The order of the stages, for whoever calls them: a flow, a plan, a notebook.

``wire`` is handed the way to carry out a stage. ``run`` runs each, ``plan`` asks each
what it would do, and the Prefect flow runs each in a task.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Protocol, TypeVar

import numpy as np

from tl_pipeline import progress, query, report
from tl_pipeline.config.specs import HeadSpec, SearchSpec
from tl_pipeline.data.splits import TEST, TRAIN, VALIDATION
from tl_pipeline.encoders import concat, weight_store
from tl_pipeline.encoders.concat import AnyEncoder, ConcatEncoder, members_of
from tl_pipeline.errors import DatasetError
from tl_pipeline.evaluation import costs, decisions
from tl_pipeline.heads import HEADS
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.pipeline import teachers
from tl_pipeline.pipeline.choices import roles
from tl_pipeline.pipeline.finetuned import OWN_HEAD, check_unseen
from tl_pipeline.pipeline.manifest import Manifest
from tl_pipeline.pipeline.stage import Stage
from tl_pipeline.pipeline.stages.adopt import Adopt
from tl_pipeline.pipeline.stages.audit import Audit
from tl_pipeline.pipeline.stages.average import Average
from tl_pipeline.pipeline.stages.embed import Embed, EmbeddingsOf, Executor
from tl_pipeline.pipeline.stages.evaluate import Evaluate
from tl_pipeline.pipeline.stages.finetune import Finetune, Finetuned
from tl_pipeline.pipeline.stages.ingest import Ingest
from tl_pipeline.pipeline.stages.register import Best, Register
from tl_pipeline.pipeline.stages.shuffle import Shuffle
from tl_pipeline.pipeline.stages.train import Train
from tl_pipeline.pipeline.teachers import ModelTeacher, Teacher
from tl_pipeline.pipeline.work import FineTuning, Work, prepare, source
from tl_pipeline.registry import logged_run
from tl_pipeline.runs import controls, finetunings, records, results
from tl_pipeline.runs.controls import Subject
from tl_pipeline.runs.finetunings import Expectation, FinetunedPair
from tl_pipeline.runs.planning import UNTRAINED, Outcome, Step
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.tables import DUPLICATES, MANIFEST, QUARANTINE

__all__ = [
    "Execute",
    "Wired",
    "Work",
    "directly",
    "keeping_refused",
    "plan",
    "prepare",
    "run",
    "wire",
]

OutputT = TypeVar("OutputT")
# A network whose inputs have so many pixels a side may do better with fewer.
LARGE = 128
# Carries out a stage and gives what the stages after it need.
Execute = Callable[[Stage[Any]], Outcome[Any]]
# Carries out work with a title, that beside the stages.
Attempt = Callable[[str, Callable[[], None]], None]


class Perform(Protocol):
    """Plans or runs one stage; its output."""

    def __call__(self, stage: Stage[OutputT], /) -> OutputT:
        """Plan or run ``stage``."""
        ...


@dataclass(frozen=True)
class Wired:
    """What all stages gave; ``registered`` is None while planning.

    ``subjects[i]`` is what ``evaluations[i]`` scores.
    """

    manifest: Manifest
    evaluations: tuple[Artifact, ...]
    subjects: tuple[Subject, ...]
    registered: Best | None
    finetuned: tuple[FinetunedPair, ...] = ()


def wire(work: Work, perform: Perform, executor: Executor | None = None) -> Wired:
    """Every head on every encoder, then the best; in the order of the README."""
    at, spec, dataset = work.at, work.spec, work.dataset
    ingested = manifest = work.ingested or perform(Ingest(at, dataset, work.verify))
    costs.check(dataset.costs, tables.counts(ingested.table["label"]))
    for wanted in work.finetune:
        if isinstance(wanted.teacher, ModelTeacher):
            teachers.check_classes(wanted.teacher, ingested)
    embedded = perform(
        Embed(at, dataset, ingested, work.encoders, spec.part_rows, executor)
    )
    if encoder := work.duplicate_encoder:
        embeddings = concat.embeddings_of(embedded, encoder)
        manifest = perform(Audit(at, dataset, ingested, embeddings, encoder))
    scored = _Scored(work, perform, embedded)
    for encoder, heads in work.heads:
        for head in heads:
            scored.add(manifest, encoder, head)
    frozen, finetuned = scored.by_encoder(), list[FinetunedPair]()
    for wanted in work.finetune:
        before = frozen.get(wanted.encoder.key, [])
        expected = _expected(work, wanted, manifest, before)
        tuned = _finetuned(work, wanted, perform, ingested, manifest, expected, scored)
        scored.add_tuned(manifest, tuned, wanted.heads)
        finetuned.append(
            FinetunedPair(
                label=wanted.encoder.label,
                how=wanted.how.short(),
                frozen=wanted.encoder.key,
                tuned=tuned.final.encoder.key,
                finetuned=tuned.judged.artifact.key,
                expected=expected,
            )
        )
    if work.leakage:
        encoder, heads = work.leakage
        shuffled = perform(Shuffle(at, manifest, dataset.split.seed))
        for head in heads:
            scored.add(shuffled, encoder, head)
    scored.average(manifest)
    evaluations, used = tuple(scored.evaluations), tuple(scored.encoders)
    asked = logged_run.params(spec.seed, spec.search, spec.calibration, spec.error)
    registering = Register(
        at,
        dataset.name,
        manifest,
        evaluations,
        used,
        asked,
        spec.choose,
        spec.choose_by,
        dataset.gate,
        dataset.costs,
    )
    best = perform(registering)
    return Wired(manifest, evaluations, tuple(scored.subjects), best, tuple(finetuned))


@dataclass(frozen=True)
class _Tuned:
    """A network that was fine-tuned, and the one that judges it.

    That is the same, or one that learned in the same way without validation images.
    ``search`` is how heads on them are chosen.
    """

    judged: Finetuned
    judged_embeddings: Artifact
    final: Finetuned
    embeddings: Artifact
    search: SearchSpec


def _finetuned(
    work: Work,
    wanted: FineTuning,
    perform: Perform,
    ingested: Manifest,
    manifest: Manifest,
    expected: Expectation | None,
    scored: "_Scored",
) -> _Tuned:
    """Fine-tune one encoder in one way, and embed all images with what comes of it."""
    at, how = work.at, wanted.how
    frozen = concat.embeddings_of(scored.embedded, wanted.encoder)

    def tuned(*splits: str) -> Finetuned:
        judges = [one for one in (VALIDATION, TEST) if one not in splits]
        stage = Finetune(
            at,
            work.dataset,
            manifest,
            frozen,
            wanted.encoder,
            how,
            work.spec.seed,
            splits,
            expected,
            _teacher(work, wanted, manifest, frozen, scored, judges),
        )
        return perform(stage)

    judged = final = tuned(TRAIN)
    if how.refit:
        final = tuned(TRAIN, VALIDATION)
    encoders = tuple({e.key: e for e in (judged.encoder, final.encoder)}.values())
    found = perform(Embed(at, work.dataset, ingested, encoders, work.spec.part_rows))
    # Folds would score heads on images whose labels the network has seen.
    search = work.spec.search.model_copy(
        update={"select": "validation", "folds": None, "refit": how.refit}
    )
    return _Tuned(
        judged, found[judged.encoder.key], final, found[final.encoder.key], search
    )


def _teacher(
    work: Work,
    wanted: FineTuning,
    manifest: Manifest,
    frozen: Artifact,
    scored: "_Scored",
    judges: Sequence[str],
) -> Teacher | None:
    """Who teaches a network that the images of the splits ``judges`` will score.

    ``frozen`` are its embeddings before it learns.
    """
    teacher = wanted.teacher
    if teacher is None:
        return None
    if isinstance(teacher, ModelTeacher):
        images = manifest.encoded(frozen)
        ids = [one for split in judges for one in images.held_out(split).ids]
        return teachers.of_model(work.at.store, teacher, scored.embedded, ids)
    embeddings = concat.embeddings_of(scored.embedded, teacher)
    return Teacher(teacher.label, embeddings, tuple(scored.searches[teacher.key]))


def _expected(
    work: Work, wanted: FineTuning, manifest: Manifest, frozen: Sequence[Artifact]
) -> Expectation | None:
    """What to expect of fine-tuning by the evaluations of the ``frozen`` encoder."""
    images = tables.counts(manifest.table["split"])
    validation = images.get(VALIDATION, 0)
    return finetunings.expected(
        work.at.store,
        wanted.encoder.label,
        frozen,
        images.get(TRAIN, 0) + validation,
        len(tables.counts(manifest.table["label"])),
        validation,
    )


class _Scored:
    """The evaluations of a run as they come, each with its encoder."""

    def __init__(self, work: Work, perform: Perform, embedded: EmbeddingsOf) -> None:
        self._work = work
        self._perform = perform
        self.embedded = embedded
        self.evaluations: list[Artifact] = []
        # Of candidates on the encoders of the run as they are, by key of the encoder.
        self.searches: dict[str, list[Artifact]] = {}
        self.subjects: list[Subject] = []
        # None of averaged heads
        self.encoders: list[AnyEncoder | None] = []
        # What may be averaged: candidates, and their random-init baselines.
        self._candidates: list[Artifact] = []
        self._baselines: list[Artifact] = []

    def by_encoder(self) -> dict[str, list[Artifact]]:
        """The evaluations so far by the key of their encoder."""
        found: dict[str, list[Artifact]] = {}
        for evaluation, encoder in zip(self.evaluations, self.encoders, strict=True):
            if encoder:
                found.setdefault(encoder.key, []).append(evaluation)
        return found

    def add(self, manifest: Manifest, encoder: AnyEncoder, head: HeadSpec) -> None:
        """Train ``head`` on the embeddings of ``encoder``, and evaluate it."""
        at, spec = self._work.at, self._work.spec
        embeddings = concat.embeddings_of(self.embedded, encoder)
        images = manifest.encoded(embeddings)
        scoring = (roles(images, spec.search).scored, images.held_out(TEST))
        check_unseen(at.store, encoder, chain(*(rows.ids for rows in scoring)))
        trained = self._perform(
            Train(at, manifest, embeddings, encoder, head, spec.search, spec.seed)
        )
        if not (manifest.control or HEADS[head.name].control):
            self.searches.setdefault(encoder.key, []).append(trained)
        self._evaluate(manifest, embeddings, trained, encoder, head, spec.search)

    def add_tuned(
        self, manifest: Manifest, tuned: _Tuned, heads: Sequence[HeadSpec]
    ) -> None:
        """The head that was trained with the network, and ``heads`` on top of it."""
        at, seed = self._work.at, self._work.spec.seed
        encoder, search = tuned.final.encoder, tuned.search
        refitted = tuned.embeddings if search.refit else None
        own = self._perform(
            Adopt(
                at,
                manifest,
                tuned.judged.artifact,
                tuned.judged_embeddings,
                tuned.final.artifact,
                encoder,
                seed,
            )
        )
        head = HeadSpec(name=OWN_HEAD.name, params=dict(OWN_HEAD.params))
        self._evaluate(manifest, tuned.embeddings, own, encoder, head, search)
        for head in heads:
            chosen = self._perform(
                Train(
                    at,
                    manifest,
                    tuned.judged_embeddings,
                    encoder,
                    head,
                    search,
                    seed,
                    refitted,
                )
            )
            self._evaluate(manifest, tuned.embeddings, chosen, encoder, head, search)

    def _evaluate(
        self,
        manifest: Manifest,
        embeddings: Artifact,
        trained: Artifact,
        encoder: AnyEncoder,
        head: HeadSpec,
        search: SearchSpec,
    ) -> None:
        spec = self._work.spec
        scored = self._perform(
            Evaluate(
                self._work.at,
                manifest,
                embeddings,
                trained,
                encoder,
                head,
                search,
                spec.seed,
                spec.calibration,
                spec.error,
                self._work.dataset.costs,
            )
        )
        self.evaluations.append(scored)
        self.subjects.append(Subject(encoder.key, head.short(), manifest.control))
        self.encoders.append(encoder)
        if not (manifest.control or HEADS[head.name].control):
            to = self._baselines if encoder.control else self._candidates
            to.append(scored)

    def average(self, manifest: Manifest) -> None:
        """The heads of a run together, and as a control those of the baselines."""
        ensemble, work = self._work.spec.ensemble, self._work
        if not ensemble:
            return
        several = [(self._candidates, "")]
        if len(self._baselines) > 1 and not work.skipped:
            several.append((self._baselines, UNTRAINED))
        for evaluations, control in several:
            mean = Average(
                work.at,
                manifest,
                tuple(evaluations),
                ensemble,
                work.spec.seed,
                work.spec.calibration,
                work.spec.error,
                control,
                work.dataset.costs,
            )
            self.evaluations.append(self._perform(mean))
            self.subjects.append(Subject("", ensemble, control))
            self.encoders.append(None)


def plan(work: Work) -> list[Step]:
    """What a run would do and why; nothing is computed, and the store is not touched.

    Raises:
        DatasetError: the dataset cannot be learned from.
    """
    steps: list[Step] = []
    with work.at.store.overlay() as overlay:

        def perform(stage: Stage[OutputT]) -> OutputT:
            outcome = stage.plan()
            steps.extend(outcome.steps)
            return outcome.output

        wire(replace(work, at=replace(work.at, store=overlay)), perform)
    return [*work.before, *steps, *work.skipped]


def directly(stage: Stage[OutputT]) -> Outcome[OutputT]:
    """Run ``stage`` in this process, without Prefect."""
    return stage.run()


def at_once(_title: str, work: Callable[[], None]) -> None:
    """Do ``work`` in this process, without Prefect."""
    work()


def run(
    work: Work,
    execute: Execute = directly,
    executor: Executor | None = None,
    attempt: Attempt = at_once,
) -> RunRecord:
    """Run everything, each stage by ``execute``; see ``wire``.

    Then record the run, rebuild the SQL catalogue and write the report, by ``attempt``:
    it may do so again where a store did not answer.

    Raises:
        DatasetError, WeightsError: see the stages.
    """
    started, steps = datetime.now(UTC), [*work.before]
    work.at.store.check_writable()  # before hours of work that it could not keep

    def perform(stage: Stage[OutputT]) -> OutputT:
        outcome: Outcome[OutputT] = execute(stage)
        steps.extend(outcome.steps)
        return outcome.output

    with _begun(work):
        with keeping_refused(work, steps):
            wired = wire(work, perform, executor)
        record = _recorded(work, started, steps, wired)

        def publish() -> None:
            records.write(work.at.store, record)
            query.build(work.at.store)
            report.write(work.at.store, record, work.dataset)

        attempt(f"publish {work.dataset.name}", publish)
    if any(step.stage == "embed" and not step.cached for step in steps):
        _advise(work, wired.manifest)
    return record


def _advise(work: Work, manifest: Manifest) -> None:
    """Tell of images that are far smaller than what a network makes of them."""
    if work.dataset.modality != "image" or work.spec.tune:
        return
    images = tables.read(
        MANIFEST, work.at.store.path(manifest.artifact), ("width", "height")
    )
    shorter = np.minimum(*(images[name].to_numpy() for name in images.column_names))
    side = int(np.median(shorter))
    for encoder in work.encoders:
        how = encoder.preprocess
        if encoder.control or not isinstance(how, Preprocess):
            continue
        if how.crop >= max(2 * side, LARGE):
            progress.notice(
                f"images are {side} px, and {encoder.label} enlarges them to "
                f"{how.crop}; a smaller side is often better and several times as "
                "fast: `tl tune` measures which"
            )
            return


@contextmanager
def keeping_refused(work: Work, steps: Sequence[Step]) -> Iterator[None]:
    """Let the quarantine be read of a run that is refused in the block.

    ``steps`` are those it took until then.
    """
    try:
        yield
    except DatasetError:
        store = work.at.store
        for step in steps:  # without one ingest has noted it
            if step.stage == "ingest":
                records.note_refused(store, work.dataset.name, step.keys["manifest"])
        if any((store.root / "refused").glob("*/*.json")):
            query.build(store)
        raise


@contextmanager
def _begun(work: Work) -> Iterator[None]:
    """Name in the store what the run uses, and keep its weights there.

    Raises:
        StoreError: nothing can be written there.
        WeightsError: weights changed since they were resolved.
    """
    store = work.at.store
    known = [key for keys in work.at.previous.values() for key in keys.values()]
    with store.in_use([*known, *(encoder.key for encoder in work.encoders)]):
        for encoder in work.encoders:
            weight_store.keep(encoder, store)
        yield


def _recorded(
    work: Work, started: datetime, steps: Sequence[Step], wired: Wired
) -> RunRecord:
    store, dataset, manifest = work.at.store, work.dataset.name, wired.manifest
    spec = work.spec
    best = wired.registered
    assert best is not None  # noqa: S101 - None only while planning
    keys = [evaluation.key for evaluation in wired.evaluations]
    paired = controls.pair(wired.subjects, keys, work.baselines)
    found = results.results(
        store, wired.evaluations, best.evaluation.key, paired, best.costs
    )
    split = results.split_report(store, manifest.artifact, dataset)
    folder = store.path(manifest.artifact)
    return RunRecord(
        run_id=records.new_run_id(),
        dataset=dataset,
        started=started,
        finished=datetime.now(UTC),
        spec=spec,
        steps=[*steps, *work.skipped],
        images=manifest.table.num_rows,
        quarantined=tables.count(QUARANTINE, folder) + _refused(work, manifest),
        duplicates=tables.count(DUPLICATES, folder),
        split_report=split.model_copy(update={"leakage": controls.leakage(found)}),
        manifest=manifest.key,
        results=found,
        finetunings=finetunings.results(store, wired.finetuned, found, spec.seed),
        joints=_joints(work),
        gain=controls.gain(store, found[0], spec.seed),
        decisions=decisions.of(
            store.path(best.evaluation),
            refitted=spec.search.select == "validation" and spec.search.refit,
        ),
        registered=_registered(dataset, best),
        chosen=best.chosen,
        comparisons=list(best.comparisons),
        source=source(work.dataset),
        tuning=work.tuning,
        tested=records.tested(records.latest(store, dataset), found),
    )


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


def _registered(dataset: str, best: Best) -> records.Registered:
    """How the best model stands in the registry."""
    assert best.registration  # noqa: S101 - None only while planning
    return records.Registered(name=dataset, **asdict(best.registration))


def _refused(work: Work, manifest: Manifest) -> int:
    """Images of ``manifest`` that some encoder of this run could not decode."""
    refused: set[str] = set()
    for part in (part for encoder, _ in work.heads for part in members_of(encoder)):
        refused |= EmbeddingFolder(work.at.store, part.key).refused().keys()
    if not refused:
        return 0
    return len(refused.intersection(manifest.table["image_id"].to_pylist()))

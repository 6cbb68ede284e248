"""Register: all evaluations of a run -> the best candidate as a model.

Reads the evaluations. Writes ``models/<key>/``, one complete folder (``model.json`` and
the head's files, those of several in ``members/<number>/``), gives it a version in the
registry, and the alias ``champion`` if it earns it: that is decided by every run, also
where the model is cached. Controls are compared with, never registered. What is the
best, ``choice`` decides.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from tl_pipeline.config.specs import Choose, ChooseBy, GateSpec
from tl_pipeline.data.splits import CHOOSING, VALIDATION
from tl_pipeline.encoders.concat import AnyEncoder
from tl_pipeline.evaluation import choice, scored_rows
from tl_pipeline.evaluation.choice import Candidate, Comparison, Cost, HeldOutScore
from tl_pipeline.evaluation.costs import COST, Costs
from tl_pipeline.evaluation.predicted_rows import PredictedRows
from tl_pipeline.evaluation.scored_rows import compared
from tl_pipeline.pipeline.costs import of_each
from tl_pipeline.pipeline.manifest import Manifest
from tl_pipeline.registry import model_folder, registration
from tl_pipeline.registry.registration import Registration, Submission
from tl_pipeline.runs import records
from tl_pipeline.runs.planning import Outcome, Step, Workspace
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.keys import KeyDocument, digest, key_document
from tl_pipeline.store.tables import METRICS

# Bump when the same inputs must give another model folder.
VERSION = 1


@dataclass(frozen=True)
class Best:
    """The best evaluation, its model, and by what it was chosen, in words.

    ``registration`` is None while planning what is not registered. ``comparisons`` are
    of all other candidates with the leading one, ``costs`` by key of evaluation.
    """

    model: Artifact
    evaluation: Artifact
    chosen: str
    registration: Registration | None = None
    comparisons: tuple[Comparison, ...] = ()
    costs: Mapping[str, Cost] = field(default_factory=dict)


@dataclass(frozen=True)
class Register:
    """The best of ``evaluations`` as a model of ``dataset``.

    ``encoders[i]`` is the encoder of ``evaluations[i]``, None of averaged heads.
    ``params`` are those of the run, for people; ``choose`` and ``choose_by`` tell how
    the best is chosen, at these ``costs``: see ``choice.chosen``.
    """

    at: Workspace
    dataset: str
    manifest: Manifest
    evaluations: tuple[Artifact, ...]
    encoders: tuple[AnyEncoder | None, ...]
    params: Mapping[str, str]
    choose: Choose
    choose_by: ChooseBy
    gate: GateSpec
    costs: Costs = field(default_factory=dict)

    @property
    def title(self) -> str:
        """See ``Stage``."""
        return f"register {self.dataset}"

    def plan(self) -> Outcome[Best | None]:
        """Look whether the best is registered; None while one is unscored."""
        started, store = time.perf_counter(), self.at.store
        unscored = [
            evaluation
            for evaluation in self.evaluations
            if store.find("evaluations", evaluation.key) is None
        ]
        if unscored:
            step = Step(
                stage="register",
                subject=self.dataset,
                cached=False,
                reason=f"waits for {len(unscored)} evaluations",
                keys={},
                seconds=time.perf_counter() - started,
            )
            return Outcome(None, (step,))
        found = self._chosen
        document = _document(self.dataset, found.evaluation)
        key = digest(document)
        model, known = store.find("models", key), None
        if model:
            best = self._submission(found.evaluation, model)
            known = registration.expected(store, best)
        reason = (
            f"the best candidate is version {known.version}"
            if known
            else self.at.why_not_cached("models", self.dataset, "model", document)
        )
        step = Step(
            stage="register",
            subject=self.dataset,
            cached=known is not None,
            reason=reason,
            keys={"model": key},
            seconds=time.perf_counter() - started,
        )
        return Outcome(replace(found, registration=known), (step,))

    def run(self) -> Outcome[Best | None]:
        """Build the model folder of the best, register it, decide who is champion."""
        started, store, planned = time.perf_counter(), self.at.store, self.plan()
        found = self._chosen
        best, chosen = found.evaluation, found.chosen
        document = _document(self.dataset, best)
        pairs = zip(self.evaluations, self.encoders, strict=True)
        used = {evaluation.key: encoder for evaluation, encoder in pairs if encoder}
        images = self.manifest.key

        def write(folder: Path) -> str:
            model_folder.write(store, self.dataset, best, chosen, used, images, folder)
            return digest(document)

        model = store.find("models", digest(document))
        model = model or store.build("models", document, write)
        made = registration.register(store, self._submission(best, model))
        outcome: Outcome[Best | None]
        found = replace(found, model=model, registration=made)
        outcome = Outcome(found, planned.steps)
        if planned.step.cached:
            return outcome
        return outcome.ran(time.perf_counter() - started)

    @cached_property
    def _chosen(self) -> Best:
        """The best of the evaluations that are no controls, and why."""
        from tl_pipeline.evaluation import comparison  # noqa: PLC0415 - scipy

        store = self.at.store
        costs = of_each(store, self.evaluations, self.encoders)
        about = {e.key: store.provenance(e) for e in self.evaluations}
        every = [e for e in self.evaluations if not about[e.key]["params"]["control"]]
        every = list({one.key: one for one in every}.values())
        scored = [_candidate(store, one, self.choose_by) for one in every]
        if len({split for _, split in scored}) > 1:
            # folds score more images than validation has
            scored = _on_common_images(store, every, scored, self.choose_by, self.costs)
        kept = _kept(store, self.dataset, every)
        candidates = [
            replace(one, cost=costs[key.key], kept=key.key == kept)
            for key, (one, _) in zip(every, scored, strict=True)
        ]
        at = choice.leading(candidates)
        found = [
            comparison.compared(
                one.key,
                every[at].key,
                compared(store, one, every[at], on_test=False),
                self.choose_by,
                seed=0,
                prices=self.costs,
            )
            for one in every
            if one != every[at]
        ]
        found = comparison.adjusted(found)
        of = {one.evaluation: one for one in found}
        how = choice.chosen(
            candidates,
            [of.get(one.key) for one in every],
            self.choose,
            self.choose_by,
            scored[0][1],
        )
        best = every[how.at]
        key = digest(_document(self.dataset, best))
        model = Artifact("models", key, key)
        return Best(model, best, how.reason, None, tuple(found), costs)

    def _submission(self, best: Artifact, model: Artifact) -> Submission:
        return Submission(
            dataset=self.dataset,
            manifest=self.manifest.key,
            images=tables.counts(self.manifest.table["split"]),
            evaluations=tuple(evaluation.key for evaluation in self.evaluations),
            best=best,
            model=model,
            params=self.params,
            gate=self.gate,
            metric=self.choose_by,
            costs=self.costs,
        )


def _kept(store: Store, dataset: str, evaluations: Sequence[Artifact]) -> str | None:
    """Which of ``evaluations`` is of the encoder and head that the last run chose."""
    last = records.latest(store, dataset)
    if last is None:
        return None
    for evaluation in evaluations:
        row = tables.read(METRICS, store.path(evaluation)).slice(0, 1).to_pylist()[0]
        if (row["encoder_key"], row["head"]) == (last.best.encoder_key, last.best.head):
            return evaluation.key
    return None


def _on_common_images(
    store: Store,
    candidates: Sequence[Artifact],
    scored: Sequence[tuple[Candidate, str]],
    metric: str,
    costs: Costs,
) -> list[tuple[Candidate, str]]:
    """``scored`` anew, on the held-out images on which all ``candidates`` were scored.

    No head or network of them learned from those.
    """
    from tl_pipeline.evaluation import metrics  # noqa: PLC0415 - scipy
    from tl_pipeline.evaluation.averaging import shared  # noqa: PLC0415

    held = [scored_rows.read(store, one).held_out for one in candidates]
    ids = shared(held)
    found = []
    for said, (candidate, _) in zip(held, scored, strict=True):
        some = said.of(ids)
        rows = PredictedRows(
            some.names(), some.classes, some.probabilities, np.arange(len(ids)), costs
        )
        value = {
            name: metrics.value(name, rows) for name in ("accuracy", "log_loss", metric)
        }
        merit = HeldOutScore(
            len(ids),
            value["accuracy"],
            value["log_loss"],
            _merit(metric, value[metric]),
        )
        found.append((replace(candidate, held_out=merit), VALIDATION))
    return found


def _candidate(
    store: Store, evaluation: Artifact, metric: str
) -> tuple[Candidate, str]:
    """What held-out images say, and what they are called; not what test does."""
    rows = tables.read(METRICS, store.path(evaluation)).to_pylist()
    held = {row["metric"]: row for row in rows if row["split"] in CHOOSING}
    accuracy, loss = held["accuracy"], held["log_loss"]
    merit = _merit(metric, held[metric]["value"])
    score = HeldOutScore(accuracy["images"], accuracy["value"], loss["value"], merit)
    name = f"{accuracy['head']} on {accuracy['encoder']}"
    return Candidate(name, score), accuracy["split"]


def _merit(metric: str, value: float) -> float:
    """The larger the better."""
    return -value if metric == COST else value


def _document(dataset: str, best: Artifact) -> KeyDocument:
    return key_document(
        "register",
        VERSION,
        {"dataset": dataset},
        {"evaluation": best.fingerprint},
    )

"""Register: all evaluations of a run -> the best candidate as a model.

Reads the evaluations. Writes ``models/<key>/``, one complete folder (``model.json`` and
the head's files, those of several in ``members/<number>/``), gives it a version in the
registry, and the alias ``champion`` if it earns it: that is decided by every run, also
where the model is cached. Controls are compared with, never registered. What is the
best, ``choice`` decides.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tl_pipeline.data.splits import CHOOSING, FOLDS, VALIDATION
from tl_pipeline.encoders.concat import AnyEncoder
from tl_pipeline.evaluation import choice, scored_rows
from tl_pipeline.evaluation.choice import Candidate, Choice, HeldOutScore
from tl_pipeline.evaluation.scored_rows import compared
from tl_pipeline.pipeline.manifest import Manifest
from tl_pipeline.registry import model_folder, registration
from tl_pipeline.registry.registration import Registration, Submission
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

    ``registration`` is None while planning what is not registered.
    """

    model: Artifact
    evaluation: Artifact
    chosen: str
    registration: Registration | None = None


@dataclass(frozen=True)
class Register:
    """The best of ``evaluations`` as a model of ``dataset``.

    ``encoders[i]`` is the encoder of ``evaluations[i]``, None of averaged heads.
    ``params`` are those of the run, for people.
    """

    at: Workspace
    dataset: str
    manifest: Manifest
    evaluations: tuple[Artifact, ...]
    encoders: tuple[AnyEncoder | None, ...]
    params: Mapping[str, str]

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
        best, chosen = _best(store, self.evaluations)
        document = _document(self.dataset, best)
        key = digest(document)
        model, known = store.find("models", key), None
        if model:
            known = registration.expected(store, self._submission(best, model))
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
        found = Best(Artifact("models", key, key), best, chosen, known)
        return Outcome(found, (step,))

    def run(self) -> Outcome[Best | None]:
        """Build the model folder of the best, register it, decide who is champion."""
        started, store, planned = time.perf_counter(), self.at.store, self.plan()
        best, chosen = _best(store, self.evaluations)
        document = _document(self.dataset, best)
        pairs = zip(self.evaluations, self.encoders, strict=True)
        used = {evaluation.key: encoder for evaluation, encoder in pairs if encoder}

        def write(folder: Path) -> str:
            images = self.manifest.key
            model_folder.write(store, self.dataset, best, chosen, used, images, folder)
            return digest(document)

        model = store.find("models", digest(document))
        model = model or store.build("models", document, write)
        made = registration.register(store, self._submission(best, model))
        outcome: Outcome[Best | None]
        outcome = Outcome(Best(model, best, chosen, made), planned.steps)
        if planned.step.cached:
            return outcome
        return outcome.ran(time.perf_counter() - started)

    def _submission(self, best: Artifact, model: Artifact) -> Submission:
        return Submission(
            dataset=self.dataset,
            manifest=self.manifest.key,
            images=tables.counts(self.manifest.table["split"]),
            evaluations=tuple(evaluation.key for evaluation in self.evaluations),
            best=best,
            model=model,
            params=self.params,
        )


def _best(store: Store, evaluations: Sequence[Artifact]) -> tuple[Artifact, str]:
    """The best of the evaluations that are no controls, and by what it was chosen."""
    about = {e.key: store.provenance(e) for e in evaluations}
    candidates = [e for e in evaluations if not about[e.key]["params"]["control"]]
    scored = [_candidate(store, evaluation) for evaluation in candidates]
    frozen = [at for at, (_, split) in enumerate(scored) if split == FOLDS]
    mixed = 0 < len(frozen) < len(scored)
    if mixed:  # folds score more images than validation has
        scored = _on_common_images(store, candidates, scored)
    found = choice.best([one for one, _ in scored], scored[0][1])
    if mixed and found.at not in frozen:
        found = _unless_tied(store, candidates, scored, found, frozen)
    return candidates[found.at], found.reason


def _unless_tied(
    store: Store,
    candidates: Sequence[Artifact],
    scored: Sequence[tuple[Candidate, str]],
    found: Choice,
    frozen: Sequence[int],
) -> Choice:
    """The best on a ``frozen`` network where fine-tuning is not known to be better.

    It is cheaper, and of few images the best of several is often so by luck.
    """
    from tl_pipeline.evaluation.intervals import paired_difference  # noqa: PLC0415

    at = max(frozen, key=lambda one: scored[one][0].held_out.merit)
    pair = (candidates[found.at], candidates[at])
    both = compared(store, *pair, on_test=False)
    gain = paired_difference(both.first, both.second, both.units, seed=0)
    if gain.low is None or gain.low > 0:
        return found
    name, best = (scored[one][0] for one in (found.at, at))
    said = f"[{gain.low:+.1%}, {gain.high:+.1%}]".replace("%", " %")
    reason = (
        f"{choice.reason(best.held_out, VALIDATION)}; {name.name} is right in "
        f"{name.held_out.right:,}, which is a tie {said}, and the frozen network is "
        "cheaper"
    )
    return Choice(at, reason)


def _on_common_images(
    store: Store,
    candidates: Sequence[Artifact],
    scored: Sequence[tuple[Candidate, str]],
) -> list[tuple[Candidate, str]]:
    """``scored`` anew, on the held-out images on which all ``candidates`` were scored.

    No head or network of them learned from those.
    """
    from tl_pipeline.evaluation.averaging import shared  # noqa: PLC0415
    from tl_pipeline.heads.cross_validation import FoldPredictions  # noqa: PLC0415

    held = [scored_rows.read(store, one).held_out for one in candidates]
    ids = shared(held)
    found = []
    for said, (candidate, _) in zip(held, scored, strict=True):
        some = said.of(ids)
        rows, classes = np.arange(len(ids)), np.array(some.classes)
        score = FoldPredictions(0, rows, some.names(), classes, some.probabilities)
        told = score.score()
        merit = HeldOutScore(len(ids), told.accuracy, told.log_loss)
        found.append((Candidate(candidate.name, merit), VALIDATION))
    return found


def _candidate(store: Store, evaluation: Artifact) -> tuple[Candidate, str]:
    """What held-out images say, and what they are called; not what test does."""
    rows = tables.read(METRICS, store.path(evaluation)).to_pylist()
    held = {row["metric"]: row for row in rows if row["split"] in CHOOSING}
    accuracy, loss = held["accuracy"], held["log_loss"]
    score = HeldOutScore(accuracy["images"], accuracy["value"], loss["value"])
    name = f"{accuracy['head']} on {accuracy['encoder']}"
    return Candidate(name, score), accuracy["split"]


def _document(dataset: str, best: Artifact) -> KeyDocument:
    return key_document(
        "register",
        VERSION,
        {"dataset": dataset},
        {"evaluation": best.fingerprint},
    )

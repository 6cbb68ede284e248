"""How models come into the registry, and how the alias ``champion`` moves.

A model is registered once for what predicts in it (``model_folder.content``). Who is
champion is decided anew by every run (``promotion``). MLflow is imported only where
something is to be written.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tl_pipeline.config.specs import GateSpec
from tl_pipeline.data.splits import TRAIN, VALIDATION
from tl_pipeline.errors import InvalidSpec, UnknownName
from tl_pipeline.evaluation.costs import Costs
from tl_pipeline.registry import (
    backup,
    connection,
    index,
    logged_run,
    model_folder,
    promotion,
)
from tl_pipeline.registry.entries import RegisteredModel, Version
from tl_pipeline.registry.promotion import Decision
from tl_pipeline.registry.rebuilding import fill
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.files import write_atomically

if TYPE_CHECKING:
    from tl_pipeline.registry.tracking import Registry


@dataclass(frozen=True)
class Submission:
    """What a run hands to the registry.

    ``manifest`` and ``evaluations`` are keys, ``images`` counts them by split.
    ``model`` is the folder of ``best``, one of the evaluations. ``params`` are for
    people, ``gate`` tells what a new champion must keep, by ``metric`` at ``costs``.
    """

    dataset: str
    manifest: str
    images: Mapping[str, int]
    evaluations: tuple[str, ...]
    best: Artifact
    model: Artifact
    params: Mapping[str, str]
    gate: GateSpec
    metric: str = "accuracy"
    costs: Costs = field(default_factory=dict)

    def decide(self, store: Store, model: RegisteredModel, one: Version) -> Decision:
        """See ``promotion.decide``."""
        return promotion.decide(store, model, one, self.gate, self.metric, self.costs)


@dataclass(frozen=True)
class Registration:
    """How the best model of a run stands in the registry, and why.

    ``model`` is the key of the folder of its version. It was ``promoted`` if this run
    made it champion. It is not ``comparable`` where the champion stays because nothing
    could be compared: that is said loudly.
    """

    version: int
    model: str
    champion: bool
    promoted: bool
    reason: str
    comparable: bool = True


def expected(store: Store, submission: Submission) -> Registration | None:
    """What ``register`` would say; None where it would make a version.

    Raises:
        StoreError: the registry cannot be read.
    """
    model = _only(connection.read(store, submission.dataset))
    if model is None:
        return None
    candidate = _candidate(store, submission, model)
    if not candidate.number:
        return None
    decision = submission.decide(store, model, candidate)
    return _registration(_decided(model, candidate, decision), candidate, decision)


def register(store: Store, submission: Submission) -> Registration:
    """Give the model a version unless it has one, and decide who is champion.

    Raises:
        StoreError: the registry cannot be read or written.
    """
    if model := _only(connection.read(store, submission.dataset)):
        candidate = _candidate(store, submission, model)
        decision = submission.decide(store, model, candidate)
        if _is_settled(store, submission, model, candidate, decision):
            backup.write(store, model)
            _keep(store, model.name, candidate, decision)
            return _registration(model, candidate, decision)
    made, model = connection.change(
        store,
        partial(_register, store, submission),
        partial(fill, store, submission.model.key),
    )
    backup.write(store, model)
    return made


def promote(store: Store, name: str, number: int, reason: str) -> RegisteredModel:
    """Make version ``number`` of ``name`` champion by hand.

    Raises:
        UnknownName: there is no such model or version.
        DamagedArtifact: its folder is gone.
        StoreError: the registry cannot be read or written.
    """
    model = index.find(store, name).noticed()
    index.check_folder(store, model, _version(model, number))
    return _moved(store, model.promoted(number, "hand", reason))


def roll_back(store: Store, name: str, reason: str) -> RegisteredModel:
    """Make the champion before the present one champion again.

    Raises:
        UnknownName: there is no such model.
        InvalidSpec: no earlier champion is known.
        DamagedArtifact: its folder is gone.
        StoreError: the registry cannot be read or written.
    """
    moved = index.find(store, name).noticed().rolled_back(reason)
    if moved is None or moved.champion is None:
        raise InvalidSpec(
            f"no earlier champion of {name} is known; `tl models promote {name} "
            "VERSION` chooses one of its versions"
        )
    index.check_folder(store, moved, moved.champion)
    return _moved(store, moved)


def compare(
    store: Store,
    name: str,
    number: int,
    other: int,
    gate: GateSpec,
    metric: str | None = None,
    costs: Costs | None = None,
) -> Decision:
    """What the gate would say of version ``number`` were ``other`` champion.

    By ``metric``, accuracy where it is None.

    Raises:
        UnknownName: there is no such model or version.
        StoreError: the registry cannot be read.
    """
    model, metric = index.find(store, name), metric or promotion.ACCURACY
    candidate, holder = (_version(model, one) for one in (number, other))
    return promotion.compare(store, holder, candidate, gate, metric, costs or {})


def evidence_file(store: Store, name: str, number: int) -> Path:
    """Where the evidence of version ``number`` lies, if it was ever compared."""
    return store.root / connection.FOLDER / name / f"{number}.evidence.json"


def _keep(store: Store, name: str, candidate: Version, decision: Decision) -> None:
    """Write the evidence of ``decision`` beside the alias."""
    if decision.evidence is None:
        return
    found = decision.evidence.model_copy(update={"candidate": candidate.number})
    told = {"promoted": decision.promote, "reason": decision.reason}
    file = evidence_file(store, name, candidate.number)
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**told, **found.model_dump()}, indent=1, ensure_ascii=False)
    with store.mirror.sending(file):
        write_atomically(file, text)


def _version(model: RegisteredModel, number: int) -> Version:
    version = model.version(number)
    if version is None:
        known = {str(version.number) for version in model.versions}
        raise UnknownName(f"version of model {model.name!r}", str(number), known)
    return version


def _is_settled(
    store: Store,
    submission: Submission,
    model: RegisteredModel,
    candidate: Version,
    decision: Decision,
) -> bool:
    """Whether the registry says all of it already."""
    return (
        candidate in model.versions
        and not decision.promote
        and model == model.noticed()
        and connection.is_logged(
            store, model.name, logged_run.fingerprint(submission.evaluations)
        )
    )


def _register(
    store: Store, submission: Submission, registry: "Registry"
) -> tuple[Registration, RegisteredModel]:
    """Write what is not there, having seen what others wrote meanwhile."""
    name = submission.dataset
    model = (_only(registry.models(name)) or RegisteredModel(name=name)).noticed()
    candidate = _candidate(store, submission, model)
    decision = submission.decide(store, model, candidate)
    number, run = candidate.number, None
    if not registry.is_logged(name, logged_run.fingerprint(submission.evaluations)):
        run = _logged_run(store, submission)
    if number:
        registry.tag_version(name, candidate)
    if run:
        number = registry.log_run(run, None if number else candidate) or number
    number = number or registry.add_version(name, candidate)
    candidate = candidate.model_copy(update={"number": number})
    model = _decided(model, candidate, decision)
    registry.set_aliases(model)
    _keep(store, name, candidate, decision)
    return _registration(model, candidate, decision), model


def _decided(
    model: RegisteredModel, candidate: Version, decision: Decision
) -> RegisteredModel:
    """``model`` with the version ``candidate``, as champion if it became that."""
    model = model.having(candidate)
    if decision.promote:
        return model.promoted(candidate.number, "run", decision.reason)
    return model


def _registration(
    model: RegisteredModel, candidate: Version, decision: Decision
) -> Registration:
    cure = f"`tl models promote {model.name} {candidate.number}`"
    way = "" if decision.comparable else f". If that is as it should be: {cure}"
    return Registration(
        version=candidate.number,
        model=candidate.model or "",
        champion=model.champion == candidate,
        promoted=decision.promote,
        reason=f"{decision.reason}{way}",
        comparable=decision.comparable,
    )


def _candidate(store: Store, submission: Submission, model: RegisteredModel) -> Version:
    """The version that the submitted model is, or will be: that has the number 0."""
    version = _same(store, model, submission.model)
    splits = submission.images
    now = {
        "model": submission.model.key,
        "content": model_folder.content(store.path(submission.model)),
        "evaluation": submission.best.key,
        "images": splits.get(TRAIN, 0) + splits.get(VALIDATION, 0),
    }
    if version is None:
        best = logged_run.candidate(store, submission.best, submission.best.key)
        version = Version(
            number=0, encoder=best.encoder, head=best.head, metrics={**best.metrics}
        )
    elif version.model and store.find("models", version.model):
        now["model"] = version.model
    return version.model_copy(update=now)


def _same(store: Store, model: RegisteredModel, made: Artifact) -> Version | None:
    """The version of ``model`` in which the same predicts as in ``made``."""
    content = model_folder.content(store.path(made))
    for version in model.versions:
        known = version.content
        if known is None and version.model:  # of an older version
            known = model_folder.content(store.root / "models" / version.model)
        if version.model == made.key or (known and known == content):
            return version
    return None


def _logged_run(store: Store, submission: Submission) -> logged_run.LoggedRun | None:
    return logged_run.read(
        store,
        submission.dataset,
        submission.manifest,
        submission.images,
        submission.evaluations,
        submission.best.key,
        submission.params,
        datetime.now(UTC),
    )


def _moved(store: Store, model: RegisteredModel) -> RegisteredModel:
    """``model``, whose aliases and history are written."""

    def move(registry: "Registry") -> None:
        registry.set_aliases(model)

    connection.change(store, move, partial(fill, store, ""))
    backup.write(store, model)
    return model


def _only(models: Iterable[RegisteredModel] | None) -> RegisteredModel | None:
    return next(iter(models or ()), None)

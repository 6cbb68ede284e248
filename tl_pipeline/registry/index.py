"""Registered models: complete folders, with versions and a champion.

``models/<key>/`` holds everything a prediction needs but the network's own weights:
``model.json`` (encoder identity with preprocessing, head, label names, scores), the
head, its operating point and the provenance. A model of joint encoders or of several
heads keeps each head in ``members/<number>/``. MLflow's index (``mlflow_index``) gives
versions and the alias ``champion``; it can be rebuilt from the folders, never the other
way round. In an object store ``versions`` are given by a list that all machines share,
and the index follows it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_pipeline.data.splits import FOLDS, VALIDATION
from tl_pipeline.encoders.concat import AnyEncoder, ConcatEncoder, unique_members
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.encoders.weight_store import located
from tl_pipeline.errors import StoreError, UnknownName
from tl_pipeline.evaluation.operating_point import OperatingPoint
from tl_pipeline.heads.fitted import FittedHead
from tl_pipeline.heads.fitted import load as load_head
from tl_pipeline.registry import mlflow_index, promotion, versions
from tl_pipeline.registry.mlflow_index import CHAMPION, Index, Indexed
from tl_pipeline.registry.versions import Version
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.files import write_atomically

# The format of ``model.json`` where there are several encoders or heads.
SEVERAL = 2


@dataclass(frozen=True)
class Member:
    """A head, the identity of the encoder that it needs, and how much it counts.

    One of several is calibrated before they are averaged.
    """

    encoder: AnyEncoder
    head: FittedHead
    times: int = 1
    operating_point: OperatingPoint | None = None


@dataclass(frozen=True)
class Model:
    """A registered model: one head, or several whose probabilities are averaged.

    ``classes`` are the label names that it can give. Models of older versions have no
    operating point.
    """

    folder: Path
    dataset: str
    members: tuple[Member, ...]
    classes: list[str]
    about: dict[str, Any]
    operating_point: OperatingPoint | None = None

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """Every encoder that an input must go through, once."""
        return unique_members(member.encoder for member in self.members)


@dataclass(frozen=True)
class Registration:
    """A model's version in the registry, and whether it became champion, and why."""

    version: int
    champion: bool
    reason: str


def registration(store: Store, model: str) -> Registration | None:
    """How the model of that key was registered, or None if it never was, wholly."""
    for made in versions.every(store):
        if made.model == model:
            return Registration(made.version, made.champion, made.reason)
    try:
        return Registration(**json.loads(_record(store, model).read_text()))
    except FileNotFoundError:
        return None


def register(store: Store, model: Artifact) -> Registration:
    """Give ``model`` a version, and the alias ``champion`` if it earns it.

    When it does says ``promotion.decide``.
    """
    about = json.loads((store.path(model) / "model.json").read_text())
    with store.lock("registry"):
        if store.mirror.url:
            return _append(store, model.key, about)
        index, dataset = Index(store), about["dataset"]
        version = index.add(model.key, about)
        champion, reason = promotion.decide(store, index.champion(dataset), about)
        if champion:
            index.promote(dataset, version)
        result = Registration(version, champion, reason)
        record = _record(store, model.key)
        record.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(record, json.dumps(result.__dict__))
        return result


def _append(store: Store, model: str, about: dict[str, Any]) -> Registration:
    """Register in an object store, where other machines may do so at the same time."""
    while True:
        index, dataset = _follow(store), about["dataset"]
        if known := registration(store, model):
            return known
        given = [v.version for v in versions.every(store) if v.dataset == dataset]
        holder = index.champion(dataset) if given else None
        champion, reason = promotion.decide(store, holder, about)
        number = max(given, default=0) + 1
        versions.append(
            store, Version(dataset, number, model, champion, reason, about)
        )  # if another was first, decide again in knowledge of it


def _follow(store: Store) -> Index:
    """The index of this machine, with every version of the object store.

    Raises:
        StoreError: the index holds other versions than the store.
    """
    index = Index(store)
    known = {(row.name, row.number): row.model for row in index.versions()}
    for made in versions.every(store):
        model, number = known.get((made.dataset, made.version)), made.version
        if model is None:
            model, number = made.model, index.add(made.model, made.about)
            if made.champion:
                index.promote(made.dataset, number)
        if (model, number) != (made.model, made.version):
            raise StoreError(
                f"{store.root / 'mlflow.db'} knows other versions of {made.dataset} "
                f"than {store.uri}; delete the file, it is made anew"
            )
    return index


def models(store: Store) -> list[dict[str, Any]]:
    """One row per registered version, newest first, with its aliases and scores."""
    made = {(v.dataset, v.version): v.about for v in versions.every(store)}
    if made:
        with store.lock("registry"):
            _follow(store)
    if not mlflow_index.exists(store):
        return []
    rows = []
    for version in Index(store).versions():
        if version.aliases:  # one that is about to be used comes here
            store.find("models", version.model)
        about = made.get((version.name, version.number))
        rows.append(_row(store, version, about))
    return sorted(rows, key=lambda row: (row["name"], -row["version"]))


def _row(
    store: Store, version: Indexed, about: dict[str, Any] | None
) -> dict[str, Any]:
    """``about`` is believed where there is no model folder."""
    folder = store.root / "models" / version.model
    file = folder / "model.json"
    about = json.loads(file.read_text()) if file.exists() else about
    return {
        "name": version.name,
        "version": version.number,
        "aliases": version.aliases,
        "encoder": about and about["encoder_label"],
        "head": about and about["head_label"],
        "folds_accuracy": about and _accuracy(about, FOLDS),
        "validation_accuracy": about and _accuracy(about, VALIDATION),
        "test_accuracy": about and _accuracy(about, "test"),
        "folder": str(folder) if about else None,
        "model": version.model,
    }


def load_model(store: Store, name: str, alias: str = CHAMPION) -> Model:
    """The model of dataset ``name`` that ``alias`` points to.

    Raises:
        UnknownName: no such model or alias.
        UnsafeModelFile: its head holds what must not be loaded.
    """
    every = models(store)
    rows = [row for row in every if row["name"] == name]
    if not rows:
        raise UnknownName("model", name, {row["name"] for row in every})
    for row in rows:
        if alias in row["aliases"]:
            return open_model(store.root / "models" / row["model"], store)
    known = {known for row in rows for known in row["aliases"]}
    raise UnknownName(f"alias of model {name!r}", alias, known)


def open_model(folder: Path, store: Store | None = None) -> Model:
    """The model in ``folder``, which needs no registry.

    Its weights are those that ``store``, by default the one around ``folder``, keeps.

    Raises:
        StoreError: it is of a format that this version does not know.
        DamagedArtifact, UnsafeModelFile: see ``heads.fitted.load`` and
            ``OperatingPoint.read``.
    """
    about = json.loads((folder / "model.json").read_text())
    store = store or Store(folder.parent.parent)
    if about["format"] == 1:
        encoder = located(Encoder.model_validate(about["encoder"]), store)
        members = (Member(encoder, load_head(folder)),)
    elif about["format"] == SEVERAL:
        members = tuple(_member(folder, row, store) for row in about["members"])
    else:
        raise StoreError(
            f"{folder}: this version reads models of the formats 1 and {SEVERAL}, not "
            f"{about['format']}; use the version that wrote it"
        )
    point = OperatingPoint.read(folder)
    return Model(folder, about["dataset"], members, about["classes"], about, point)


def _member(folder: Path, row: dict[str, Any], store: Store) -> Member:
    named = map(Encoder.model_validate, row["encoders"])
    found = tuple(located(encoder, store) for encoder in named)
    encoder = found[0] if len(found) == 1 else ConcatEncoder(members=found)
    place = folder / row["folder"]
    point = OperatingPoint.read(place)
    return Member(encoder, load_head(place), row["times"], point)


def _record(store: Store, model: str) -> Path:
    return store.root / "registry" / f"{model}.json"


def _accuracy(about: dict[str, Any], split: str) -> float | None:
    """None of folds where none were scored."""
    found = about["metrics"].get(split)
    return found and found["accuracy"]["value"]

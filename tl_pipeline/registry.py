"""Registered models: complete folders, indexed by MLflow on SQLite.

``models/<key>/`` holds everything a prediction needs but the network's own weights:
``model.json`` (encoder identity with preprocessing, head, label names, scores), the
head, its operating point and the provenance. A model of joint encoders or of several
heads keeps each head in ``members/<number>/``. MLflow gives versions and the alias
``champion``; it can be rebuilt from the folders, never the other way round. In an
object store ``versions`` are given by a list that all machines share, and MLflow's
database follows it.
"""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_pipeline import tables, versions
from tl_pipeline.artifacts import Artifact, Store, write_atomically
from tl_pipeline.comparison import paired_difference
from tl_pipeline.encoders import Encoder
from tl_pipeline.errors import StoreError, UnknownName
from tl_pipeline.heads.fitted import FittedHead
from tl_pipeline.heads.fitted import load as load_head
from tl_pipeline.joints import AnyEncoder, Joint, flattened
from tl_pipeline.operating_point import OperatingPoint
from tl_pipeline.splits import FOLDS, VALIDATION
from tl_pipeline.tables import PREDICTIONS
from tl_pipeline.versions import Version

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION = "champion"
FIRST = "the first model of this dataset"
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
        return flattened(member.encoder for member in self.members)


@dataclass(frozen=True)
class Registration:
    """A model's version in the registry, and whether it became champion, and why."""

    version: int
    champion: bool
    reason: str


def database(store: Store) -> str:
    """The URI that MLflow knows the registry by."""
    return f"sqlite:///{store.root / 'mlflow.db'}"


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

    It earns it when there is no champion, or when it is right at least as often on the
    validation images that both were scored on: neither learned from those.
    """
    folder = store.path(model)
    about = json.loads((folder / "model.json").read_text())
    with store.lock("registry"):
        if store.mirror.url:
            return _append(store, model.key, about)
        client = _client(store)
        version = _version(client, store, about, model.key, folder)
        promoted, reason = _promotion(client, store, about)
        if promoted:
            client.set_registered_model_alias(about["dataset"], CHAMPION, str(version))
        result = Registration(version, promoted, reason)
        record = _record(store, model.key)
        record.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(record, json.dumps(result.__dict__))
        return result


def _append(store: Store, model: str, about: dict[str, Any]) -> Registration:
    """Register in an object store, where other machines may do so at the same time."""
    while True:
        client, dataset = _follow(store), about["dataset"]
        if known := registration(store, model):
            return known
        given = [v.version for v in versions.every(store) if v.dataset == dataset]
        promoted, reason = True, FIRST
        if given:
            promoted, reason = _promotion(client, store, about)
        number = max(given, default=0) + 1
        versions.append(
            store, Version(dataset, number, model, promoted, reason, about)
        )  # if another was first, decide again in knowledge of it


def _follow(store: Store) -> "MlflowClient":
    """MLflow's index of this machine, with every version of the object store.

    Raises:
        StoreError: the index holds other versions than the store.
    """
    client = _client(store)
    known = {
        (entry.name, int(version.version)): version.tags["model"]
        for entry in client.search_registered_models()
        for version in client.search_model_versions(f"name='{entry.name}'")
    }
    for made in versions.every(store):
        model, number = known.get((made.dataset, made.version)), made.version
        if model is None:
            model, folder = made.model, store.root / "models" / made.model
            number = _version(client, store, made.about, model, folder)
            if made.champion:
                client.set_registered_model_alias(made.dataset, CHAMPION, str(number))
        if (model, number) != (made.model, made.version):
            raise StoreError(
                f"{store.root / 'mlflow.db'} knows other versions of {made.dataset} "
                f"than {store.uri}; delete the file, it is made anew"
            )
    return client


def models(store: Store) -> list[dict[str, Any]]:
    """One row per registered version, newest first, with its aliases and scores."""
    made = {(v.dataset, v.version): v.about for v in versions.every(store)}
    if made:
        with store.lock("registry"):
            _follow(store)
    if not (store.root / "mlflow.db").exists():
        return []
    client = _client(store)
    rows = []
    for entry in client.search_registered_models():
        aliases: dict[str, list[str]] = {}
        for alias, version in entry.aliases.items():
            aliases.setdefault(str(version), []).append(alias)
        for version in client.search_model_versions(f"name='{entry.name}'"):
            model = version.tags["model"]
            number, folder = int(version.version), store.root / "models" / model
            if str(number) in aliases:  # one that is about to be used comes here
                store.find("models", model)
            file = folder / "model.json"
            about = made.get((entry.name, number))
            about = json.loads(file.read_text()) if file.exists() else about
            rows.append(
                {
                    "name": entry.name,
                    "version": number,
                    "aliases": aliases.get(str(number), []),
                    "encoder": about and about["encoder_label"],
                    "head": about and about["head_label"],
                    "folds_accuracy": about and _accuracy(about, FOLDS),
                    "validation_accuracy": about and _accuracy(about, VALIDATION),
                    "test_accuracy": about and _accuracy(about, "test"),
                    "folder": str(folder) if about else None,
                    "model": model,
                }
            )
    return sorted(rows, key=lambda row: (row["name"], -row["version"]))


def load_model(store: Store, name: str, alias: str = CHAMPION) -> Model:
    """The model of dataset ``name`` that ``alias`` points to.

    Raises:
        UnknownName: no such model or alias.
        UnsafeModelFile: its head holds what must not be loaded.
    """
    rows = [row for row in models(store) if row["name"] == name]
    if not rows:
        raise UnknownName("model", name, {row["name"] for row in models(store)})
    for row in rows:
        if alias in row["aliases"]:
            return open_model(store.root / "models" / row["model"])
    known = {known for row in rows for known in row["aliases"]}
    raise UnknownName(f"alias of model {name!r}", alias, known)


def open_model(folder: Path) -> Model:
    """The model in ``folder``, which needs no registry.

    Raises:
        StoreError: it is of a format that this version does not know.
        DamagedArtifact, UnsafeModelFile: see ``heads.fitted.load`` and
            ``OperatingPoint.read``.
    """
    about = json.loads((folder / "model.json").read_text())
    if about["format"] == 1:
        encoder = Encoder.model_validate(about["encoder"])
        members = (Member(encoder, load_head(folder)),)
    elif about["format"] == SEVERAL:
        members = tuple(_member(folder, row) for row in about["members"])
    else:
        raise StoreError(
            f"{folder}: this version reads models of the formats 1 and {SEVERAL}, not "
            f"{about['format']}; use the version that wrote it"
        )
    point = OperatingPoint.read(folder)
    return Model(folder, about["dataset"], members, about["classes"], about, point)


def _member(folder: Path, row: dict[str, Any]) -> Member:
    found = tuple(map(Encoder.model_validate, row["encoders"]))
    encoder = found[0] if len(found) == 1 else Joint(members=found)
    place = folder / row["folder"]
    point = OperatingPoint.read(place)
    return Member(encoder, load_head(place), row["times"], point)


def _record(store: Store, model: str) -> Path:
    return store.root / "registry" / f"{model}.json"


def _accuracy(about: dict[str, Any], split: str) -> float | None:
    """None of folds where none were scored."""
    found = about["metrics"].get(split)
    return found and found["accuracy"]["value"]


def _client(store: Store) -> "MlflowClient":
    # No call home, and no lines about database migrations on a user's console.
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient  # noqa: PLC0415 - one second

    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)

    return MlflowClient(database(store), database(store))


def _version(
    client: "MlflowClient", store: Store, about: dict[str, Any], key: str, folder: Path
) -> int:
    """The version of the model of ``key``, made if a broken run did not get to it."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415

    name = about["dataset"]
    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name)
    for version in client.search_model_versions(f"name='{name}'"):
        if version.tags.get("model") == key:
            return int(version.version)
    experiment = client.get_experiment_by_name(name)
    experiment_id = (
        experiment.experiment_id
        if experiment
        else client.create_experiment(name, (store.root / "models").as_uri())
    )
    run = client.create_run(experiment_id, run_name=about["encoder_label"])
    client.log_param(run.info.run_id, "encoder", about["encoder_label"])
    client.log_param(run.info.run_id, "head", about["head_label"])
    for split, found in about["metrics"].items():
        for metric, score in found.items():
            client.log_metric(run.info.run_id, f"{split}_{metric}", score["value"])
    client.set_terminated(run.info.run_id)
    made = client.create_model_version(
        name, folder.as_uri(), run.info.run_id, tags={"model": key}
    )
    return int(made.version)


def _promotion(
    client: "MlflowClient", store: Store, about: dict[str, Any]
) -> tuple[bool, str]:
    """Whether the model described by ``about`` becomes champion, and why."""
    entry = client.get_registered_model(about["dataset"])
    if CHAMPION not in entry.aliases:
        return True, FIRST
    number = entry.aliases[CHAMPION]
    holder = client.get_model_version(about["dataset"], number)
    store.find("models", holder.tags["model"])
    file = store.root / "models" / holder.tags["model"] / "model.json"
    if not file.exists():
        return True, f"version {number}, the champion, is gone"
    evaluation = json.loads(file.read_text())["evaluation"]
    mine = _validation(store, about["evaluation"])
    theirs = _validation(store, evaluation)
    both = sorted(mine.keys() & theirs.keys())
    if not both:
        return True, f"no validation image in common with version {number}"
    # Today's labels count for both: the champion may have been scored on older ones.
    import numpy as np  # noqa: PLC0415

    first = np.array([mine[i][0] == mine[i][1] for i in both])
    second = np.array([theirs[i][0] == mine[i][1] for i in both])
    difference = paired_difference(first, second, seed=0)
    said = (
        f"{difference.value:+.2%} on {difference.rows:,} validation images in common "
        f"with version {number} [{difference.low:+.2%}, {difference.high:+.2%}]"
    )
    return difference.value >= 0, said


def _validation(store: Store, evaluation: str) -> dict[str, tuple[str, str]]:
    """Image id -> (predicted, label) on validation; empty if it is gone."""
    found = store.find("evaluations", evaluation)
    if found is None:
        return {}
    rows = tables.read(PREDICTIONS, store.path(found)).to_pylist()
    return {
        row["image_id"]: (row["predicted"], row["label"])
        for row in rows
        if row["split"] == VALIDATION
    }

"""Registered models as they are read: what there is, and the one that an alias names.

The registry is MLflow's (``connection``); a model itself is a folder of the store,
complete without it.
"""

from typing import TYPE_CHECKING, Any

from tl_pipeline.data.splits import FOLDS, TEST, VALIDATION
from tl_pipeline.errors import DamagedArtifact, StoreError, UnknownName
from tl_pipeline.registry import backup, connection
from tl_pipeline.registry.entries import CHAMPION, RegisteredModel, Version
from tl_pipeline.store.artifacts import Store

if TYPE_CHECKING:
    from tl_pipeline.registry.model import Model


def registered(store: Store) -> list[RegisteredModel]:
    """Every registered model, by name.

    Raises:
        StoreError: the registry cannot be read, or was lost.
    """
    found = connection.read(store)
    if found is None and (lost := backup.read(store)):
        versions = sum(len(one.versions) for one in lost)
        raise StoreError(
            f"{store.root / connection.FILE} is gone, in which {versions} versions of "
            f"{', '.join(one.name for one in lost)} were registered: `tl models "
            f"rebuild` makes it again; if they are in another registry, name it by "
            f"{connection.VARIABLE} or --registry"
        )
    return found or []


def models(store: Store) -> list[dict[str, Any]]:
    """One row per version, newest first, with its aliases and scores.

    Raises:
        StoreError: see ``registered``.
    """
    return [
        _row(store, model, version)
        for model in registered(store)
        for version in reversed(model.versions)
    ]


def load_model(store: Store, name: str, alias: str = CHAMPION) -> "Model":
    """The model of dataset ``name`` that ``alias`` points to; or a version's number.

    Raises:
        UnknownName: no such model or alias.
        DamagedArtifact: its folder is gone, or not whole.
        UnsafeModelFile: its head holds what must not be loaded.
        StoreError: see ``registered``.
    """
    from tl_pipeline.registry.model import open_model  # noqa: PLC0415 - seconds

    version = find_version(store, name, alias)
    return open_model(store.root / "models" / str(version.model), store)


def find_version(store: Store, name: str, alias: str = CHAMPION) -> Version:
    """The version that ``load_model`` loads, whose folder is whole.

    Raises:
        UnknownName, DamagedArtifact, StoreError: see ``load_model``.
    """
    model = find(store, name)
    number = int(alias) if alias.isdigit() else model.aliases.get(alias)
    version = model.version(number)
    if version is None:
        known = {*model.aliases, *(str(v.number) for v in model.versions)}
        raise UnknownName(f"alias or version of model {name!r}", alias, known)
    check_folder(store, model, version)
    return version


def find(store: Store, name: str) -> RegisteredModel:
    """The registered model of that name.

    Raises:
        UnknownName: there is none.
        StoreError: see ``registered``.
    """
    known = {model.name: model for model in registered(store)}
    if name not in known:
        raise UnknownName("model", name, known)
    return known[name]


def check_folder(store: Store, model: RegisteredModel, version: Version) -> None:
    """See that the folder of ``version`` is whole.

    Raises:
        DamagedArtifact: it is not.
    """
    name, number = model.name, version.number
    if version.model is None:
        raise DamagedArtifact(
            f"version {number} of {name} was registered by another program; "
            f"`tl models promote {name} VERSION` chooses one of ours"
        )
    if store.find("models", version.model) is None:
        rank = ", the champion," if version == model.champion else ""
        raise DamagedArtifact(
            f"version {number} of {name}{rank} cannot be used: "
            f"{store.root / 'models' / version.model} is gone or damaged. A run on the "
            f"same images makes it again; `tl models rollback {name}` or `tl models "
            f"promote {name} VERSION` chooses another version"
        )


def _row(store: Store, model: RegisteredModel, version: Version) -> dict[str, Any]:
    scores = version.metrics
    folder = store.root / "models" / version.model if version.model else None
    return {
        "name": model.name,
        "version": version.number,
        "aliases": model.aliases_of(version),
        "encoder": version.encoder,
        "head": version.head,
        "folds_accuracy": scores.get(f"{FOLDS}_accuracy"),
        "validation_accuracy": scores.get(f"{VALIDATION}_accuracy"),
        "test_accuracy": scores.get(f"{TEST}_accuracy"),
        "folder": str(folder) if folder else None,
        "model": version.model,
    }

"""The registry's database made again from what the store holds.

Numbers and aliases come from the backup and candidates from the run records. Of a
dataset without a backup all model folders become versions.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from tl_pipeline.errors import StoreError
from tl_pipeline.registry import backup, connection, logged_run, model_folder
from tl_pipeline.registry.entries import RegisteredModel, Version
from tl_pipeline.registry.logged_run import LoggedRun
from tl_pipeline.registry.model_folder import MODEL
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.tables import MANIFEST

if TYPE_CHECKING:
    from tl_pipeline.registry.tracking import Registry
    from tl_pipeline.runs.records import RunRecord


def rebuild(store: Store) -> list[RegisteredModel]:
    """Make the database again: all models with their versions and aliases.

    The backup is first brought up to date, if the database can be read. Models of a
    dataset without one are numbered by the age of their folders.

    Raises:
        StoreError: the registry is not the store's own, or cannot be written.
    """
    with suppress(StoreError):  # else that is why it is made again
        for model in connection.read(store) or []:
            backup.write(store, model)
    connection.remake(store, partial(fill, store, ""))
    found = connection.read(store) or []
    for model in found:
        backup.write(store, model)
    return found


def fill(store: Store, leave_out: str, registry: "Registry") -> None:
    """Register in an empty database what the store knows, except ``leave_out``."""
    records = _records(store)
    known = backup.read(store)
    for model in known:
        _restore(
            store, model, [r for r in records if r.dataset == model.name], registry
        )
    contents, names = set[str | None](), {model.name for model in known}
    for name, version in _folders(store):
        old = version.model == leave_out or version.content in contents
        if not old and name not in names:
            contents.add(version.content)
            registry.add_version(name, version)


def _records(store: Store) -> "list[RunRecord]":
    from tl_pipeline.runs import records  # noqa: PLC0415 - imports scipy

    return records.every(store)


def _restore(
    store: Store,
    model: RegisteredModel,
    records: "list[RunRecord]",
    registry: "Registry",
) -> None:
    """Register ``model`` again; ``records`` are of the runs on its dataset."""
    runs = [(record, _logged(store, record)) for record in records]
    firsts: dict[int, LoggedRun] = {}
    for record, run in runs:
        if run:
            firsts.setdefault(record.registered.version, run)
    logged = set()
    for number in range(1, model.latest + 1):
        version, run = model.version(number), firsts.get(number)
        if version is None:
            registry.skip_version(model.name)
        elif run:
            registry.log_run(run, version)
            logged.add(run.evaluations)
        else:
            registry.add_version(model.name, version)
    for _, run in runs:
        if run and run.evaluations not in logged:
            registry.log_run(run)
            logged.add(run.evaluations)
    registry.set_aliases(model)


def _logged(store: Store, record: "RunRecord") -> LoggedRun | None:
    """What MLflow shows of the run of ``record``; None if too much of it is gone."""
    spec, made = record.spec, store.find("manifests", record.manifest)
    images = {"images": record.images}
    if made:
        rows = tables.read(MANIFEST, store.path(made), ["split"])
        images = tables.counts(rows["split"])
    return logged_run.read(
        store,
        record.dataset,
        record.manifest,
        images,
        [result.evaluation for result in record.results],
        record.best.evaluation,
        logged_run.params(spec.seed, spec.search, spec.calibration, spec.error),
        record.started,
    )


def _folders(store: Store) -> Iterator[tuple[str, Version]]:
    """(dataset, version) of every model folder, the oldest first."""
    keys = {folder.name for folder in (store.root / "models").glob("[!.]*/")}
    keys |= {n.split("/")[1] for n in store.mirror.objects() if n.startswith("models/")}
    found = [made for key in keys if (made := store.find("models", key))]
    for made in sorted(found, key=lambda made: store.provenance(made)["finished"]):
        yield _described(store, made)


def _described(store: Store, made: Artifact) -> tuple[str, Version]:
    """The dataset of a model folder, and the version that it would be."""
    folder = store.path(made)
    about = json.loads((folder / MODEL).read_text())
    metrics = {
        f"{split}_{metric}": score["value"]
        for split, scores in about["metrics"].items()
        for metric, score in scores.items()
    }
    return about["dataset"], Version(
        number=0,
        model=made.key,
        content=model_folder.content(folder),
        evaluation=about["evaluation"],
        encoder=about["encoder_label"],
        head=about["head_label"],
        metrics=metrics,
    )

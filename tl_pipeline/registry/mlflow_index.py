"""The index of registered models that people know from MLflow: SQLite in the store.

It gives versions and aliases, and can be made anew from the model folders.
"""

import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from tl_pipeline.store.artifacts import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION = "champion"


class Indexed(NamedTuple):
    """One version of the model ``name``: ``model`` is the key of its folder."""

    name: str
    number: int
    model: str
    aliases: list[str]


class Index:
    """MLflow's index of the models of ``store``; it is made where there is none."""

    def __init__(self, store: Store) -> None:
        self._store, self._client = store, _client(store)

    def versions(self) -> Iterator[Indexed]:
        """Every version of every model."""
        for entry in self._client.search_registered_models():
            aliases: dict[str, list[str]] = {}
            for alias, version in entry.aliases.items():
                aliases.setdefault(str(version), []).append(alias)
            for version in self._of(entry.name):
                told = aliases.get(str(version.version), [])
                model = version.tags["model"]
                yield Indexed(entry.name, int(version.version), model, told)

    def champion(self, name: str) -> Indexed | None:
        """The version of the model ``name``, which is there, that is champion."""
        number = self._client.get_registered_model(name).aliases.get(CHAMPION)
        if number is None:
            return None
        model = self._client.get_model_version(name, number).tags["model"]
        return Indexed(name, int(number), model, [CHAMPION])

    def promote(self, name: str, number: int) -> None:
        """Make a version the champion."""
        self._client.set_registered_model_alias(name, CHAMPION, str(number))

    def add(self, model: str, about: dict[str, Any]) -> int:
        """The version of the model of that key, which ``model.json`` says ``about``.

        It is given one if a broken run did not get to it.
        """
        from mlflow.exceptions import MlflowException  # noqa: PLC0415

        name = about["dataset"]
        try:
            self._client.get_registered_model(name)
        except MlflowException:
            self._client.create_registered_model(name)
        for version in self._of(name):
            if version.tags.get("model") == model:
                return int(version.version)
        folder = self._store.root / "models" / model
        made = self._client.create_model_version(
            name, folder.as_uri(), self._run(about), tags={"model": model}
        )
        return int(made.version)

    def _of(self, name: str) -> Any:
        return self._client.search_model_versions(f"name='{name}'")

    def _run(self, about: dict[str, Any]) -> str:
        """The id of a new run of MLflow that shows the scores of a model."""
        client, name = self._client, about["dataset"]
        experiment = client.get_experiment_by_name(name)
        experiment_id = (
            experiment.experiment_id
            if experiment
            else client.create_experiment(name, (self._store.root / "models").as_uri())
        )
        run = client.create_run(experiment_id, run_name=about["encoder_label"])
        client.log_param(run.info.run_id, "encoder", about["encoder_label"])
        client.log_param(run.info.run_id, "head", about["head_label"])
        for split, found in about["metrics"].items():
            for metric, score in found.items():
                client.log_metric(run.info.run_id, f"{split}_{metric}", score["value"])
        client.set_terminated(run.info.run_id)
        return run.info.run_id


def exists(store: Store) -> bool:
    """Whether anything was ever registered here."""
    return (store.root / "mlflow.db").exists()


def database(store: Store) -> str:
    """The URI that MLflow knows the index by."""
    return f"sqlite:///{store.root / 'mlflow.db'}"


def _client(store: Store) -> "MlflowClient":
    # No call home, and no lines about database migrations on a user's console.
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient  # noqa: PLC0415 - one second

    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)

    return MlflowClient(database(store), database(store))

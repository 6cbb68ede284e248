"""What is written to MLflow: runs with their candidates, models, versions, aliases.

A run of the pipeline is a run of the experiment that is named by the dataset. Its
candidates are child runs, each with its parameters, its metrics and the manifest as the
dataset that they were measured on. The one that is registered is the source of a
LoggedModel, whose artifacts are those of the model folder, and of a version of the
registered model.
"""

import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS, MLFLOW_PARENT_RUN_ID

from tl_pipeline.registry import model_folder
from tl_pipeline.registry.entries import (
    EVALUATIONS,
    HISTORY,
    RegisteredModel,
    Version,
    history_of,
    history_text,
)
from tl_pipeline.registry.logged_run import Candidate, LoggedRun
from tl_pipeline.store.artifacts import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

ARTIFACTS = "mlflow"  # the folder of the store with the files of LoggedModels
_PAGE = 1000
_KIND = "mlflow.experimentKind"  # MLflow's pages show runs first, and not traces


class Registry:
    """An open registry; every method may raise what MLflow raises.

    ``own`` tells whether its database is the store's: then the files of a LoggedModel
    are links to those of the model folder. Other registries get copies.
    """

    def __init__(self, client: "MlflowClient", store: Store, *, own: bool) -> None:
        self._client = client
        self._store = store
        self._own = own

    def models(self, name: str | None = None) -> list[RegisteredModel]:
        """The registered models, or the one of that ``name``."""
        chosen = f"name = '{name}'" if name else None
        found = _pages(self._client.search_registered_models, filter_string=chosen)
        return [self._model(one) for one in found]

    def is_logged(self, experiment: str, evaluations: str) -> bool:
        """Whether a run of ``experiment`` with these evaluations is logged."""
        found = self._client.get_experiment_by_name(experiment)
        if found is None:
            return False
        chosen = f"tags.{EVALUATIONS} = '{evaluations}'"
        return bool(
            self._client.search_runs([found.experiment_id], chosen, max_results=1)
        )

    def log_run(self, run: LoggedRun, version: Version | None = None) -> int | None:
        """Log ``run``, and register its best candidate as ``version``; its number."""
        experiment, number = self._experiment(run.dataset), None
        with self._running(experiment, f"{run.started:%Y-%m-%d %H:%M:%S}", run) as top:
            for one in run.candidates:
                title = f"{one.head} on {one.encoder}"
                tags = {
                    MLFLOW_PARENT_RUN_ID: top,
                    "role": one.role,
                    "evaluation": one.evaluation,
                }
                with self._running(experiment, title, run, tags) as child:
                    about = {
                        "dataset_name": run.dataset,
                        "dataset_digest": run.manifest,
                    }
                    if version and one.role == "best":
                        number = self._register(
                            experiment, run.dataset, version, child, about
                        )
                    else:
                        self._log_scores(child, one, about)
            params = [Param(name, value) for name, value in run.params.items()]
            # Told last: what a kill leaves unfinished is logged again.
            tags = [RunTag(EVALUATIONS, run.evaluations)]
            self._client.log_batch(top, params=params, tags=tags)
        return number

    def add_version(self, name: str, version: Version) -> int:
        """Register ``version``, of which no other run tells; its number."""
        experiment, title = (
            self._experiment(name),
            f"{version.head} on {version.encoder}",
        )
        run = self._client.create_run(experiment, run_name=title).info.run_id
        number = self._register(experiment, name, version, run, {})
        self._client.set_terminated(run)
        return number

    def skip_version(self, name: str) -> None:
        """Use up the next number, as one that was deleted."""
        self._ensure(name)
        made = self._client.create_model_version(name, self._store.root.as_uri())
        self._client.delete_model_version(name, made.version)

    def tag_version(self, name: str, version: Version) -> None:
        """Give the version of that number the tags of ``version``."""
        for tag, value in version.tags.items():
            self._client.set_model_version_tag(name, str(version.number), tag, value)

    def set_aliases(self, model: RegisteredModel) -> None:
        """Make aliases and history those of ``model``."""
        for alias, number in model.aliases.items():
            self._client.set_registered_model_alias(model.name, alias, str(number))
        text = history_text(model.history)
        self._client.set_registered_model_tag(model.name, HISTORY, text)

    def _model(self, found: Any) -> RegisteredModel:
        versions = _pages(
            self._client.search_model_versions, filter_string=f"name = '{found.name}'"
        )
        runs = {one.run_id: self._scores(one.run_id) for one in versions if one.run_id}
        told = [
            Version.of(int(one.version), one.tags, *runs.get(one.run_id, ({}, {})))
            for one in versions
        ]
        aliases = {alias: int(number) for alias, number in found.aliases.items()}
        return RegisteredModel(
            name=found.name,
            versions=tuple(sorted(told, key=lambda version: version.number)),
            aliases=aliases,
            history=history_of(found.tags.get(HISTORY)),
        )

    def _scores(self, run_id: str) -> tuple[dict[str, str], dict[str, float]]:
        """Parameters and metrics of a run; none of one that was deleted for good."""
        try:
            data = self._client.get_run(run_id).data
        except MlflowException:
            return {}, {}
        finite = {k: v for k, v in data.metrics.items() if not math.isnan(v)}
        return data.params, finite

    def _experiment(self, name: str) -> str:
        """The id of the experiment ``name``, whose models lie in this store."""
        found = self._client.get_experiment_by_name(name)
        if found and found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        place = f"{self._root}/{ARTIFACTS}/{name}"
        if found and self._own and found.artifact_location != place:
            # Of a store that lay elsewhere, or of an older version: kept to be read.
            since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
            title = f"{name} (until {since})"
            self._client.rename_experiment(found.experiment_id, title)
            found = None
        if found is None:
            server = re.match("https?:|databricks", self._client.tracking_uri)
            kind = {_KIND: "custom_model_development"}
            return self._client.create_experiment(name, None if server else place, kind)
        return found.experiment_id

    @property
    def _root(self) -> str:
        """The URI of the store."""
        return self._store.mirror.url or self._store.root.as_uri()

    @contextmanager
    def _running(
        self,
        experiment: str,
        title: str,
        run: LoggedRun,
        tags: Mapping[str, str] | None = None,
    ) -> Iterator[str]:
        """A run on the manifest of ``run``, with ``tags``; the block ends it."""
        when = int(run.started.timestamp() * 1000)
        made = self._client.create_run(
            experiment, when, dict(tags or {}), title
        ).info.run_id
        try:
            self._client.log_inputs(made, [self._dataset(run)])
            yield made
        except BaseException:
            self._client.set_terminated(made, "FAILED")
            raise
        self._client.set_terminated(made)

    def _dataset(self, run: LoggedRun) -> DatasetInput:
        place = f"{self._root}/manifests/{run.manifest}"
        dataset = Dataset(
            name=run.dataset,
            digest=run.manifest,
            source_type="tl_store",
            source=json.dumps({"uri": place}),
            profile=json.dumps({"images": sum(run.images.values()), **run.images}),
        )
        context = InputTag("mlflow.data.context", ", ".join(run.images))
        return DatasetInput(dataset, [context])

    def _register(
        self,
        experiment: str,
        name: str,
        version: Version,
        run: str,
        about: Mapping[str, str],
    ) -> int:
        """Make the run of ``experiment`` a version of the model ``name``; its number.

        ``about`` is what its metrics are linked to.
        """
        folder = self._store.root / "models" / str(version.model)
        made, source = None, folder.as_uri()
        if (folder / "model.json").exists():  # else it is lost, but it was there
            made = self._logged_model(experiment, name, version, run, folder)
            source = made.artifact_location if self._own else made.model_uri
            about = {**about, "model_id": made.model_id}
        self._log_scores(run, version, about)
        if made:
            self._client.log_outputs(run, [LoggedModelOutput(made.model_id, 0)])
            self._client.finalize_logged_model(made.model_id, "READY")
        self._ensure(name)
        added = self._client.create_model_version(
            name,
            source,
            run,
            tags=version.tags,
            model_id=made.model_id if made else None,
        )
        if made:  # by which MLflow's pages lead from the one to the other
            told = json.dumps([{"name": name, "version": int(added.version)}])
            self._client.set_logged_model_tags(
                made.model_id, {MLFLOW_MODEL_VERSIONS: told}
            )
        return int(added.version)

    def _ensure(self, name: str) -> None:
        """See that there is a registered model of that name."""
        if not self._client.search_registered_models(f"name = '{name}'", 1):
            self._client.create_registered_model(name)

    def _log_scores(
        self, run: str, scored: Candidate | Version, about: Mapping[str, str]
    ) -> None:
        """Log encoder, head and metrics, which are linked to what ``about`` names."""
        now = int(time.time() * 1000)
        metrics = [
            Metric(key, value, now, 0, **about) for key, value in scored.metrics.items()
        ]
        told = {"encoder": scored.encoder, "head": scored.head}
        params = [Param(key, value) for key, value in told.items() if value]
        self._client.log_batch(run, metrics, params)

    def _logged_model(
        self, experiment: str, name: str, version: Version, run: str, folder: Path
    ) -> "LoggedModel":
        """A LoggedModel that the run made, with the files of ``folder``."""
        made = self._client.create_logged_model(
            experiment,
            re.sub(r"""[/:.%"']""", "-", name),
            run,
            tags=version.tags,
            params={"encoder": version.encoder or "", "head": version.head or ""},
            model_type="classifier",
        )
        if not self._own:
            self._client.log_model_artifacts(made.model_id, str(folder))
            return made
        place = self._store.root / made.artifact_location.removeprefix(f"{self._root}/")
        place.mkdir(parents=True)
        shutil.copytree(folder, place, copy_function=_link, dirs_exist_ok=True)
        if not (place / model_folder.MLMODEL).exists():  # of an older version
            model_folder.write_mlmodel(place)
        with self._store.mirror.sending(*filter(Path.is_file, place.rglob("*"))):
            pass
        return made


def _link(source: str, target: str) -> None:
    """The same file under another name; a copy where the disk knows no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _pages(search: Callable[..., Any], **given: Any) -> list[Any]:
    """Everything that ``search`` finds, however many pages that is."""
    found, token = [], None
    while True:
        page = search(max_results=_PAGE, page_token=token, **given)
        found += page
        token = page.token
        if not token:
            return found

"""Search: embeddings of the training rows x one head's grid -> the best configuration.

Reads the manifest and the embeddings, and validation labels where they are what scores.
Writes a trial for each configuration (see ``trials``), so that a wider grid tries only
what is new, and ``searches/<key>/`` (SEARCH and ``chosen.json``). Evaluate fits what
was chosen.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from tl_pipeline.config.specs import HeadConfig, HeadSpec, SearchSpec
from tl_pipeline.data.sampling import Drawable, stratified
from tl_pipeline.data.splits import TRAIN, VALIDATION
from tl_pipeline.encoders.concat import AnyEncoder
from tl_pipeline.heads import search
from tl_pipeline.pipeline.manifest import Manifest, Rows
from tl_pipeline.pipeline.stage import Unit
from tl_pipeline.pipeline.trials import Trial, Trials
from tl_pipeline.progress import track
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact
from tl_pipeline.store.keys import KeyDocument, key_document
from tl_pipeline.store.tables import SEARCH

# Bump when the same inputs must give another choice.
VERSION = 2


@dataclass(frozen=True)
class Search(Unit[tuple[Artifact, ...]]):
    """The best configuration of ``head`` on the embeddings of one encoder.

    By accuracy, then by log loss, then the first.

    Raises:
        DatasetError, InvalidSpec: see ``trials.Trials.of``.
    """

    stage: ClassVar[str] = "search"
    kind: ClassVar[str] = "searches"
    label: ClassVar[str] = "search"

    manifest: Manifest
    embeddings: Artifact
    encoder: AnyEncoder
    head: HeadSpec
    how: SearchSpec
    seed: int

    @property
    def subject(self) -> str:
        return f"{self.head.name} on {self.manifest.named(self.encoder.label)}"

    def depends_on(self) -> KeyDocument:
        params: dict[str, Any] = {
            "family": self._configs[0].name,
            "configurations": [config.model_dump() for config in self._configs],
            "select": self.how.select,
            "strategy": self.how.strategy,
            "seed": self.seed,
        }
        if self.how.select == "cross_validation":
            params["folds"] = self.how.folds
        return key_document("search", VERSION, params, self._trials.inputs(self._rows))

    def found(self, made: Artifact) -> str:
        return f"{len(self._configs)} configurations were tried already"

    def missing(self) -> str:
        tried = f"{self.units(None)} of {len(self._configs)} configurations to be tried"
        return f"{tried}: {super().missing()}"

    def units(self, made: Artifact | None) -> int:
        """See ``Unit``: the configurations that were not tried in the first round."""
        if made:
            return 0
        return self._trials.missing(self._configs, self._part(self._rungs[0]))

    def keys(self, made: Artifact) -> Mapping[str, str]:
        """The trials behind a search, which are used as long as it is."""
        columns = ("head", "round", "trial")
        rows = tables.read(SEARCH, self.at.store.path(made), columns)
        return {
            f"{head}, round {number + 1}" if number else head: trial
            for head, number, trial in tables.values(rows, *columns)
        }

    def output(self, made: Artifact | None) -> tuple[Artifact, ...]:
        return (Artifact(self.kind, self.key, self.key),)

    def write(self, folder: Path) -> str:
        """Go through the rounds; the best configuration of the last one is chosen."""
        left, rounds = self._configs, []
        total = sum(rung.configurations for rung in self._rungs)
        with track(self.title, total) as progress:
            for rung in self._rungs:
                left = left[: rung.configurations]
                tried = self._trials.of(left, self._part(rung), progress.advance)
                order = search.ranked([(one.accuracy, one.log_loss) for one in tried])
                left = [left[at] for at in order]
                rounds.append(tried)
        rows = [
            self._row(
                trial,
                number,
                chosen=tried is rounds[-1] and trial.config == left[0],
            )
            for number, tried in enumerate(rounds)
            for trial in tried
        ]
        tables.write(SEARCH, tables.from_rows(SEARCH, rows), folder)
        chosen = json.dumps(left[0].model_dump(mode="json"))
        (folder / "chosen.json").write_text(chosen)
        return self.key

    @cached_property
    def _configs(self) -> list[HeadConfig]:
        return search.candidates(self.head, self.how, self.seed)

    @cached_property
    def _rows(self) -> Rows:
        return self.manifest.encoded(self.embeddings).learned(TRAIN)

    @cached_property
    def _trials(self) -> Trials:
        held = None
        if self.how.select == "validation":
            held = self.manifest.encoded(self.embeddings).held_out(VALIDATION)
        return Trials(
            self.at.store,
            self.manifest.dataset,
            self.embeddings,
            self.seed,
            held,
            self.how.folds,
        )

    @cached_property
    def _rungs(self) -> list[search.Rung]:
        """The rounds; one, with everything, unless they are halved."""
        if self.how.strategy != "halving":
            return [search.Rung(len(self._configs), len(self._rows))]
        classes = len(self._rows.classes)
        return search.rungs(len(self._configs), len(self._rows), classes)

    def _part(self, rung: search.Rung) -> Rows:
        """The training rows of ``rung``; those of a later one hold those of another."""
        rows = self._rows
        if rung.images >= len(rows):
            return rows
        images = [
            Drawable(*image)
            for image in zip(rows.ids, rows.labels.tolist(), rows.named, strict=True)
        ]
        drawn = stratified(images, rung.images)
        return rows.part(image.image_id for image in drawn)

    def _row(self, trial: Trial, number: int, *, chosen: bool) -> dict[str, Any]:
        return {
            "search": self.key,
            "encoder": self.manifest.named(self.encoder.label),
            "family": trial.config.name,
            "head": trial.label,
            "round": number,
            "images": trial.images,
            "folds": trial.folds,
            "accuracy": trial.accuracy,
            "log_loss": trial.log_loss,
            "deviation": trial.deviation,
            "chosen": chosen,
            "trial": trial.key,
        }

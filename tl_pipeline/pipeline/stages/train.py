"""Train: embeddings x one head's grid -> the best configuration, fitted.

Reads the manifest and the embeddings. Writes a trial for each configuration (see
``trials``), so that a wider grid tries only what is new; ``searches/<key>/``: SEARCH,
``chosen.json`` and, as HELD_OUT, what the chosen configuration says of images that it
did not learn from; and ``heads/<key>/``, the chosen one fitted on all images to learn
from (see ``fits``). No test image is read. Where the source tells weights, heads learn
by them; what scores them counts every image once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from tl_pipeline.config.specs import HeadConfig, HeadSpec, SearchSpec
from tl_pipeline.data.sampling import Drawable, stratified
from tl_pipeline.encoders.concat import AnyEncoder
from tl_pipeline.errors import DatasetError
from tl_pipeline.evaluation.averaging import Predictions
from tl_pipeline.heads import search
from tl_pipeline.pipeline import choices, fits
from tl_pipeline.pipeline.choices import Roles, roles
from tl_pipeline.pipeline.manifest import Manifest, Rows
from tl_pipeline.pipeline.stage import Unit
from tl_pipeline.pipeline.trials import Trial, Trials
from tl_pipeline.progress import track
from tl_pipeline.runs.planning import LOST, Outcome
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact
from tl_pipeline.store.keys import KeyDocument, digest, key_document
from tl_pipeline.store.tables import HELD_OUT, SEARCH

if TYPE_CHECKING:
    from tl_pipeline.heads.cross_validation import FoldPredictions

# Bump when the same inputs must give another choice.
VERSION = 3


@dataclass(frozen=True)
class Train(Unit[Artifact]):
    """The best configuration of ``head`` on the embeddings of one encoder, fitted.

    By accuracy, then by log loss, then the first. ``final`` are the embeddings that the
    chosen configuration is fitted on, where they are of another encoder than those that
    choose: of a network that was fine-tuned once more.

    Raises:
        DatasetError: no validation image could be embedded and they are to choose; or
            see ``trials.Trials.of``.
        InvalidSpec: see ``trials.Trials.of``.
    """

    stage: ClassVar[str] = "train"
    kind: ClassVar[str] = "searches"
    label: ClassVar[str] = "search"

    manifest: Manifest
    embeddings: Artifact
    encoder: AnyEncoder
    head: HeadSpec
    how: SearchSpec
    seed: int
    final: Artifact | None = None

    @property
    def subject(self) -> str:
        return f"{self.head.name} on {self.manifest.named(self.encoder.label)}"

    def depends_on(self) -> KeyDocument:
        family = self._configs[0].name
        params: dict[str, Any] = {
            "head": {"name": family, **self.head.params},
            "seed": self.seed,
            **self.how.model_dump(include={"select", "strategy", "folds", "refit"}),
        }
        if self.how.strategy == "random":
            params["configurations"] = self.how.configurations
        if self.manifest.control:
            params["control"] = self.manifest.control
        inputs = self._trials.inputs(self._roles.learned, family)
        fitted = [fits.version(family), fits.inputs(self._roles.all, family)]
        inputs["fit"] = digest(fitted)
        if self.final:
            inputs["final encoder"] = self.final.key
        return key_document("train", VERSION, params, inputs)

    def found(self, made: Artifact) -> str:
        chosen = choices.label_of(self.at.store, made)
        if len(self._configs) == 1:
            return f"{chosen} is trained already"
        return f"{chosen}, the best of {len(self._configs)}, is trained already"

    def missing(self) -> str:
        total, rows = len(self._configs), self._roles.learned
        parts = [f"{len(self._roles.all):,} images"]
        if total > 1:
            new = self.units(None)
            some = f"{new} of {total}" if new < total else f"{total}"
            parts.append(f"{some} configurations to be tried")
        if (
            self._roles.held is None
            and self.how.folds is None
            and len(rows) >= search.MANY
        ):
            parts.append("on one fifth that is held out, as there are so many")
        return f"{', '.join(parts)}: {super().missing()}"

    def told(self, reason: str, made: Artifact) -> str:
        if len(self._configs) == 1:
            return reason
        return f"{reason}; chose {choices.label_of(self.at.store, made)}"

    def look(self) -> Outcome[Artifact]:
        """See ``Unit``; it is not made either where the fitted head is lost."""
        looked, store = super().look(), self.at.store
        if not looked.step.cached:
            return looked
        for label, key in looked.step.keys.items():
            if label not in (self.label, "fitted"):
                store.find("trials", key)  # in use as long as this is
        if store.find("heads", looked.step.keys["fitted"]):
            return looked
        step = replace(looked.step, cached=False, reason=LOST, units=1)
        return Outcome(looked.output, (step,))

    def units(self, made: Artifact | None) -> int:
        """See ``Unit``: the configurations that were not tried in the first round."""
        if made:
            return 0
        return self._trials.missing(self._configs, self._part(self._rungs[0]))

    def keys(self, made: Artifact) -> Mapping[str, str]:
        """The trials behind a choice and the fitted head, which are used as it is."""
        folder, columns = self.at.store.path(made), ("head", "round", "trial")
        rows = tables.read(SEARCH, folder, columns)
        trials = {
            f"{head}, round {number + 1}" if number else head: trial
            for head, number, trial in tables.values(rows, *columns)
        }
        return {**trials, "fitted": choices.fitted(self.at.store, made).key}

    def output(self, made: Artifact | None) -> Artifact:
        return Artifact(self.kind, self.key, self.key)

    def write(self, folder: Path) -> str:
        """Go through the rounds; fit the best configuration of the last one."""
        fits.check(self._roles.learned, self.manifest.dataset)
        if self._roles.held is not None and not len(self._roles.held):
            raise DatasetError(
                f"{self.manifest.dataset}: no validation image could be embedded; see "
                "the quarantine table, or use --search cross_validation"
            )
        rounds, leader = self._rounds()
        chosen = rounds[-1][search.ranked([_merit(one) for one in rounds[-1]])[0]]
        rows = [
            self._row(trial, number, chosen=trial is chosen)
            for number, tried in enumerate(rounds)
            for trial in tried
        ]
        tables.write(SEARCH, tables.from_rows(SEARCH, rows), folder)
        said = leader.predictions
        if leader.config != chosen.config or said is None:  # it was tried before
            said = self._trials.predict(chosen.config, self._roles.learned)
        held = self._trials.together(said, self._roles.learned)
        tables.write(HELD_OUT, _held_out_rows(held), folder)
        head = self._fit(chosen.config)
        choices.write(folder, chosen.config, held.classes, head.key)
        return self.key

    def _rounds(self) -> "tuple[list[list[Trial]], _Leader]":
        """The trials of each round, and the best of those that were tried just now."""
        left, rounds = self._configs, list[list[Trial]]()
        leader = _Leader()
        total = sum(rung.configurations for rung in self._rungs)
        with track(self.title, total) as progress:

            def seen(config: HeadConfig, found: "list[FoldPredictions]") -> None:
                leader.meet(config, found)
                progress.advance()

            for rung in self._rungs:
                leader.forget()
                left = left[: rung.configurations]
                tried = self._trials.of(left, self._part(rung), seen)
                left = [left[at] for at in search.ranked([_merit(t) for t in tried])]
                rounds.append(tried)
        return rounds, leader

    def _fit(self, config: HeadConfig) -> Artifact:
        (made,) = fits.make(
            self.at.store,
            self.final or self.embeddings,
            self._roles.all,
            [config],
            self.seed,
        )
        return made

    @cached_property
    def _configs(self) -> list[HeadConfig]:
        return search.candidates(self.head, self.how, self.seed)

    @cached_property
    def _roles(self) -> Roles:
        return roles(self.manifest.encoded(self.embeddings), self.how)

    @cached_property
    def _trials(self) -> Trials:
        return Trials(
            self.at.store,
            self.manifest.dataset,
            self.embeddings,
            self.seed,
            self._roles.held,
            self.how.folds,
        )

    @cached_property
    def _rungs(self) -> list[search.Rung]:
        """The rounds; one, with everything, unless they are halved."""
        rows = self._roles.learned
        if self.how.strategy != "halving":
            return [search.Rung(len(self._configs), len(rows))]
        return search.rungs(len(self._configs), len(rows), len(rows.classes))

    def _part(self, rung: search.Rung) -> Rows:
        """The rows of ``rung``; those of a later one hold those of another."""
        rows = self._roles.learned
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


class _Leader:
    """Of the configurations that were tried in a round: the best, and what it said."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """A new round begins."""
        self.config: HeadConfig | None = None
        self.predictions: list[FoldPredictions] | None = None
        self._merit = (-1.0, 0.0)

    def meet(self, config: HeadConfig, found: "list[FoldPredictions]") -> None:
        """Keep ``found``, in memory, if ``config`` is better than those before."""
        scores = [one.score() for one in found]
        rows = sum(len(score.right) for score in scores)
        right = sum(int(score.right.sum()) for score in scores)
        loss = sum(score.log_loss * len(score.right) for score in scores)
        merit = (right / rows, -loss / rows)
        if merit > self._merit:
            self.config, self.predictions, self._merit = config, found, merit


def _merit(trial: Trial) -> tuple[float, float]:
    return trial.accuracy, trial.log_loss


def _held_out_rows(held: Predictions) -> pa.Table:
    return pa.table(
        {
            "image_id": held.image_ids,
            "label": held.labels,
            "probabilities": held.column(),
        }
    )

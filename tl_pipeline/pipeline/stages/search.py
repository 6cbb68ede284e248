"""Search: embeddings of the training rows x one head's grid -> the best configuration.

Reads the manifest and the embeddings, and validation labels where they are what scores.
Writes a trial for each configuration (see ``trials``), so that a wider grid tries only
what is new, and ``searches/<key>/`` (SEARCH and ``chosen.json``). Evaluate fits what
was chosen.
"""

import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tl_pipeline.config.specs import HeadConfig, HeadSpec
from tl_pipeline.data.sampling import Drawable, stratified
from tl_pipeline.data.splits import TRAIN, VALIDATION
from tl_pipeline.encoders import concat
from tl_pipeline.encoders.concat import AnyEncoder
from tl_pipeline.heads import search
from tl_pipeline.pipeline import fits
from tl_pipeline.pipeline.labels import TrainingRows, labels_of
from tl_pipeline.pipeline.trials import Trial, Trials
from tl_pipeline.progress import track
from tl_pipeline.runs.planning import (
    Context,
    EmbeddingsOf,
    Outcome,
    Step,
    why_not_cached,
)
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact
from tl_pipeline.store.keys import KeyDocument, digest, key_document
from tl_pipeline.store.tables import SEARCH

# Bump when the same inputs must give another choice.
VERSION = 1


@dataclass(frozen=True)
class _Question:
    """What is searched: configurations of a head, on embeddings of one encoder."""

    trials: Trials
    rows: TrainingRows
    configs: list[HeadConfig]
    encoder: str

    @property
    def rungs(self) -> list[search.Rung]:
        """The rounds; one, with everything, unless they are halved."""
        if self.trials.context.search.strategy != "halving":
            return [search.Rung(len(self.configs), len(self.rows.labels))]
        classes = len(set(self.rows.labels.values()))
        return search.rungs(len(self.configs), len(self.rows.labels), classes)

    def part(self, rung: search.Rung) -> TrainingRows:
        """The training rows of ``rung``; those of a later one hold those of another."""
        if rung.images >= len(self.rows.labels):
            return self.rows
        images = [
            Drawable(image_id, label, self.rows.groups.get(image_id))
            for image_id, label in self.rows.labels.items()
        ]
        drawn = stratified(images, rung.images)
        return self.rows.part(image.image_id for image in drawn)

    @property
    def document(self) -> KeyDocument:
        """What the choice depends on."""
        wanted = self.trials.context.search
        params: dict[str, Any] = {
            "family": self.configs[0].name,
            "configurations": [config.model_dump() for config in self.configs],
            "select": wanted.select,
            "strategy": wanted.strategy,
            "seed": self.trials.context.seed,
        }
        if wanted.select == "cross_validation":
            params["folds"] = wanted.folds
        return key_document("search", VERSION, params, self.trials.inputs(self.rows))


def plan(
    context: Context,
    manifest: Artifact,
    embedded: EmbeddingsOf,
    encoder: AnyEncoder,
    head: HeadSpec,
) -> Outcome[tuple[Artifact, ...]]:
    """Look whether the choice was made; if not, which trials there are already."""
    started = time.perf_counter()
    question = _question(context, manifest, embedded, encoder, head)
    document, key = question.document, digest(question.document)
    subject = f"{head.name} on {context.named(encoder.label)}"
    made = context.store.find("searches", key)
    keys, due = {"search": key}, 0
    reason = f"{len(question.configs)} configurations were tried already"
    if made is None:
        first = question.part(question.rungs[0])
        due = question.trials.missing(question.configs, first)
        why = why_not_cached(context, "searches", subject, "search", document)
        reason = f"{due} of {len(question.configs)} configurations to be tried: {why}"
    else:
        keys |= _trial_keys(context, made)
    step = Step(
        stage="search",
        subject=subject,
        cached=made is not None,
        reason=reason,
        keys=keys,
        units=due,
        seconds=time.perf_counter() - started,
    )
    return Outcome((Artifact("searches", key, key),), (step,))


def run(
    context: Context,
    manifest: Artifact,
    embedded: EmbeddingsOf,
    encoder: AnyEncoder,
    head: HeadSpec,
) -> Outcome[tuple[Artifact, ...]]:
    """Try the configurations of ``head`` that were not tried, and choose.

    By accuracy, then by log loss, then the first.

    Raises:
        DatasetError, InvalidSpec: see ``trials.Trials.of``.
    """
    started = time.perf_counter()
    planned = plan(context, manifest, embedded, encoder, head)
    if planned.step.cached:
        return planned
    question = _question(context, manifest, embedded, encoder, head)
    write = partial(_write, question, planned.step.subject)
    made = context.store.build("searches", question.document, write)
    keys = {**planned.step.keys, **_trial_keys(context, made)}
    return planned.ran(time.perf_counter() - started, keys=keys)


def _question(
    context: Context,
    manifest: Artifact,
    embedded: EmbeddingsOf,
    encoder: AnyEncoder,
    head: HeadSpec,
) -> _Question:
    embeddings = concat.embeddings_of(embedded, encoder)
    held = {}
    if context.search.select == "validation":
        held = labels_of(context.store, manifest, embeddings, VALIDATION)
    return _Question(
        Trials(context, embeddings, held, context.search.folds),
        fits.rows_of(context, manifest, embeddings, TRAIN),
        search.candidates(head, context.search, context.seed),
        context.named(encoder.label),
    )


def _trial_keys(context: Context, made: Artifact) -> dict[str, str]:
    """The trials behind a search, which are used as long as it is."""
    columns = ("head", "round", "trial")
    rows = tables.read(SEARCH, context.store.path(made), columns)
    return {
        f"{head}, round {number + 1}" if number else head: trial
        for head, number, trial in tables.values(rows, *columns)
    }


def _write(question: _Question, subject: str, folder: Path) -> str:
    """Go through the rounds; the best configuration of the last one is chosen."""
    left, rounds = question.configs, []
    total = sum(rung.configurations for rung in question.rungs)
    with track(f"search {subject}", total) as progress:
        for rung in question.rungs:
            left = left[: rung.configurations]
            tried = question.trials.of(left, question.part(rung), progress.advance)
            order = search.ranked([(one.accuracy, one.log_loss) for one in tried])
            left = [left[at] for at in order]
            rounds.append(tried)
    rows = [
        _row(
            question,
            trial,
            number,
            chosen=tried is rounds[-1] and trial.config == left[0],
        )
        for number, tried in enumerate(rounds)
        for trial in tried
    ]
    tables.write(SEARCH, tables.from_rows(SEARCH, rows), folder)
    (folder / "chosen.json").write_text(json.dumps(left[0].model_dump(mode="json")))
    return digest(question.document)


def _row(
    question: _Question, trial: Trial, number: int, *, chosen: bool
) -> dict[str, Any]:
    return {
        "search": digest(question.document),
        "encoder": question.encoder,
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

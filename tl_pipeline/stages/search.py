"""Search: embeddings of the training rows x one head's grid -> the best configuration.

Reads the manifest and the embeddings, and validation labels where they are what scores.
Writes ``trials/<key>/`` (TRIAL) for each configuration, a cached unit of its own, so
that a wider grid tries only what is new; and ``searches/<key>/`` (SEARCH and
``chosen.json``). Evaluate fits what was chosen.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_pipeline import fits, heads, search, tables
from tl_pipeline.artifacts import Artifact, KeyDocument, digest, key_document
from tl_pipeline.embeddings import EmbeddingFolder
from tl_pipeline.encoders import Encoder
from tl_pipeline.errors import DatasetError
from tl_pipeline.labels import TrainingRows, labels_of
from tl_pipeline.planning import (
    Context,
    EmbeddingsOf,
    Outcome,
    Step,
    why_not_cached,
)
from tl_pipeline.progress import Track, track
from tl_pipeline.sampling import Drawable, stratified
from tl_pipeline.specs import HeadConfig, HeadSpec
from tl_pipeline.splits import TRAIN, VALIDATION
from tl_pipeline.tables import SEARCH, TRIAL

if TYPE_CHECKING:
    from tl_pipeline.trials import Score

# Bump when the same inputs must give another choice.
VERSION = 1


@dataclass(frozen=True)
class _Question:
    """What is searched: configurations of one head, on the embeddings of one encoder.

    ``held`` are the labels of the validation images, empty for cross-validation.
    """

    context: Context
    embeddings: Artifact
    rows: TrainingRows
    held: dict[str, str]
    configs: list[HeadConfig]
    encoder: str

    @property
    def rungs(self) -> list[search.Rung]:
        """The rounds; one, with everything, unless they are halved."""
        if self.context.search.strategy != "halving":
            return [search.Rung(len(self.configs), len(self.rows.labels))]
        classes = len(set(self.rows.labels.values()))
        return search.rungs(len(self.configs), len(self.rows.labels), classes)

    def part(self, images: int) -> TrainingRows:
        """``images`` of the training rows; a larger part holds a smaller one."""
        if images >= len(self.rows.labels):
            return self.rows
        drawable = [
            Drawable(image_id, label, self.rows.groups.get(image_id))
            for image_id, label in self.rows.labels.items()
        ]
        return self.rows.part(image.image_id for image in stratified(drawable, images))

    def trial(self, config: HeadConfig, rows: TrainingRows) -> KeyDocument:
        """What the trial of ``config`` on ``rows`` depends on."""
        params = {"head": config.name, **config.params, "seed": self.context.seed}
        inputs = {"encoder": self.embeddings.key, **self._inputs(rows)}
        how = {} if self.held else {"folds": self.context.search.folds}
        return key_document("trial", VERSION, {**params, **how}, inputs)

    @property
    def document(self) -> KeyDocument:
        """What the search depends on."""
        wanted = self.context.search
        params: dict[str, Any] = {
            "family": self.configs[0].name,
            "configurations": [config.model_dump() for config in self.configs],
            "select": wanted.select,
            "strategy": wanted.strategy,
            "seed": self.context.seed,
        }
        if not self.held:
            params["folds"] = wanted.folds
        inputs = {"encoder": self.embeddings.key, **self._inputs(self.rows)}
        return key_document("search", VERSION, params, inputs)

    def _inputs(self, rows: TrainingRows) -> dict[str, str]:
        found = {"training rows": rows.fingerprint}
        if self.held:
            found["validation rows"] = digest(sorted(self.held.items()))
        if rows.groups:  # by which folds are dealt
            found["groups"] = digest(sorted(rows.groups.items()))
        return found


def plan(
    context: Context,
    manifest: Artifact,
    embedded: EmbeddingsOf,
    encoder: Encoder,
    head: HeadSpec,
) -> Outcome[tuple[Artifact, ...]]:
    """Look whether the choice was made; if not, which trials there are already."""
    started = time.perf_counter()
    question = _question(context, manifest, embedded, encoder, head)
    document, key = question.document, digest(question.document)
    subject = f"{head.name} on {context.named(encoder.label)}"
    made = context.store.find("searches", key)
    cached = made is not None
    rung = question.rungs[0]
    rows = question.part(rung.images)
    due = 0
    reason = f"{len(question.configs)} configurations were tried already"
    if not cached:
        trials = [digest(question.trial(config, rows)) for config in question.configs]
        due = sum(context.store.find("trials", trial) is None for trial in trials)
        why = why_not_cached(context, "searches", subject, "search", document)
        reason = f"{due} of {len(trials)} configurations are to be tried: {why}"
    step = Step(
        stage="search",
        subject=subject,
        cached=cached,
        reason=reason,
        keys={"search": key, **(_trial_keys(context, made) if made else {})},
        units=0 if cached else due,
        seconds=time.perf_counter() - started,
    )
    return Outcome((Artifact("searches", key, key),), (step,))


def run(
    context: Context,
    manifest: Artifact,
    embedded: EmbeddingsOf,
    encoder: Encoder,
    head: HeadSpec,
) -> Outcome[tuple[Artifact, ...]]:
    """Try the configurations of ``head`` that were not tried, and choose.

    By accuracy, then by log loss, then the first.

    Raises:
        DatasetError: fewer than two classes have an embedded training image, or no
            class two that could be divided.
        InvalidSpec: images have weights, and ``head`` cannot take them.
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


def _trial_keys(context: Context, made: Artifact) -> dict[str, str]:
    """The trials behind a search, which are used as long as it is."""
    columns = ("head", "round", "trial")
    rows = tables.read(SEARCH, context.store.path(made), columns)
    return {
        f"{head}, round {number + 1}" if number else head: trial
        for head, number, trial in tables.values(rows, *columns)
    }


def _question(
    context: Context,
    manifest: Artifact,
    embedded: EmbeddingsOf,
    encoder: Encoder,
    head: HeadSpec,
) -> _Question:
    embeddings = embedded[encoder.key]
    held = {}
    if context.search.select == "validation":
        held = labels_of(context.store, manifest, embeddings, VALIDATION)
    return _Question(
        context,
        embeddings,
        fits.rows_of(context, manifest, embeddings, TRAIN),
        held,
        search.candidates(head, context.search, context.seed),
        context.named(encoder.label),
    )


def _write(question: _Question, subject: str, folder: Path) -> str:
    """Go through the rounds; the last round's best configuration is chosen."""
    key = digest(question.document)
    left, found = question.configs, []
    rungs = question.rungs
    total = sum(rung.configurations for rung in rungs)
    with track(f"search {subject}", total) as progress:
        for number, rung in enumerate(rungs):
            left = left[: rung.configurations]
            rows = question.part(rung.images)
            scores = _trials(question, left, rows, progress)
            means = [(row["accuracy"], row["log_loss"]) for row in scores]
            order = search.ranked(means)
            found += [{"search": key, "round": number, **row} for row in scores]
            left = [left[at] for at in order]
    label = heads.label(left[0])
    for row in found:
        last = row["round"] == len(rungs) - 1
        row["chosen"] = last and row["head"] == label
    tables.write(SEARCH, tables.from_rows(SEARCH, found), folder)
    (folder / "chosen.json").write_text(json.dumps(left[0].model_dump(mode="json")))
    return key


def _trials(
    question: _Question,
    configs: Sequence[HeadConfig],
    rows: TrainingRows,
    progress: Track,
) -> list[dict[str, Any]]:
    """A row of SEARCH for each of ``configs``; what was not tried is tried now."""
    store = question.context.store
    documents = [question.trial(config, rows) for config in configs]
    due = [
        at
        for at, document in enumerate(documents)
        if store.find("trials", digest(document)) is None
    ]
    progress.advance(len(configs) - len(due))
    if due:
        for at, scores in _tried(question, [configs[at] for at in due], rows):
            write = partial(_write_trial, scores)
            store.build("trials", documents[due[at]], write)
            progress.advance()
    return [
        _row(question, config, len(rows.labels), digest(document))
        for config, document in zip(configs, documents, strict=True)
    ]


def _tried(
    question: _Question, configs: list[HeadConfig], learned: TrainingRows
) -> "Iterator[tuple[int, list[Score]]]":
    # scikit-learn is imported only when there is something to try
    from tl_pipeline import trials  # noqa: PLC0415
    from tl_pipeline.heads.grids import Rows  # noqa: PLC0415

    context = question.context
    fits.check(context, learned)
    folder = EmbeddingFolder(context.store, question.embeddings.key)
    vectors = folder.load(learned.labels)
    rows = Rows(vectors.vectors, *learned.columns(vectors.image_ids))
    if question.held:
        found = folder.load(question.held)
        names = np.array([question.held[image_id] for image_id in found.image_ids])
        held = Rows(found.vectors, names)
        yield from trials.held_out(configs, context.seed, rows, held)
        return
    folds = context.search.folds
    try:
        yield from trials.cross_validated(configs, context.seed, rows, folds)
    except ValueError as error:
        raise DatasetError(
            f"{context.dataset.name} cannot be cross-validated: {error}; use "
            "--search validation"
        ) from None


def _write_trial(scores: "Sequence[Score]", folder: Path) -> None:
    rows = [vars(score) for score in scores]
    tables.write(TRIAL, tables.from_rows(TRIAL, rows), folder)


def _row(
    question: _Question, config: HeadConfig, images: int, trial: str
) -> dict[str, Any]:
    place = question.context.store.path(Artifact("trials", trial, trial))
    found = tables.read(TRIAL, place).to_pydict()
    rows = np.array(found["rows"], float)
    accuracy = np.array(found["accuracy"])
    return {
        "encoder": question.encoder,
        "family": config.name,
        "head": heads.label(config),
        "images": images,
        "folds": len(rows),
        "accuracy": float(np.average(accuracy, weights=rows)),
        "log_loss": float(np.average(found["log_loss"], weights=rows)),
        "deviation": float(accuracy.std(ddof=1)) if len(rows) > 1 else None,
        "trial": trial,
    }

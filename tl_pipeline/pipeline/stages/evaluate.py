"""Evaluate: one head's fitted grid, or search, x held-out rows -> metrics, predictions.

Reads the manifest, the embeddings and the fitted heads. Writes ``evaluations/<key>/``:
METRICS, PREDICTIONS, ``chosen.json`` (key of the chosen head, its classes) and
``calibration.json`` (its operating point). Every configuration is scored on validation,
the best one alone on test, once, after calibration. What a search has chosen, or what
is to learn from validation too before it meets test, is fitted here, as
``heads/<key>/`` like any other. What a search by cross-validation found of its choice
is carried over as the split FOLDS.
"""

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tl_pipeline import heads
from tl_pipeline.config.specs import HeadConfig, HeadSpec
from tl_pipeline.data.splits import FOLDS, TEST, TRAIN, VALIDATION
from tl_pipeline.encoders import concat
from tl_pipeline.encoders.concat import AnyEncoder
from tl_pipeline.errors import DatasetError
from tl_pipeline.evaluation.averaging import aligned
from tl_pipeline.evaluation.scored_rows import metric_rows, predictions
from tl_pipeline.pipeline import fits
from tl_pipeline.pipeline.labels import groups_of, labels_of, units
from tl_pipeline.pipeline.trials import Trials
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
from tl_pipeline.store.tables import METRICS, PREDICTIONS

if TYPE_CHECKING:
    from tl_pipeline.evaluation.scoring import HeldOut

# Bump when the same inputs must give other rows.
VERSION = 2

CHOSEN = "chosen.json"
Row = dict[str, Any]


def plan(
    context: Context,
    manifest: Artifact,
    embedded: EmbeddingsOf,
    trained: tuple[Artifact, ...],
    encoder: AnyEncoder,
    head: HeadSpec,
) -> Outcome[Artifact]:
    """Look whether these heads were scored on these rows."""
    embeddings = concat.embeddings_of(embedded, encoder)
    started = time.perf_counter()
    document = _document(context, manifest, embeddings, trained, encoder, head)
    key, subject = digest(document), f"{head.name} on {context.named(encoder.label)}"
    found = context.store.find("evaluations", key)
    cached, keys = found is not None, {"evaluation": key}
    reason = f"{len(trained)} scored already"
    if found is not None:
        keys |= _fitted_here(context, trained, found)
    else:
        reason = why_not_cached(context, "evaluations", subject, "evaluation", document)
    step = Step(
        stage="evaluate",
        subject=subject,
        cached=cached,
        reason=reason,
        keys=keys,
        units=0 if cached else len(trained),
        seconds=time.perf_counter() - started,
    )
    return Outcome(Artifact("evaluations", key, key), (step,))


def run(
    context: Context,
    manifest: Artifact,
    embedded: EmbeddingsOf,
    trained: tuple[Artifact, ...],
    encoder: AnyEncoder,
    head: HeadSpec,
) -> Outcome[Artifact]:
    """Choose on validation, look at test once.

    Raises:
        DatasetError: no validation or no test image could be embedded.
    """
    embeddings = concat.embeddings_of(embedded, encoder)
    started = time.perf_counter()
    planned = plan(context, manifest, embedded, trained, encoder, head)
    if planned.step.cached:
        return planned
    document = _document(context, manifest, embeddings, trained, encoder, head)
    write = partial(_write, context, manifest, embeddings, trained, document)
    made = context.store.build("evaluations", document, write)
    keys = {**planned.step.keys, **_fitted_here(context, trained, made)}
    return planned.ran(time.perf_counter() - started, keys=keys)


def _fitted_here(
    context: Context, trained: tuple[Artifact, ...], evaluation: Artifact
) -> dict[str, str]:
    """The key of the chosen head, if it is none of those that were ``trained``."""
    about = json.loads((context.store.path(evaluation) / CHOSEN).read_text())
    known = {artifact.key for artifact in trained}
    return {} if about["head"] in known else {"head": about["head"]}


def _document(
    context: Context,
    manifest: Artifact,
    embeddings: Artifact,
    trained: tuple[Artifact, ...],
    encoder: AnyEncoder,
    head: HeadSpec,
) -> KeyDocument:
    held = {
        split: labels_of(context.store, manifest, embeddings, split)
        for split in (VALIDATION, TEST)
    }
    groups = _groups(context, manifest)
    grouped = sorted((i, groups[i]) for i in held[VALIDATION] if i in groups)
    params: dict[str, Any] = {
        "encoder": context.named(encoder.label),
        "family": head.name,
        "control": encoder.control
        or heads.HEADS[head.name].control
        or bool(context.control),
        "seed": context.seed,
        "calibration": context.calibration,
        "error": context.error,
    }
    inputs = {
        "encoder": embeddings.key,
        "heads": digest([artifact.fingerprint for artifact in trained]),
        "validation rows": digest(sorted(held[VALIDATION].items())),
        "test rows": digest(sorted(held[TEST].items())),
    }
    if grouped:
        inputs["validation groups"] = digest(grouped)
    if _cross_validated(context, trained):
        rows = fits.rows_of(context, manifest, embeddings, TRAIN)
        inputs["rows of folds"] = digest(
            [rows.fingerprint, sorted(rows.groups.items())]
        )
    if context.search.refit:
        rows = fits.rows_of(context, manifest, embeddings, TRAIN, VALIDATION)
        inputs["refit"] = digest([fits.VERSION, fits.inputs(rows, head.name)])
    return key_document("evaluate", VERSION, params, inputs)


def _write(
    context: Context,
    manifest: Artifact,
    embeddings: Artifact,
    trained: tuple[Artifact, ...],
    document: KeyDocument,
    folder: Path,
) -> str:
    # scikit-learn and scipy are imported only when there is something to score
    from tl_pipeline.evaluation.scoring import choose, learn, score, validate  # noqa: PLC0415
    from tl_pipeline.heads import fitted  # noqa: PLC0415

    store, method, seed = context.store, context.calibration, context.seed
    validation = _held_out(context, manifest, embeddings, VALIDATION)
    candidates = _fitted(context, manifest, embeddings, trained)
    tried = [
        validate(fitted.load(store.path(artifact)), validation, method, seed)
        for artifact in candidates
    ]
    chosen = choose(tried)
    point = learn(chosen, method, context.error)
    final = candidates[tried.index(chosen)]
    if context.search.refit:
        (final,) = _fit(
            context, manifest, embeddings, chosen.head.config, TRAIN, VALIDATION
        )
    held_out = _held_out(context, manifest, embeddings, TEST)
    test = score(fitted.load(store.path(final)), held_out, point, seed)
    key = digest(document)
    about = {
        "evaluation": key,
        "encoder_key": embeddings.key,
        "encoder": document["params"]["encoder"],
        "family": document["params"]["family"],
    }
    metrics = [
        row
        for scored in (*tried, test)
        for row in metric_rows(
            {
                **about,
                "head": heads.label(scored.head.config),
                "chosen": scored.head.config == chosen.head.config,
                "split": scored.rows.split,
                "images": len(scored.rows.labels),
            },
            scored.scores,
        )
    ]
    if _cross_validated(context, trained):
        metrics += _in_folds(context, manifest, embeddings, chosen.head.config, about)
    # one order for both splits: after a refit the head may know more classes
    classes = test.head.classes
    rows = [
        predictions(
            {"evaluation": key, "split": scored.rows.split},
            scored.rows.embeddings.image_ids,
            scored.rows.labels,
            classes,
            aligned(scored.probabilities, scored.head.classes, classes),
            point,
        )
        for scored in (chosen, test)
    ]
    tables.write(METRICS, tables.from_rows(METRICS, metrics), folder)
    tables.write(PREDICTIONS, pa.concat_tables(rows), folder)
    told = {"head": final.key, "classes": classes}
    (folder / CHOSEN).write_text(json.dumps(told, ensure_ascii=False))
    point.write(folder)
    return key


def _cross_validated(context: Context, trained: tuple[Artifact, ...]) -> bool:
    """Whether folds of train have chosen the configuration, and so have scored it."""
    by_folds = context.search.select == "cross_validation"
    return by_folds and trained[0].kind == "searches"


def _in_folds(
    context: Context,
    manifest: Artifact,
    embeddings: Artifact,
    config: HeadConfig,
    about: Row,
) -> Iterator[Row]:
    """The rows of METRICS of what the search found of its choice, ``config``.

    A trial that is lost is made again. ``about`` is what all rows tell.
    """
    from tl_pipeline.evaluation.metrics import fold_scores  # noqa: PLC0415 - scipy

    rows = fits.rows_of(context, manifest, embeddings, TRAIN)
    trials = Trials(context, embeddings, {}, context.search.folds)
    (trial,) = trials.of([config], rows)
    head = {"head": trial.label, "chosen": True, "split": FOLDS, "images": trial.rows}
    found = fold_scores(trial.rows, trial.accuracy, trial.log_loss)
    return metric_rows({**about, **head}, found)


def _held_out(
    context: Context, manifest: Artifact, embeddings: Artifact, split: str
) -> "HeldOut":
    from tl_pipeline.evaluation.scoring import HeldOut  # noqa: PLC0415

    labels = labels_of(context.store, manifest, embeddings, split)
    if not labels:
        raise DatasetError(
            f"{context.dataset.name}: no {split} image could be embedded; see the "
            "quarantine table"
        )
    found = concat.load(context.store, embeddings, labels)
    names = np.array([labels[image_id] for image_id in found.image_ids])
    belongs = units(found.image_ids, _groups(context, manifest))
    return HeldOut(split, found, names, belongs)


def _groups(context: Context, manifest: Artifact) -> dict[str, str]:
    """Image id -> group; a control that deals images one by one knows none."""
    return {} if context.control else groups_of(context.store, manifest)


def _fitted(
    context: Context,
    manifest: Artifact,
    embeddings: Artifact,
    trained: tuple[Artifact, ...],
) -> tuple[Artifact, ...]:
    """``trained``; or the one head that a search has chosen, fitted on train."""
    (kind,) = {artifact.kind for artifact in trained}
    if kind != "searches":
        return trained
    text = (context.store.path(trained[0]) / CHOSEN).read_text()
    config = HeadConfig.model_validate_json(text)
    return _fit(context, manifest, embeddings, config, TRAIN)


def _fit(
    context: Context,
    manifest: Artifact,
    embeddings: Artifact,
    config: HeadConfig,
    *sides: str,
) -> tuple[Artifact]:
    """The head of ``config`` that learned from the splits ``sides``."""
    rows = fits.rows_of(context, manifest, embeddings, *sides)
    fits.make(context, embeddings, rows, [config])
    key = digest(fits.document(context, embeddings, rows, config))
    return (Artifact("heads", key, key),)

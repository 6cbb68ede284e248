"""Evaluate: one head's fitted grid x held-out rows -> metrics and predictions.

Reads the manifest, the embeddings and the fitted heads. Writes ``evaluations/<key>/``:
METRICS, PREDICTIONS and ``chosen.json`` (key of the chosen head, its classes). Every
configuration is scored on validation, the best one alone on test, once.
"""

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_pipeline import heads, tables
from tl_pipeline.artifacts import Artifact, KeyDocument, digest, key_document
from tl_pipeline.embeddings import EmbeddingFolder
from tl_pipeline.encoders import Encoder
from tl_pipeline.errors import DatasetError
from tl_pipeline.labels import labels_of
from tl_pipeline.planning import (
    Context,
    EmbeddingsOf,
    Outcome,
    Step,
    why_not_cached,
)
from tl_pipeline.specs import HeadSpec
from tl_pipeline.splits import TEST, VALIDATION
from tl_pipeline.tables import METRICS, PREDICTIONS

if TYPE_CHECKING:
    from tl_pipeline.evaluation import Evaluation, Scored

# Bump when the same inputs must give other rows.
VERSION = 1

Row = dict[str, Any]


def plan(
    context: Context,
    manifest: Artifact,
    embedded: EmbeddingsOf,
    trained: tuple[Artifact, ...],
    encoder: Encoder,
    head: HeadSpec,
) -> Outcome[Artifact]:
    """Look whether these heads were scored on these rows."""
    embeddings = embedded[encoder.key]
    started = time.perf_counter()
    document = _document(context, manifest, embeddings, trained, encoder, head)
    key, subject = digest(document), f"{head.name} on {context.named(encoder.label)}"
    cached = context.store.find("evaluations", key) is not None
    reason = f"{len(trained)} scored already"
    if not cached:
        reason = why_not_cached(context, "evaluations", subject, "evaluation", document)
    step = Step(
        stage="evaluate",
        subject=subject,
        cached=cached,
        reason=reason,
        keys={"evaluation": key},
        units=0 if cached else len(trained),
        seconds=time.perf_counter() - started,
    )
    return Outcome(Artifact("evaluations", key, key), (step,))


def run(
    context: Context,
    manifest: Artifact,
    embedded: EmbeddingsOf,
    trained: tuple[Artifact, ...],
    encoder: Encoder,
    head: HeadSpec,
) -> Outcome[Artifact]:
    """Choose on validation, look at test once.

    Raises:
        DatasetError: no validation or no test image could be embedded.
    """
    embeddings = embedded[encoder.key]
    started = time.perf_counter()
    planned = plan(context, manifest, embedded, trained, encoder, head)
    if planned.step.cached:
        return planned
    document = _document(context, manifest, embeddings, trained, encoder, head)
    write = partial(_write, context, manifest, embeddings, trained, document)
    context.store.build("evaluations", document, write)
    return planned.ran(time.perf_counter() - started)


def _document(
    context: Context,
    manifest: Artifact,
    embeddings: Artifact,
    trained: tuple[Artifact, ...],
    encoder: Encoder,
    head: HeadSpec,
) -> KeyDocument:
    held = {
        split: digest(
            sorted(labels_of(context.store, manifest, embeddings, split).items())
        )
        for split in (VALIDATION, TEST)
    }
    return key_document(
        "evaluate",
        VERSION,
        {
            "encoder": context.named(encoder.label),
            "family": head.name,
            "control": encoder.control
            or heads.HEADS[head.name].control
            or bool(context.control),
            "seed": context.seed,
        },
        {
            "encoder": embeddings.key,
            "heads": digest([artifact.fingerprint for artifact in trained]),
            "validation rows": held[VALIDATION],
            "test rows": held[TEST],
        },
    )


def _write(
    context: Context,
    manifest: Artifact,
    embeddings: Artifact,
    trained: tuple[Artifact, ...],
    document: KeyDocument,
    folder: Path,
) -> str:
    # scikit-learn and scipy are imported only when there is something to score
    from tl_pipeline.evaluation import HeldOut, evaluate  # noqa: PLC0415
    from tl_pipeline.heads import fitted  # noqa: PLC0415

    store = context.store
    vectors = EmbeddingFolder(store, embeddings.key)
    held = {}
    for split in (VALIDATION, TEST):
        labels = labels_of(store, manifest, embeddings, split)
        if not labels:
            raise DatasetError(
                f"{context.dataset.name}: no {split} image could be embedded; see the "
                "quarantine table"
            )
        found = vectors.load(labels)
        names = np.array([labels[image_id] for image_id in found.image_ids])
        held[split] = HeldOut(split, found, names)
    tried = [fitted.load(store.path(artifact)) for artifact in trained]
    evaluation = evaluate(tried, held[VALIDATION], held[TEST], context.seed)
    key = digest(document)
    metrics = [
        row
        for scored in (*evaluation.validation, evaluation.test)
        for row in _metric_rows(key, document, scored, evaluation)
    ]
    predictions = [
        row
        for scored in (evaluation.chosen, evaluation.test)
        for row in _prediction_rows(key, scored)
    ]
    tables.write(METRICS, tables.from_rows(METRICS, metrics), folder)
    tables.write(PREDICTIONS, tables.from_rows(PREDICTIONS, predictions), folder)
    position = evaluation.validation.index(evaluation.chosen)
    about = {"head": trained[position].key, "classes": evaluation.chosen.head.classes}
    (folder / "chosen.json").write_text(json.dumps(about, ensure_ascii=False))
    return key


def _metric_rows(
    key: str, document: KeyDocument, scored: "Scored", evaluation: "Evaluation"
) -> Iterator[Row]:
    for score in scored.scores:
        yield {
            "evaluation": key,
            "encoder_key": scored.head.encoder_key,
            "encoder": document["params"]["encoder"],
            "family": document["params"]["family"],
            "head": heads.label(scored.head.config),
            "chosen": scored.head is evaluation.chosen.head,
            "split": scored.rows.split,
            "metric": score.metric,
            "value": score.value,
            "low": score.low,
            "high": score.high,
            "images": len(scored.rows.labels),
        }


def _prediction_rows(key: str, scored: "Scored") -> Iterator[Row]:
    probabilities = scored.probabilities
    winners = probabilities.argmax(axis=1)
    for i, image_id in enumerate(scored.rows.embeddings.image_ids):
        yield {
            "evaluation": key,
            "image_id": image_id,
            "split": scored.rows.split,
            "label": str(scored.rows.labels[i]),
            "predicted": scored.head.classes[winners[i]],
            "confidence": probabilities[i, winners[i]],
            "probabilities": probabilities[i],
        }

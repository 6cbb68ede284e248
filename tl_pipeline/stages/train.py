"""Train: embeddings of the training rows x one head's grid -> fitted heads.

Reads the manifest and the embeddings. Writes ``heads/<key>/`` for each configuration,
which is a cached unit of its own: a wider grid trains only what is new. Only training
rows are read, so new test images train nothing. Where the source tells weights, heads
learn by them; evaluation does not know of them. A fit is a function of its key, so the
key serves as the fingerprint.
"""

import time
from functools import partial
from pathlib import Path

import numpy as np

from tl_pipeline import heads
from tl_pipeline.artifacts import Artifact, KeyDocument, digest, key_document
from tl_pipeline.embeddings import EmbeddingFolder, Embeddings
from tl_pipeline.encoders import Encoder
from tl_pipeline.errors import DatasetError
from tl_pipeline.labels import TrainingRows, training_rows
from tl_pipeline.planning import (
    Context,
    EmbeddingsOf,
    Outcome,
    Step,
    why_not_cached,
)
from tl_pipeline.progress import track
from tl_pipeline.specs import HeadConfig, HeadSpec

# Bump when the same inputs must give other heads.
VERSION = 1


def plan(
    context: Context,
    manifest: Artifact,
    embedded: EmbeddingsOf,
    encoder: Encoder,
    head: HeadSpec,
) -> Outcome[tuple[Artifact, ...]]:
    """Name every configuration of ``head`` and look which are trained already."""
    embeddings = embedded[encoder.key]
    started = time.perf_counter()
    documents = _documents(context, manifest, embeddings, head)
    subject = f"{head.name} on {context.named(encoder.label)}"
    why: dict[str, list[str]] = {}
    for config, document in documents:
        if context.store.find("heads", digest(document)) is None:
            said = why_not_cached(
                context, "heads", subject, heads.label(config), document
            )
            why.setdefault(said, []).append(heads.label(config))
    due = sum(len(labels) for labels in why.values())
    if len(documents) == due > 1 == len(why):
        reasons = [f"all {due} configurations: {next(iter(why))}"]
    else:
        reasons = [f"{', '.join(labels)}: {said}" for said, labels in why.items()]
    step = Step(
        stage="train",
        subject=subject,
        cached=not why,
        reason="; ".join(reasons) or f"{len(documents)} trained already",
        keys={heads.label(config): digest(document) for config, document in documents},
        units=due,
        seconds=time.perf_counter() - started,
    )
    keys = [digest(document) for _, document in documents]
    return Outcome(tuple(Artifact("heads", key, key) for key in keys), (step,))


def run(
    context: Context,
    manifest: Artifact,
    embedded: EmbeddingsOf,
    encoder: Encoder,
    head: HeadSpec,
) -> Outcome[tuple[Artifact, ...]]:
    """Fit every configuration of ``head`` that is not there yet.

    Raises:
        DatasetError: fewer than two classes have an embedded training image.
        InvalidSpec: images have weights, and ``head`` cannot take them.
    """
    embeddings = embedded[encoder.key]
    started = time.perf_counter()
    planned = plan(context, manifest, embedded, encoder, head)
    if planned.step.cached:
        return planned
    rows = training_rows(context.store, manifest, embeddings)
    if len(set(rows.labels.values())) < 2:
        raise DatasetError(
            f"{context.dataset.name}: fewer than two classes have training images that "
            "could be embedded; see the quarantine table"
        )
    vectors = EmbeddingFolder(context.store, embeddings.key).load(rows.labels)
    with track(f"train {planned.step.subject}", planned.step.units) as progress:
        for config, document in _documents(context, manifest, embeddings, head):
            key = digest(document)
            if context.store.find("heads", key) is None:
                write = partial(_fit, config, context.seed, vectors, rows, key)
                context.store.build("heads", document, write)
                progress.advance()
    return planned.ran(time.perf_counter() - started)


def _fit(
    config: HeadConfig,
    seed: int,
    vectors: Embeddings,
    rows: TrainingRows,
    key: str,
    folder: Path,
) -> str:
    # scikit-learn is imported only when there is something to train
    from tl_pipeline.heads import fitted  # noqa: PLC0415

    labels = np.array([rows.labels[image_id] for image_id in vectors.image_ids])
    weights = None
    if rows.weights:
        weights = np.array([rows.weights[image_id] for image_id in vectors.image_ids])
    fitted.save(fitted.fit(config, seed, vectors, labels, weights), folder)
    return key


def _documents(
    context: Context, manifest: Artifact, embeddings: Artifact, head: HeadSpec
) -> list[tuple[HeadConfig, KeyDocument]]:
    """Every configuration of ``head`` with the document of its key."""
    inputs = {
        "encoder": embeddings.key,
        "training rows": training_rows(context.store, manifest, embeddings).fingerprint,
    }
    return [
        (
            config,
            key_document(
                "train",
                VERSION,
                {"head": config.name, **config.params, "seed": context.seed},
                inputs,
            ),
        )
        for config in heads.grid(head)
    ]

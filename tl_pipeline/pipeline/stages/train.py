"""Train: embeddings of the training rows x one head's grid -> fitted heads.

Reads the manifest and the embeddings. Writes ``heads/<key>/`` for each configuration,
which is a cached unit of its own: a wider grid trains only what is new. Only training
rows are read, so new test images train nothing. Where the source tells weights, heads
learn by them; evaluation does not know of them. A fit is a function of its key, so the
key serves as the fingerprint.
"""

import time

from tl_pipeline import heads
from tl_pipeline.config.specs import HeadConfig, HeadSpec
from tl_pipeline.data.splits import TRAIN
from tl_pipeline.encoders import concat
from tl_pipeline.encoders.concat import AnyEncoder
from tl_pipeline.heads import search
from tl_pipeline.pipeline import fits
from tl_pipeline.progress import track
from tl_pipeline.runs.planning import (
    Context,
    EmbeddingsOf,
    Outcome,
    Step,
    why_not_cached,
)
from tl_pipeline.store.artifacts import Artifact
from tl_pipeline.store.keys import KeyDocument, digest

VERSION = fits.VERSION


def plan(
    context: Context,
    manifest: Artifact,
    embedded: EmbeddingsOf,
    encoder: AnyEncoder,
    head: HeadSpec,
) -> Outcome[tuple[Artifact, ...]]:
    """Name every configuration of ``head`` and look which are trained already."""
    embeddings = concat.embeddings_of(embedded, encoder)
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
    encoder: AnyEncoder,
    head: HeadSpec,
) -> Outcome[tuple[Artifact, ...]]:
    """Fit every configuration of ``head`` that is not there yet.

    Raises:
        DatasetError: fewer than two classes have an embedded training image.
        InvalidSpec: images have weights, and ``head`` cannot take them.
    """
    started = time.perf_counter()
    planned = plan(context, manifest, embedded, encoder, head)
    if planned.step.cached:
        return planned
    embeddings = concat.embeddings_of(embedded, encoder)
    rows = fits.rows_of(context, manifest, embeddings, TRAIN)
    configs = search.candidates(head, context.search, context.seed)
    with track(f"train {planned.step.subject}", planned.step.units) as progress:
        fits.make(context, embeddings, rows, configs, progress.advance)
    return planned.ran(time.perf_counter() - started)


def _documents(
    context: Context, manifest: Artifact, embeddings: Artifact, head: HeadSpec
) -> list[tuple[HeadConfig, KeyDocument]]:
    """Every configuration of ``head`` with the document of its key."""
    rows = fits.rows_of(context, manifest, embeddings, TRAIN)
    return [
        (config, fits.document(context, embeddings, rows, config))
        for config in search.candidates(head, context.search, context.seed)
    ]

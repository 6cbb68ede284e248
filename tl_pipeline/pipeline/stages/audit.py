"""Audit: a manifest x embeddings -> its near duplicates, and which of them leak.

Reads the manifest and one encoder's embeddings. Writes ``manifests/<key>/``: what
ingest wrote and NEAR_DUPLICATES; with ``keep_together`` the splits are drawn again, so
that a cluster stays on one side. What was found stands in its provenance under
``near_duplicates``.
"""

import shutil
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tl_pipeline.config.split_specs import SplitSpec
from tl_pipeline.data import splits
from tl_pipeline.data.split_findings import near_duplicates
from tl_pipeline.data.split_report import NearDuplicateFindings
from tl_pipeline.encoders import concat
from tl_pipeline.encoders.concat import AnyEncoder
from tl_pipeline.errors import DatasetError
from tl_pipeline.runs import results
from tl_pipeline.runs.planning import (
    Context,
    EmbeddingsOf,
    Outcome,
    Step,
    why_not_cached,
)
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.keys import KeyDocument, digest, key_document
from tl_pipeline.store.tables import DUPLICATES, MANIFEST, NEAR_DUPLICATES, QUARANTINE

# Bump when the same inputs must give other rows.
VERSION = 1


def plan(
    context: Context,
    manifest: Artifact,
    embedded: EmbeddingsOf,
    encoder: AnyEncoder,
) -> Outcome[Artifact]:
    """Look whether these images were compared already.

    Until they are, the output is ``manifest`` itself: with ``keep_together`` the plan
    of what follows holds for its splits, and may change by what is found.
    """
    embeddings = concat.embeddings_of(embedded, encoder)
    started = time.perf_counter()
    too_many = _too_many(context, manifest)
    document = _document(context, manifest, embeddings)
    made = context.store.find("manifests", digest(document))
    if too_many:
        reason = too_many
    elif made:
        reason = _said(context.store, made)
    else:
        subject = context.dataset.name
        reason = why_not_cached(context, "manifests", subject, "manifest", document)
        if context.dataset.near_duplicates.action == "keep_together":
            reason += "; images may change sides"
    step = Step(
        stage="audit",
        subject=context.dataset.name,
        cached=bool(made or too_many),
        reason=reason,
        keys={} if too_many else {"manifest": digest(document)},
        seconds=time.perf_counter() - started,
    )
    return Outcome(made or manifest, (step,))


def run(
    context: Context, manifest: Artifact, embedded: EmbeddingsOf, encoder: AnyEncoder
) -> Outcome[Artifact]:
    """Find the near duplicates, and keep them together where the dataset says so.

    Raises:
        DatasetError: they are to be kept together, but are too many to be compared.
    """
    embeddings = concat.embeddings_of(embedded, encoder)
    started = time.perf_counter()
    planned = plan(context, manifest, embedded, encoder)
    if planned.step.cached:
        return planned
    # scipy is imported only when there is something to compare
    from tl_pipeline.data.near_duplicates import find  # noqa: PLC0415

    store, wanted = context.store, context.dataset.near_duplicates
    rows = tables.read(MANIFEST, store.path(manifest))
    vectors = concat.load(store, embeddings, rows["image_id"].to_pylist())
    # Both are sorted by id; images that the encoder refused have no vector.
    at = np.searchsorted(rows["image_id"].to_numpy(), np.array(vectors.image_ids))
    found = find(vectors.vectors, rows["label"].to_numpy()[at], wanted.ratio)
    pairs, clusters = at[found.pairs], np.full(len(rows), -1)
    clusters[at] = found.clusters
    near = _findings(rows, pairs, clusters)
    if wanted.action == "keep_together":
        rows, changed = _together(rows, clusters, context.dataset.split)
        near |= changed
    said = NearDuplicateFindings(encoder=encoder.label, ratio=found.ratio, **near)
    similar = pa.table(
        {
            "image_id": rows["image_id"].take(pairs[:, 0]),
            "near_id": rows["image_id"].take(pairs[:, 1]),
            "similarity": found.similarity,
            "cluster": clusters[pairs[:, 0]],
        }
    )
    made = store.build(
        "manifests",
        _document(context, manifest, embeddings),
        partial(_write, store.path(manifest), rows, similar),
        extra={"near_duplicates": said.model_dump(mode="json")},
    )
    reason = f"{planned.step.reason}: {near_duplicates(said)}"
    return replace(planned, output=made).ran(
        time.perf_counter() - started, reason=reason
    )


def _together(
    rows: pa.Table, clusters: np.ndarray, spec: SplitSpec
) -> tuple[pa.Table, dict[str, int]]:
    """The rows with their splits drawn anew, and how many images moved."""
    from tl_pipeline.data.regroup import EXCLUDED, keep_together  # noqa: PLC0415 - scipy

    sides = keep_together(rows, clusters, spec)
    changed = {
        "moved": int((sides != rows["split"].to_numpy()).sum()),
        "excluded": int((sides == EXCLUDED).sum()),
    }
    place = rows.schema.get_field_index("split")
    return rows.set_column(place, rows.schema.field("split"), pa.array(sides)), changed


def _said(store: Store, made: Artifact) -> str:
    found = results.near_duplicates(store, made)
    return near_duplicates(found) if found else ""


def _too_many(context: Context, manifest: Artifact) -> str:
    """Why these images are not compared, or nothing."""
    wanted = context.dataset.near_duplicates
    images = tables.count(MANIFEST, context.store.path(manifest))
    if images <= wanted.most_images:
        return ""
    said = (
        f"{images:,} images are more than near_duplicates.most_images = "
        f"{wanted.most_images:,}"
    )
    if wanted.action == "keep_together":
        raise DatasetError(
            f"{context.dataset.name}: {said}, so near duplicates cannot be kept "
            "together. Raise it (time grows with its square), or name groups"
        )
    return f"not looked for: {said}"


def _document(
    context: Context, manifest: Artifact, embeddings: Artifact
) -> KeyDocument:
    dataset = context.dataset
    params: dict[str, Any] = {
        "action": dataset.near_duplicates.action,
        "ratio": dataset.near_duplicates.ratio,
    }
    if dataset.near_duplicates.action == "keep_together":
        params["split"] = dataset.split.model_dump(mode="json")
    inputs = {"manifest": manifest.key, "embeddings": embeddings.fingerprint}
    return key_document("audit", VERSION, params, inputs)


def _findings(
    rows: pa.Table, pairs: np.ndarray, clusters: np.ndarray
) -> dict[str, Any]:
    """What was found in the splits as they are before any image is moved."""
    sides = rows["split"].to_numpy()[pairs]
    order = {split: place for place, split in enumerate(splits.SPLITS)}
    across = Counter(
        "/".join(sorted(pair, key=order.__getitem__))
        for pair in sides[sides[:, 0] != sides[:, 1]]
    )
    sizes = np.bincount(clusters[clusters >= 0])
    return {
        "pairs": len(pairs),
        "images": int(sizes.sum()),
        "clusters": len(sizes),
        "largest": int(sizes.max(initial=0)),
        "across": dict(across.most_common()),
    }


def _write(before: Path, rows: pa.Table, near: pa.Table, folder: Path) -> str:
    for table in (QUARANTINE, DUPLICATES):
        shutil.copyfile(before / table.file, folder / table.file)
    tables.write(MANIFEST, rows, folder)
    tables.write(NEAR_DUPLICATES, near, folder)
    return tables.content(rows)

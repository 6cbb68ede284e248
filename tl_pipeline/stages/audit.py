"""Audit: a manifest x embeddings -> its near duplicates, and which of them leak.

Reads the manifest and one encoder's embeddings. Writes ``manifests/<key>/``: what
ingest wrote and NEAR_DUPLICATES; with ``keep_together`` the splits are drawn again, so
that a cluster stays on one side. What was found stands in its provenance under
``near_duplicates``.
"""

import shutil
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tl_pipeline import splits, tables
from tl_pipeline.artifacts import Artifact, KeyDocument, digest, key_document
from tl_pipeline.embeddings import EmbeddingFolder
from tl_pipeline.encoders import Encoder
from tl_pipeline.errors import DatasetError
from tl_pipeline.planning import Context, Outcome, Step, why_not_cached
from tl_pipeline.tables import DUPLICATES, MANIFEST, NEAR_DUPLICATES, QUARANTINE

# Bump when the same inputs must give other rows.
VERSION = 1


def plan(
    context: Context,
    manifest: Artifact,
    embeddings: Artifact,
    encoder: Encoder,  # noqa: ARG001 - the signature of run
) -> Outcome[Artifact]:
    """Look whether these images were compared already.

    Until they are, the output is ``manifest`` itself: with ``keep_together`` the plan
    of what follows holds for its splits, and may change by what is found.
    """
    started = time.perf_counter()
    too_many = _too_many(context, manifest)
    document = _document(context, manifest, embeddings)
    made = context.store.find("manifests", digest(document))
    if too_many:
        reason = too_many
    elif made:
        reason = _summary(context.store.provenance(made)["near_duplicates"])
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
    return Outcome(made or manifest, step)


def run(
    context: Context, manifest: Artifact, embeddings: Artifact, encoder: Encoder
) -> Outcome[Artifact]:
    """Find the near duplicates, and keep them together where the dataset says so.

    Raises:
        DatasetError: they are to be kept together, but are too many to be compared.
    """
    started = time.perf_counter()
    planned = plan(context, manifest, embeddings, encoder)
    if planned.step.cached:
        return planned
    # scipy is imported only when there is something to compare
    from tl_pipeline import near_duplicates  # noqa: PLC0415
    from tl_pipeline.together import EXCLUDED, keep_together  # noqa: PLC0415

    store, dataset = context.store, context.dataset
    rows = tables.read(MANIFEST, store.path(manifest))
    vectors = EmbeddingFolder(store, embeddings.key).load(rows["image_id"].to_pylist())
    # Both are sorted by id; images that the encoder refused have no vector.
    at = np.searchsorted(rows["image_id"].to_numpy(), np.array(vectors.image_ids))
    labels = rows["label"].to_numpy()[at]
    found = near_duplicates.find(vectors.vectors, labels, dataset.near_duplicates.ratio)
    clusters = np.full(len(rows), -1)
    clusters[at] = found.clusters
    pairs = at[found.pairs]
    findings = _findings(rows, pairs, clusters, found.ratio, encoder)
    if dataset.near_duplicates.action == "keep_together":
        sides = keep_together(rows, clusters, dataset.split)
        moved = sides != rows["split"].to_numpy()
        findings["moved"] = int(moved.sum())
        findings["excluded"] = int((sides == EXCLUDED).sum())
        place = rows.schema.get_field_index("split")
        rows = rows.set_column(place, MANIFEST.schema.field("split"), pa.array(sides))
    near = pa.table(
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
        partial(_write, store.path(manifest), rows, near),
        extra={"near_duplicates": findings},
    )
    step = planned.ran(time.perf_counter() - started).step
    reason = f"{planned.step.reason}: {_summary(findings)}"
    return Outcome(made, Step(**{**vars(step), "reason": reason}))


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
    rows: pa.Table,
    pairs: np.ndarray,
    clusters: np.ndarray,
    ratio: float,
    encoder: Encoder,
) -> dict[str, Any]:
    """What was found in the splits as they were before."""
    sides = rows["split"].to_numpy()[pairs]
    apart = sides[sides[:, 0] != sides[:, 1]]
    order = {split: place for place, split in enumerate(splits.SPLITS)}
    across = Counter("/".join(sorted(pair, key=order.__getitem__)) for pair in apart)
    sizes = np.bincount(clusters[clusters >= 0])
    return {
        "encoder": encoder.label,
        "ratio": ratio,
        "pairs": len(pairs),
        "images": int(sizes.sum()),
        "clusters": len(sizes),
        "largest": int(sizes.max(initial=0)),
        "across": dict(across.most_common()),
    }


def _summary(findings: dict[str, Any]) -> str:
    if not findings["pairs"]:
        return "no near duplicates"
    across = ", ".join(
        f"{n:,} pairs {where}" for where, n in findings["across"].items()
    )
    images, clusters = findings["images"], findings["clusters"]
    said = f"{images:,} near duplicates in {clusters:,} clusters"
    if "moved" in findings:
        return f"{said}, kept together: {findings['moved']:,} images changed sides"
    return f"{said}, across splits: {across or 'none'}"


def _write(before: Path, rows: pa.Table, near: pa.Table, folder: Path) -> str:
    for table in (QUARANTINE, DUPLICATES):
        shutil.copyfile(before / table.file, folder / table.file)
    tables.write(MANIFEST, rows, folder)
    tables.write(NEAR_DUPLICATES, near, folder)
    return tables.fingerprint(rows)

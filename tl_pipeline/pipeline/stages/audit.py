"""Audit: a manifest x embeddings -> its near duplicates, and which of them leak.

Reads the manifest and one encoder's embeddings. Writes ``manifests/<key>/``: what
ingest wrote and NEAR_DUPLICATES; with ``keep_together`` the splits are drawn again, so
that a cluster stays on one side. What was found stands in its provenance under
``near_duplicates``.
"""

import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.config.split_specs import SplitSpec
from tl_pipeline.data import splits
from tl_pipeline.data.split_findings import near_duplicates
from tl_pipeline.data.split_report import NearDuplicateFindings
from tl_pipeline.encoders import concat
from tl_pipeline.encoders.concat import AnyEncoder
from tl_pipeline.errors import DatasetError
from tl_pipeline.pipeline.manifest import Manifest
from tl_pipeline.pipeline.stage import Unit
from tl_pipeline.runs import results
from tl_pipeline.runs.planning import Outcome, Step
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact
from tl_pipeline.store.embeddings import Embeddings
from tl_pipeline.store.keys import KeyDocument, key_document
from tl_pipeline.store.tables import DUPLICATES, MANIFEST, NEAR_DUPLICATES, QUARANTINE

# Bump when the same inputs must give other rows.
VERSION = 3
# Values by which images are compared: time grows with the cube.
_WIDEST = 8192


class _Audited(NamedTuple):
    """The manifest after the audit, the pairs, and what was found."""

    rows: pa.Table
    similar: pa.Table
    findings: NearDuplicateFindings


@dataclass(frozen=True)
class Audit(Unit[Manifest]):
    """``manifest`` with its near duplicates in the ``embeddings`` of ``encoder``.

    Until they are compared, a plan goes on with ``manifest`` itself: with
    ``keep_together`` it holds for its splits, and may change by what is found.

    Raises:
        DatasetError: they are to be kept together, but are too many to be compared.
    """

    stage: ClassVar[str] = "audit"
    kind: ClassVar[str] = "manifests"
    label: ClassVar[str] = "manifest"

    dataset: DatasetSpec
    manifest: Manifest
    embeddings: Artifact
    encoder: AnyEncoder

    @property
    def subject(self) -> str:
        return self.dataset.name

    def depends_on(self) -> KeyDocument:
        near = self.dataset.near_duplicates
        params: dict[str, Any] = {"action": near.action, "ratio": near.ratio}
        if near.action == "keep_together":
            params["split"] = self.dataset.split.model_dump(mode="json")
        inputs = {
            "manifest": self.manifest.key,
            "embeddings": self.embeddings.fingerprint,
        }
        return key_document("audit", VERSION, params, inputs)

    def look(self) -> Outcome[Manifest]:
        """See ``Unit``; too many images are not compared."""
        if too_many := self._too_many():
            step = Step("audit", self.subject, cached=True, reason=too_many, keys={})
            return Outcome(self.manifest, (step,))
        return super().look()

    def found(self, made: Artifact) -> str:
        found = results.near_duplicates(self.at.store, made)
        return near_duplicates(found) if found else ""

    def missing(self) -> str:
        together = self.dataset.near_duplicates.action == "keep_together"
        return super().missing() + "; images may change sides" * together

    def told(self, reason: str, made: Artifact) -> str:
        return f"{reason}: {self.found(made)}"

    def units(self, made: Artifact | None) -> int:
        """See ``Unit``: nothing that is worth counting."""
        return 0

    def output(self, made: Artifact | None) -> Manifest:
        if made is None:
            return self.manifest
        return Manifest(self.at.store, made, self.manifest.dataset)

    def extra(self) -> Mapping[str, Any]:
        return {"near_duplicates": self._audited.findings.model_dump(mode="json")}

    def write(self, folder: Path) -> str:
        before = self.at.store.path(self.manifest.artifact)
        for table in (QUARANTINE, DUPLICATES):
            shutil.copyfile(before / table.file, folder / table.file)
        tables.write(MANIFEST, self._audited.rows, folder)
        tables.write(NEAR_DUPLICATES, self._audited.similar, folder)
        return tables.content(self._audited.rows)

    @cached_property
    def _audited(self) -> _Audited:
        # scipy is imported only when there is something to compare
        from tl_pipeline.data.near_duplicates import find  # noqa: PLC0415

        store, wanted = self.at.store, self.dataset.near_duplicates
        rows = tables.read(MANIFEST, store.path(self.manifest.artifact))
        vectors = concat.load(store, self.embeddings, rows["image_id"].to_pylist())
        # Both are sorted by id; images that the encoder refused have no vector.
        at = np.searchsorted(rows["image_id"].to_numpy(), np.array(vectors.image_ids))
        found = find(_compared(vectors), rows["label"].to_numpy()[at], wanted.ratio)
        pairs, clusters = at[found.pairs], np.full(len(rows), -1)
        clusters[at] = found.clusters
        near = _findings(rows, pairs, clusters)
        if wanted.action == "keep_together":
            rows, changed = _together(rows, clusters, self.dataset.split)
            near |= changed
        similar = pa.table(
            {
                "image_id": rows["image_id"].take(pairs[:, 0]),
                "near_id": rows["image_id"].take(pairs[:, 1]),
                "similarity": found.similarity,
                "cluster": clusters[pairs[:, 0]],
            }
        )
        return _Audited(
            rows,
            similar,
            NearDuplicateFindings(
                encoder=self.encoder.label, ratio=found.ratio, **near
            ),
        )

    def _too_many(self) -> str:
        """Why these images are not compared, or nothing."""
        wanted = self.dataset.near_duplicates
        images = self.manifest.table.num_rows
        if images <= wanted.most_images:
            return ""
        said = (
            f"{images:,} images are more than near_duplicates.most_images = "
            f"{wanted.most_images:,}"
        )
        if wanted.action == "keep_together":
            raise DatasetError(
                f"{self.subject}: {said}, so near duplicates cannot be kept "
                "together. Raise it (time grows with its square), or name groups"
            )
        return f"not looked for: {said}"


def _compared(found: Embeddings) -> np.ndarray:
    """What images are compared by, (n, width); of many places their mean."""
    if found.places is None or found.vectors.shape[1] <= _WIDEST:
        return found.vectors
    return found.places.of(found.vectors).mean(axis=1)


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

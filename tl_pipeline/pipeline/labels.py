"""Which images of a split can be used with an encoder, and what they are labelled."""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tl_pipeline.data import splits
from tl_pipeline.encoders import concat
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.keys import digest
from tl_pipeline.store.tables import MANIFEST


@dataclass(frozen=True)
class TrainingRows:
    """What heads learn from: image id -> label, -> weight, and -> group.

    An image of weight w counts as w copies of it would; one of weight 0 is left out.
    ``weights`` is empty where every image counts 1, ``groups`` where no two images are
    of one group.
    """

    labels: dict[str, str]
    weights: dict[str, float]
    groups: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Stands for the rows in the keys of heads; weights enter if there are some."""
        rows = sorted(self.labels.items())
        return digest([rows, sorted(self.weights.items())] if self.weights else rows)

    def ungrouped(self) -> "TrainingRows":
        """The same, as if nobody knew which images belong together."""
        return replace(self, groups={})

    def part(self, ids: Iterable[str]) -> "TrainingRows":
        """Those of ``ids`` alone."""
        labels = {image_id: self.labels[image_id] for image_id in ids}
        return TrainingRows(
            labels,
            {image_id: w for image_id, w in self.weights.items() if image_id in labels},
            {image_id: g for image_id, g in self.groups.items() if image_id in labels},
        )

    def columns(
        self, ids: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Labels, weights and groups of ``ids``, each (n,); None where there are none.

        An image without a group is a group of its own.
        """
        labels = np.array([self.labels[image_id] for image_id in ids])
        weights = groups = None
        if self.weights:
            weights = np.array([self.weights[image_id] for image_id in ids])
        if self.groups:
            groups = units(ids, self.groups)
        return labels, weights, groups


def labels_of(
    store: Store, manifest: Artifact, embeddings: Artifact, split: str
) -> dict[str, str]:
    """Image id -> label of the images of ``split`` that the encoder did not refuse.

    Weights are for learning: whoever is tested on these rows counts every image once.
    """
    names = ("image_id", "label", "split")
    rows = tables.read(MANIFEST, store.path(manifest), names)
    return _labels(store, embeddings, rows.filter(pc.equal(rows["split"], split)))


def groups_of(store: Store, manifest: Artifact) -> dict[str, str]:
    """Image id -> group of the images that are of a group."""
    rows = tables.read(MANIFEST, store.path(manifest), ("image_id", "group"))
    pairs = tables.values(rows, "image_id", "group")
    return {image_id: group for image_id, group in pairs if group is not None}


def units(ids: Sequence[str], groups: Mapping[str, str]) -> np.ndarray:
    """What each of ``ids`` belongs to, as numbers (n,): its group, or it alone."""
    named = [groups.get(image_id) for image_id in ids]
    found = [
        f"image {image_id}" if group is None else f"group {group}"
        for image_id, group in zip(ids, named, strict=True)
    ]
    return np.unique(found, return_inverse=True)[1]


def training_rows(
    store: Store,
    manifest: Artifact,
    embeddings: Artifact,
    sides: Sequence[str] = (splits.TRAIN,),
) -> TrainingRows:
    """The images to learn from that the encoder did not refuse.

    Those of the splits ``sides`` whose weight is not 0.
    """
    names = ("image_id", "label", "split", "weight", "group")
    table = tables.read(MANIFEST, store.path(manifest), names)
    rows = splits.learned(table, sides)
    labels = _labels(store, embeddings, rows)
    weights = {
        image_id: 1.0 if weight is None else weight
        for image_id, weight in tables.values(rows, "image_id", "weight")
        if image_id in labels
    }
    uniform = all(weight == 1 for weight in weights.values())
    groups = {
        image_id: group
        for image_id, group in tables.values(rows, "image_id", "group")
        if group is not None and image_id in labels
    }
    single = len(set(groups.values())) == len(groups)
    return TrainingRows(labels, {} if uniform else weights, {} if single else groups)


def _labels(store: Store, embeddings: Artifact, rows: pa.Table) -> dict[str, str]:
    refused = concat.refused(store, embeddings)
    return {
        image_id: label
        for image_id, label in tables.values(rows, "image_id", "label")
        if image_id not in refused
    }

"""Which images of a split can be used with an encoder, and what they are labelled."""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from tl_pipeline import splits, tables
from tl_pipeline.artifacts import Artifact, Store, digest
from tl_pipeline.embeddings import EmbeddingFolder
from tl_pipeline.tables import MANIFEST


@dataclass(frozen=True)
class TrainingRows:
    """What heads learn from: image id -> label, and image id -> weight.

    An image of weight w counts as w copies of it would; one of weight 0 is left out.
    ``weights`` is empty where every image counts 1.
    """

    labels: dict[str, str]
    weights: dict[str, float]

    @property
    def fingerprint(self) -> str:
        """Stands for the rows in the keys of heads; weights enter if there are some."""
        rows = sorted(self.labels.items())
        return digest([rows, sorted(self.weights.items())] if self.weights else rows)


def labels_of(
    store: Store, manifest: Artifact, embeddings: Artifact, split: str
) -> dict[str, str]:
    """Image id -> label of the images of ``split`` that the encoder did not refuse.

    Weights are for learning: whoever is tested on these rows counts every image once.
    """
    names = ("image_id", "label", "split")
    rows = tables.read(MANIFEST, store.path(manifest), names)
    return _labels(store, embeddings, rows.filter(pc.equal(rows["split"], split)))


def training_rows(
    store: Store, manifest: Artifact, embeddings: Artifact
) -> TrainingRows:
    """The training images that the encoder did not refuse and whose weight is not 0."""
    names = ("image_id", "label", "split", "weight")
    rows = splits.learned(tables.read(MANIFEST, store.path(manifest), names))
    labels = _labels(store, embeddings, rows)
    weights = {
        image_id: 1.0 if weight is None else weight
        for image_id, weight in tables.values(rows, "image_id", "weight")
        if image_id in labels
    }
    uniform = all(weight == 1 for weight in weights.values())
    return TrainingRows(labels, {} if uniform else weights)


def _labels(store: Store, embeddings: Artifact, rows: pa.Table) -> dict[str, str]:
    refused = EmbeddingFolder(store, embeddings.key).refused()
    return {
        image_id: label
        for image_id, label in tables.values(rows, "image_id", "label")
        if image_id not in refused
    }

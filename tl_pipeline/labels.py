"""Which images of a split can be used with an encoder, and what they are labelled."""

from tl_pipeline import tables
from tl_pipeline.artifacts import Artifact, Store
from tl_pipeline.embeddings import EmbeddingFolder
from tl_pipeline.tables import MANIFEST


def labels_of(
    store: Store, manifest: Artifact, embeddings: Artifact, split: str
) -> dict[str, str]:
    """Image id -> label of the images of ``split`` that the encoder did not refuse."""
    names = ("image_id", "label", "split")
    rows = tables.read(MANIFEST, store.path(manifest), names)
    refused = EmbeddingFolder(store, embeddings.key).refused()
    columns = (rows[name].to_pylist() for name in names)
    return {
        image_id: label
        for image_id, label, where in zip(*columns, strict=True)
        if where == split and image_id not in refused
    }

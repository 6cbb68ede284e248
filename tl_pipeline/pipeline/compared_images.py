"""The images by which a batch and the test of a model are compared."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.evaluation import drift
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder


def some(rows: pa.Table) -> pa.Table:
    """At most ``drift.MOST`` of ``rows``, spread evenly over their ids: hashes."""
    rows = rows.sort_by("image_id")
    kept = np.linspace(0, rows.num_rows - 1, min(rows.num_rows, drift.MOST))
    return rows.take(pa.array(kept.astype(np.int64)))


def vectors(
    store: Store, encoders: Sequence[Encoder], ids: Sequence[str]
) -> dict[str, np.ndarray] | None:
    """The embeddings of ``ids`` by encoder, (n, width); None if some are gone."""
    found: dict[str, np.ndarray] = {}
    for encoder in encoders:
        loaded = EmbeddingFolder(store, encoder.key).load(ids)
        if loaded.image_ids != list(ids):
            return None
        found[encoder.key] = loaded.vectors
    return found

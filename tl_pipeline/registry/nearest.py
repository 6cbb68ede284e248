"""The training image that is most like each of some images, by exact cosine."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tl_pipeline import progress
from tl_pipeline.data import splits
from tl_pipeline.runs import records
from tl_pipeline.store import tables, unit_vectors
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.tables import MANIFEST


class Nearest(NamedTuple):
    """The id of the nearest training image of each image, and their cosine, (n,).

    Both are None where nothing is known of the training images. An embedding that is
    zero has no direction: nothing is nearest, and the cosine is 0.
    """

    ids: list[str | None]
    similarities: list[float | None]


def training_images(
    store: Store, model: str, manifest: str | None, encoder: str
) -> list[str]:
    """Ids of the training and validation images of ``model``, the key of its folder.

    ``manifest`` is what the folder tells; of one that an older version wrote, the
    record of a run may. A notice tells what is not known any more, and how many have
    lost their embedding under ``encoder``.
    """
    if manifest is None:
        runs = (one for one in records.every(store) if one.registered.model == model)
        manifest = next((record.manifest for record in runs), None)
    made = store.find("manifests", manifest) if manifest else None
    if made is None:
        progress.notice(
            "nothing tells any more what the model learned from, so no nearest "
            "training images are given"
        )
        return []
    rows = tables.read(MANIFEST, store.path(made), ["image_id", "split", "weight"])
    learned = splits.learned(rows, (splits.TRAIN, splits.VALIDATION))
    ids = learned["image_id"].to_pylist()
    folder = EmbeddingFolder(store, encoder)
    if lost := len(set(ids) - folder.embedded() - folder.refused().keys()):
        progress.notice(
            f"{lost:,} of {len(ids):,} training images have no embedding any more; "
            "the nearest are looked for among the others"
        )
    return ids


def nearest(
    store: Store, vectors: Mapping[str, np.ndarray], training: Sequence[str]
) -> Nearest:
    """The nearest of the images ``training`` to each of n images.

    ``vectors`` has the embeddings of the latter, (n, width) by encoder key. Where there
    are several encoders, the mean of their cosines counts, of images that all have.

    Raises:
        DamagedArtifact: a part of the embeddings cannot be read.
    """
    every = [unit_vectors.opened(store, key) for key in vectors]
    if len(every) == 1:
        (known,), (queries,) = every, vectors.values()
        found = known.nearest(queries, 1, known.among(pa.array(training, pa.string())))
    else:
        known = unit_vectors.side_by_side(every, training)
        queries = np.hstack([unit_vectors.unit(block) for block in vectors.values()])
        found = known.nearest(queries, 1)
    nothing = (None, 0.0 if len(training) else None)
    pairs = [some[0] if some else nothing for some in found]
    return Nearest([name for name, _ in pairs], [cosine for _, cosine in pairs])

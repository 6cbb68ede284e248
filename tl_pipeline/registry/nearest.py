"""The training image that is most like each of some images, by exact cosine.

Training images are read some at a time, in the order in which their embeddings lie in
part files, so that memory does not grow with their number.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tl_pipeline import progress
from tl_pipeline.data import splits
from tl_pipeline.runs import records
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.tables import MANIFEST
from tl_pipeline.store.unit_vectors import unit

VALUES = 1 << 24  # float32 of one encoder in memory at a time
_CELLS = 1 << 22  # of similarities


class Nearest(NamedTuple):
    """The id of the nearest training image of each image, and their cosine, (n,).

    Both are None where nothing is known of the training images.
    """

    ids: list[str | None]
    similarities: list[float | None]


def training_images(
    store: Store, model: str, manifest: str | None, encoder: str
) -> list[str]:
    """Ids of the training and validation images of ``model``, the key of its folder.

    They are in the order of their embeddings under ``encoder``, by part.
    ``manifest`` is what the folder tells; of one that an older version wrote, the
    record of a run may. What is not known any more is told in a notice.
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
    return by_part(EmbeddingFolder(store, encoder), learned["image_id"].to_pylist())


def nearest(
    store: Store, vectors: Mapping[str, np.ndarray], training: Sequence[str]
) -> Nearest:
    """The nearest of the images ``training`` to each of n images.

    They are as ``training_images`` gives them. ``vectors`` has the embeddings of the
    latter, (n, width) by encoder key. Where there are several encoders, the mean of
    their cosines counts.
    """
    queries = {key: unit(block) for key, block in vectors.items()}
    (count,) = {len(block) for block in queries.values()}
    ids, best = np.full(count, None, object), np.full(count, -np.inf, np.float32)
    for some, blocks in _blocks(store, queries, training):
        names = np.array(some, object)
        step = max(1, _CELLS // len(some))
        for start in range(0, count, step):
            rows = slice(start, start + step)
            similar = sum(queries[key][rows] @ blocks[key].T for key in queries)
            similar = np.asarray(similar) / len(queries)
            at = similar.argmax(axis=1)
            found = similar[np.arange(len(at)), at]
            nearer = found > best[rows]
            ids[rows] = np.where(nearer, names[at], ids[rows])
            best[rows] = np.where(nearer, found, best[rows])
    known = [None if np.isinf(value) else min(value, 1.0) for value in best.tolist()]
    return Nearest(ids.tolist(), known)


def _blocks(
    store: Store, queries: Mapping[str, np.ndarray], training: Sequence[str]
) -> Iterator[tuple[list[str], dict[str, np.ndarray]]]:
    """Some training images at a time, with their unit vectors under all encoders.

    One that an encoder refused is left out.
    """
    folders = {key: EmbeddingFolder(store, key) for key in queries}
    widest = max(block.shape[1] for block in queries.values())
    step = max(1, VALUES // widest)
    for start in range(0, len(training), step):
        some = training[start : start + step]
        loaded = {key: folder.load(some) for key, folder in folders.items()}
        shared = set(some).intersection(*(found.image_ids for found in loaded.values()))
        blocks = {
            key: unit(found.vectors[[name in shared for name in found.image_ids]])
            for key, found in loaded.items()
        }
        if shared:
            yield sorted(shared), blocks


def by_part(folder: EmbeddingFolder, wanted: Sequence[str]) -> list[str]:
    """Those of ``wanted`` that have an embedding, those of a part together.

    A notice tells how many others were not refused, and so are lost.
    """
    left, found = set(wanted), list[str]()
    for rows in folder.parts().whole.values():
        here = [name for name in rows["image_id"].to_pylist() if name in left]
        left.difference_update(here)
        found += here
    if lost := len(left - folder.refused().keys()):
        progress.notice(
            f"{lost:,} of {len(wanted):,} training images have no embedding any more; "
            "the nearest are looked for among the others"
        )
    return found

"""Reads everything in a store again, whatever was found right before.

What is damaged is set aside, or deleted in an object store, so that the next run makes
it anew.
"""

import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from tl_pipeline.maintenance import listing
from tl_pipeline.maintenance.listing import ARTIFACTS, EMBEDDINGS, WEIGHTS, Item
from tl_pipeline.progress import track
from tl_pipeline.store import weights
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.files import file_sha256, set_aside


@dataclass(frozen=True)
class Verified:
    """How many artifacts, encoders and weights were read, and what was damaged."""

    checked: int
    damaged: list[str]


def verify(store: Store) -> Verified:
    """Read all artifacts, embeddings and weights of ``store``.

    Of an object store all is fetched. Waits while a run writes to an encoder.

    Raises:
        StoreError: a file cannot be read now; that says nothing about it.
    """
    kinds = {*ARTIFACTS, EMBEDDINGS, WEIGHTS}
    items = [item for item in listing.items(store) if item.kind in kinds]
    damaged: list[str] = []
    with track("verify", len(items)) as progress:
        for item in items:
            damaged += _damaged(store, item)
            progress.advance()
    return Verified(len(items), damaged)


def _damaged(store: Store, item: Item) -> Iterator[str]:
    """What of ``item`` is damaged, once it is out of the way."""
    if item.kind == EMBEDDINGS:
        folder = EmbeddingFolder(store, item.key, trust=False)
        folder.gather()
        files = [*folder.parts().damaged, *folder.refusal_files().damaged]
        if files:
            with folder.writing():  # sets them aside
                pass
        yield from (str(file.relative_to(store.root)) for file in files)
        return
    name = str(item.path.relative_to(store.root))
    if item.kind == WEIGHTS:
        whole = _are_whole_weights(store, item)
    else:
        whole = _is_whole_artifact(store, item)
    if not whole:
        store.mirror.remove(item.names)
        yield name


def _are_whole_weights(store: Store, item: Item) -> bool:
    kept = weights.find(store, item.key)
    if (
        kept is None or kept.is_dir()
    ):  # a network of texts, which is checked as it loads
        return True
    if file_sha256(kept) == item.key:
        return True
    set_aside(kept, "its bytes are not those of its name")
    return False


def _is_whole_artifact(store: Store, item: Item) -> bool:
    if item.path.exists() and not store.is_whole(item.path):
        set_aside(item.path, "a file is missing or not as its provenance lists it")
        return False
    if not item.names:
        return True
    building = store.root / ".building" / uuid.uuid4().hex
    try:
        return store.mirror.fetch_artifact(item.kind, item.key, building)
    finally:
        shutil.rmtree(building, ignore_errors=True)

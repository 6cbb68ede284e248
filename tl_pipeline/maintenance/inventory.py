"""What lies in a store: counts and sizes by kind, and who uses each encoder."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.maintenance import gc_roots, listing
from tl_pipeline.maintenance.gc_roots import Roots
from tl_pipeline.maintenance.listing import (
    ARTIFACTS,
    DAMAGED,
    EMBEDDINGS,
    REPORTS,
    RUNS,
    UNFINISHED,
    WEIGHTS,
    Item,
)
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder, described
from tl_pipeline.store.files import why

Row = dict[str, Any]
# Kinds that always have a row, in this order.
_FIRST = (*ARTIFACTS, EMBEDDINGS, WEIGHTS, RUNS, REPORTS, "catalogue", "registry")
_BY_KEY = {*ARTIFACTS, EMBEDDINGS, WEIGHTS}


@dataclass(frozen=True)
class Inventory:
    """``kinds``, ``encoders`` and ``damaged`` are rows; sizes are in bytes."""

    kinds: list[Row]
    encoders: list[Row]
    damaged: list[Row]

    @property
    def unused_bytes(self) -> int:
        """What no run and no model uses, leftovers included."""
        return sum(row["unused_bytes"] for row in self.kinds)

    def as_json(self) -> Row:
        """Everything, for a script."""
        return asdict(self)


def take(store: Store) -> Inventory:
    """Look at everything in ``store``; parts that are new are read through.

    Of an object store the ids of all embeddings are read, and what lies there counts.
    """
    found = listing.items(store)
    roots = gc_roots.survey(store, under_way=listing.under_way(found))
    sizes = {item.key: item.bytes for item in found if item.kind == EMBEDDINGS}
    damaged = [
        {"file": str(item.path.relative_to(store.root)), "why": why(item.path) or ""}
        for item in found
        if item.kind == DAMAGED
    ]
    return Inventory(
        list(_kinds(found, roots)), list(_encoders(store, sizes, roots)), damaged
    )


def label(store: Store, encoder_key: str) -> str:
    """The name of an encoder for people; its key if it was never described."""
    try:
        text = EmbeddingFolder(store, encoder_key).description.read_text()
    except FileNotFoundError:
        return encoder_key
    return Encoder.model_validate(json.loads(text)).label


def _kinds(found: list[Item], roots: Roots) -> Iterator[Row]:
    others = sorted({item.kind for item in found} - {*_FIRST, "other"})
    for kind in (*_FIRST, *others):
        items = [item for item in found if item.kind == kind]
        unused = [item for item in items if _is_unused(item, roots)]
        yield {
            "kind": kind,
            "count": len(items),
            "bytes": sum(item.bytes for item in items),
            "unused": len(unused),
            "unused_bytes": sum(item.bytes for item in unused),
        }


def _is_unused(item: Item, roots: Roots) -> bool:
    if item.kind in _BY_KEY:
        return item.key not in roots.users
    return item.kind in {DAMAGED, UNFINISHED}


def _encoders(store: Store, sizes: dict[str, int], roots: Roots) -> Iterator[Row]:
    for key in described(store):
        folder = EmbeddingFolder(store, key)
        parts = folder.parts().whole
        ids, refused = _ids(parts), _ids(folder.refusal_files().whole)
        yield {
            "encoder": label(store, key),
            "encoder_key": key,
            "images": len(ids),
            "refused": len(refused - ids),
            "parts": len(parts),
            "bytes": sizes.get(key, 0),
            "used_by": sorted(roots.users.get(key, ())),
        }


def _ids(files: dict[Any, pa.Table]) -> set[str]:
    return {i for rows in files.values() for i in rows["image_id"].to_pylist()}

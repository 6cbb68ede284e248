"""Near duplicates as pairs of pictures, those first that do most harm."""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from tl_pipeline.report.thumbnails import Thumbnail, Thumbnails
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.tables import NEAR_DUPLICATES

_MOST = 12


class DuplicatePair(NamedTuple):
    """Two images that are nearly equal."""

    first: Thumbnail
    second: Thumbnail
    similarity: float

    @property
    def harm(self) -> str:
        """What is wrong with them in words, "" for two of one class on one side."""
        faults = []
        if self.first.label != self.second.label:
            faults.append("two labels")
        if self.first.split != self.second.split:
            faults.append(f"{self.first.split} and {self.second.split}")
        return ", ".join(faults)


def find(store: Store, manifest: str, thumbnails: Thumbnails) -> list[DuplicatePair]:
    """Pairs of two labels first, then of two splits, then the most alike.

    Raises:
        DamagedArtifact: the table cannot be read.
    """
    folder = store.path(Artifact("manifests", manifest, manifest))
    if not (folder / NEAR_DUPLICATES.file).exists():
        return []
    pairs = tables.read(NEAR_DUPLICATES, folder)
    chosen = _worst(pairs, thumbnails.manifest)
    ids = [row[name] for row in chosen for name in ("image_id", "near_id")]
    made = thumbnails.of(ids)
    return [
        DuplicatePair(made[row["image_id"]], made[row["near_id"]], row["similarity"])
        for row in chosen
        if row["image_id"] in made and row["near_id"] in made
    ]


def _worst(pairs: pa.Table, manifest: pa.Table) -> list[dict[str, Any]]:
    ids = manifest["image_id"].combine_chunks()
    first, second = (pc.index_in(pairs[name], ids) for name in ("image_id", "near_id"))
    for column in ("label", "split"):
        same = pc.equal(manifest[column].take(first), manifest[column].take(second))
        pairs = pairs.append_column(f"same_{column}", same)
    order = [
        ("same_label", "ascending"),
        ("same_split", "ascending"),
        ("similarity", "descending"),
        ("image_id", "ascending"),
    ]
    return pairs.take(pc.sort_indices(pairs, order)[:_MOST]).to_pylist()

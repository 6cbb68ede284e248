"""The images of a run as stages need them: columns that are read once.

A ``Manifest`` is read once a run, however many encoders and heads ask. ``Rows`` are
some of its images with labels, weights and groups; their fingerprints stand for them in
keys and are computed once, too.
"""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tl_pipeline.data import splits
from tl_pipeline.encoders import concat
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.tables import MANIFEST, NEAR_DUPLICATES

_COLUMNS = ("image_id", "uri", "label", "split", "group", "weight")


class Rows:
    """Images with their labels, in the order of their ids.

    An image of weight w counts as w copies of it would when heads learn.
    """

    def __init__(self, table: pa.Table) -> None:
        """``table`` has ``image_id``, ``label``; perhaps ``weight`` and ``group``."""
        self._table = table

    def __len__(self) -> int:
        return self._table.num_rows

    @cached_property
    def ids(self) -> list[str]:
        """The image ids, sorted."""
        return self._table["image_id"].to_pylist()

    @cached_property
    def labels(self) -> np.ndarray:
        """The label of each image: str of shape (n,)."""
        return np.array(self._table["label"].to_pylist(), dtype=np.str_)

    @cached_property
    def weights(self) -> np.ndarray | None:
        """The weight of each image: float64 of shape (n,); None where all count 1."""
        if "weight" not in self._table.column_names:
            return None
        return self._table["weight"].to_numpy().astype(np.float64)

    @cached_property
    def groups(self) -> np.ndarray:
        """What each image belongs to, as numbers (n,): its group, or it alone."""
        if not self.grouped:
            return np.arange(len(self))
        named = self._table["group"]
        alone = pc.binary_join_element_wise("image", self._table["image_id"], " ")
        group = pc.binary_join_element_wise("group", named, " ")
        found = pc.if_else(pc.is_valid(named), group, alone)
        return np.unique(np.array(found.to_pylist()), return_inverse=True)[1]

    @property
    def named(self) -> list[str | None]:
        """The group of each image as the source names it."""
        return self._table["group"].to_pylist() if self.grouped else [None] * len(self)

    @property
    def grouped(self) -> bool:
        """Whether some images are of one group."""
        if "group" not in self._table.column_names:
            return False
        return self._table["group"].null_count < len(self)

    @cached_property
    def classes(self) -> dict[str, int]:
        """How many images each label has, the most frequent first."""
        return tables.counts(self._table["label"])

    @cached_property
    def fingerprint(self) -> str:
        """Stands for ids and labels in keys; weights enter if there are some."""
        parts = [self._table.select(["image_id", "label"])]
        if self.weights is not None:
            parts.append(self._table.select(["image_id", "weight"]))
        return tables.rows_fingerprint(*parts)

    @cached_property
    def groups_fingerprint(self) -> str | None:
        """Stands for the groups in keys; None where no image has one."""
        if not self.grouped:
            return None
        named = self._table.filter(pc.is_valid(self._table["group"]))
        return tables.rows_fingerprint(named.select(["image_id", "group"]))

    def part(self, ids: Iterable[str]) -> "Rows":
        """Those of ``ids`` alone."""
        wanted = pa.array(list(ids), pa.string())
        return Rows(self._table.filter(pc.is_in(self._table["image_id"], wanted)))

    def aligned(self, ids: Sequence[str]) -> "Rows":
        """The rows of ``ids``, which are sorted."""
        return self if list(ids) == self.ids else self.part(ids)


class Manifest:
    """The manifest of a run, read once; ``control`` tells what makes it a control.

    A control that deals images one by one knows no groups.
    """

    def __init__(
        self, store: Store, artifact: Artifact, dataset: str, control: str = ""
    ) -> None:
        self._store = store
        self.artifact = artifact
        self.dataset = dataset
        self.control = control
        self._of: dict[frozenset[str], EncodedImages] = {}

    @property
    def key(self) -> str:
        """The key of its artifact."""
        return self.artifact.key

    @cached_property
    def table(self) -> pa.Table:
        """One row per image, sorted by id."""
        found = tables.read(MANIFEST, self._store.path(self.artifact), _COLUMNS)
        return found.drop_columns(["group"]) if self.control else found

    @cached_property
    def clusters(self) -> dict[str, str]:
        """The cluster of each near duplicate, by image id; empty before the audit."""
        folder = self._store.path(self.artifact)
        if not (folder / NEAR_DUPLICATES.file).exists():
            return {}
        rows = tables.read(NEAR_DUPLICATES, folder)
        found = tables.values(rows, "image_id", "near_id", "cluster")
        return {image: f"near {number}" for *ids, number in found for image in ids}

    def named(self, encoder: str) -> str:
        """The label of an encoder as people read it beside these rows."""
        return f"{encoder} ({self.control})" if self.control else encoder

    @property
    def images(self) -> pa.Table:
        """``image_id`` and ``uri`` of every image."""
        return self.table.select(["image_id", "uri"])

    def rows_of(self, ids: Iterable[str]) -> Rows:
        """The rows of ``ids``, in the order of the ids."""
        return Rows(self.table).part(ids)

    def groups_of(self, ids: Iterable[str]) -> list[str | None]:
        """The group of each of ``ids``, which are sorted, as the source names it."""
        return self.rows_of(ids).named

    def encoded(self, embeddings: Artifact) -> "EncodedImages":
        """The images that the encoder of ``embeddings`` did not refuse."""
        refused = concat.refused(self._store, embeddings)
        ids = self.table["image_id"]
        here = pc.is_in(ids, pa.array(sorted(refused), pa.string()))
        found = frozenset(ids.filter(here).to_pylist()) if refused else frozenset[str]()
        if found not in self._of:
            rows = self.table.filter(pc.invert(here)) if found else self.table
            self._of[found] = EncodedImages(rows)
        return self._of[found]


class EncodedImages:
    """The images of a manifest that have an embedding under one encoder."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._found: dict[tuple[str, ...], Rows] = {}

    def held_out(self, split: str) -> Rows:
        """The images of ``split``, to be tested on: every one counts once."""
        if (split,) not in self._found:
            there = pc.equal(self._table["split"], split)
            found = self._table.filter(there).drop_columns(["weight"])
            self._found[split,] = Rows(found)
        return self._found[split,]

    def learned(self, *sides: str) -> Rows:
        """The images of the splits ``sides`` to learn from: weight 0 is left out.

        They have no weights where every image counts 1, and no groups where no two
        images are of one.
        """
        key = ("learned", *sides)
        if key not in self._found:
            self._found[key] = Rows(_plain(splits.learned(self._table, sides)))
        return self._found[key]


def _plain(rows: pa.Table) -> pa.Table:
    """``rows`` without a column of weights or groups that says nothing."""
    weight = pc.fill_null(rows["weight"], 1)
    if pc.all(pc.equal(weight, 1)).as_py() is not False:
        rows = rows.drop_columns(["weight"])
    else:
        at = rows.column_names.index("weight")
        rows = rows.set_column(at, "weight", weight)
    if "group" in rows.column_names:
        named = rows["group"].drop_null()
        if pc.count_distinct(named).as_py() == len(named):
            rows = rows.drop_columns(["group"])
    return rows

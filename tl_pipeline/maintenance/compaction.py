"""Many small parts of an encoder -> few large ones, sorted by image id inside.

Each merged part is published and on the disk before what it was made of goes. A kill in
between leaves rows twice, never none, and the next writer takes the second away
(``overlaps``). Readers need no lock: ``EmbeddingFolder`` lists again when a part
vanishes, and a file that is open stays readable.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from tl_pipeline.store import part_files
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.part_files import REFUSALS

ROWS = 65_536
# What a merged part may hold in memory while it is sorted, whatever the width.
_BYTES = 268_435_456
# A folder that is being listed may show neither the merged part, which came after the
# listing began, nor the small ones, which went before it ended; so they stay this long.
_LISTING_S = 0.1


@dataclass(frozen=True)
class Compacted:
    """Parts and tables of refused images of one encoder, before and after."""

    encoder_key: str
    parts_before: int
    parts_after: int
    refused_before: int
    refused_after: int


def compact(store: Store, encoder_key: str, rows: int = ROWS) -> Compacted:
    """Merge the parts that are smaller than half of ``rows``.

    Waits until no run on this machine writes to the encoder.

    Raises:
        StoreError: a file cannot be read now.
    """
    folder = EmbeddingFolder(store, encoder_key)
    with folder.writing():
        before = _counts(folder)
        parts = {file: len(ids) for file, ids in folder.parts().whole.items()}
        store.mirror.fetch(file for file, count in parts.items() if count < rows / 2)
        with store.mirror.changing(folder.path):
            for group in groups(parts, _rows(parts, rows)):
                _replace(group, _merge(group))
        with store.mirror.changing(folder.about):
            _merge_refusals(folder)
        after = _counts(folder)
    return Compacted(encoder_key, before[0], after[0], before[1], after[1])


def groups(parts: dict[Path, int], rows: int) -> list[list[Path]]:
    """Which parts become one: two or more small ones, at most ``rows`` together.

    A part of half that many rows or more stays, so that compacting again does nothing.
    """
    found: list[list[Path]] = [[]]
    size = 0
    for file, count in parts.items():
        if count >= rows / 2:
            continue
        if size + count > rows:
            found.append([])
            size = 0
        found[-1].append(file)
        size += count
    return [group for group in found if len(group) > 1]


def _rows(parts: Iterable[Path], rows: int) -> int:
    """``rows``, or as many as fit into memory at the width of these parts."""
    for file in parts:
        if not file.exists():  # too large to be merged, and not brought to this machine
            continue
        for _, vectors in part_files.blocks(file):
            return min(rows, max(1, _BYTES // vectors[:1].nbytes))
    return rows


def _merge(group: Sequence[Path]) -> Path:
    """The published union of ``group``."""
    ids: list[str] = []
    blocks: list[np.ndarray] = []
    for file in group:
        some, vectors = part_files.read_part(file)
        ids += some
        blocks.append(vectors)
    order = np.argsort(np.array(ids), kind="stable")
    merged = np.concatenate(blocks)[order]
    return part_files.write_part(group[0].parent, [ids[i] for i in order], merged)


def _merge_refusals(folder: EmbeddingFolder) -> None:
    """One table of the refusals that still count."""
    found = folder.refusal_files().whole
    files = [file for file in found if file.parent == folder.about]
    if len(files) > 1:
        rows = sorted(folder.refusals().values(), key=lambda row: row["image_id"])
        table = pa.Table.from_pylist(rows, schema=REFUSALS)
        _replace(files, part_files.write_refusals(folder.about, table))


def _replace(sources: Sequence[Path], merged: Path) -> None:
    time.sleep(_LISTING_S)
    for file in sources:
        if file != merged:
            file.unlink()


def _counts(folder: EmbeddingFolder) -> tuple[int, int]:
    return len(folder.parts().whole), len(folder.refusal_files().whole)


def encoders(store: Store) -> Iterator[str]:
    """The keys of all encoders that have a folder of embeddings in ``store``."""
    for folder in sorted((store.root / "embeddings").glob("encoder=*")):
        yield folder.name.partition("=")[2]

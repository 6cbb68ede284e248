"""Images that stand in two parts of an encoder, and how the second row goes away.

That happens when two machines wrote at once, or when compaction was killed between
publishing a merged part and removing the parts it was made of.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from tl_pipeline.store import part_files


def largest_first(parts: Mapping[Path, pa.Table]) -> dict[Path, pa.Table]:
    """The parts in the order in which they are believed: large ones before small.

    So a merged part stays, and what it was merged from goes.
    """
    return dict(sorted(parts.items(), key=lambda part: (-len(part[1]), part[0].name)))


def find(parts: Mapping[Path, pa.Table]) -> dict[Path, np.ndarray]:
    """Part -> numbers of the rows whose image another row gives already.

    Parts without such rows are left out.
    """
    parts = largest_first(parts)
    if not parts:
        return {}
    ids = pa.concat_tables(parts.values())["image_id"]
    if len(ids.unique()) == len(ids):
        return {}
    seen: set[str] = set()
    found = {}
    for file, rows in parts.items():
        again = []
        for number, image_id in enumerate(rows["image_id"].to_pylist()):
            if image_id in seen:
                again.append(number)
            seen.add(image_id)
        if again:
            found[file] = np.array(again)
    return found


def remove(found: Mapping[Path, np.ndarray]) -> int:
    """Take away what ``find`` found; how many rows. Only the one writer may do this.

    What stays of a part is published before the part goes: a kill at any moment leaves
    every row once or twice.
    """
    written = set()
    for file, again in found.items():
        if file in written:
            continue  # left by a kill after publishing, and published again just now
        ids, vectors = part_files.read_part(file)
        keep = np.setdiff1d(np.arange(len(ids)), again)
        if len(keep):
            left = [ids[row] for row in keep]
            published = part_files.write_part(file.parent, left, vectors[keep])
            written.add(published)
        file.unlink()
    return sum(map(len, found.values()))

"""What a dataset holds, before anything is run on it."""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.data.contact_sheet import contact_sheet
from tl_pipeline.data.identity import Memo
from tl_pipeline.data.scan import scan
from tl_pipeline.data.splits import SPLITS
from tl_pipeline.errors import DatasetError
from tl_pipeline.sources import open_source
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store


@dataclass(frozen=True)
class Overview:
    """Counts by class and split, totals by name, and a picture if of images."""

    classes: list[dict[str, Any]]
    totals: dict[str, Any]
    sheet: Image.Image | None


def look(dataset: DatasetSpec) -> Overview:
    """Scan ``dataset`` without a store.

    Raises:
        DatasetError: it cannot be read, or holds no image at all.
    """
    source = open_source(dataset)
    with tempfile.TemporaryDirectory() as nowhere:
        found = scan(source, dataset, Memo(Store(Path(nowhere)), dataset.name))
    manifest = found.manifest
    if not manifest.num_rows:
        raise DatasetError(f"{dataset.name}: no images among {found.inputs} inputs")
    pairs = manifest.group_by(["label", "split"]).aggregate([([], "count_all")])
    counts = Counter(
        {(label, split): n for label, split, n in zip(*_lists(pairs), strict=True)}
    )
    classes = [
        {
            "class": label,
            **{split: counts[label, split] for split in SPLITS},
            "all": sum(counts[label, split] for split in SPLITS),
        }
        for label in sorted({label for label, _ in counts})
    ]
    refused = tables.counts(found.quarantine["reason"])
    totals = {
        "images": manifest.num_rows,
        "groups": pc.count_distinct(manifest["group"]).as_py(),
        "refused": ", ".join(f"{n} {why}" for why, n in refused.items()) or 0,
        "duplicates": found.duplicates.num_rows,
        **_sizes(manifest),
        "size": f"{pc.sum(manifest['bytes']).as_py() / 1e6:.1f} MB",
    }
    images = dataset.modality == "image"
    sheet = contact_sheet(source, manifest, dataset.pixels) if images else None
    return Overview(classes, totals, sheet)


def _lists(rows: pa.Table) -> list[list[Any]]:
    return [column.to_pylist() for column in rows.columns]


def _sizes(manifest: pa.Table) -> dict[str, str]:
    sized = [n for n in ("width", "height") if not manifest[n].null_count]
    return {name: _range(manifest[name]) for name in sized}


def _range(pixels: pa.ChunkedArray) -> str:
    ordered = np.sort(pixels.to_numpy())
    return f"{ordered[0]} to {ordered[-1]}, median {ordered[len(ordered) // 2]}"

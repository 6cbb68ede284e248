"""What a dataset holds, before anything is run on it."""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tl_pipeline.artifacts import Store
from tl_pipeline.contact_sheet import contact_sheet
from tl_pipeline.datasets import DatasetSpec
from tl_pipeline.errors import DatasetError
from tl_pipeline.identity import Memo
from tl_pipeline.scan import scan
from tl_pipeline.sources import open_source
from tl_pipeline.splits import SPLITS


@dataclass(frozen=True)
class Overview:
    """Counts by class and split, totals by name, and a picture."""

    classes: list[dict[str, Any]]
    totals: dict[str, Any]
    sheet: Image.Image


def look(dataset: DatasetSpec) -> Overview:
    """Scan ``dataset`` without a store.

    Raises:
        DatasetError: it cannot be read, or holds no image at all.
    """
    source = open_source(dataset)
    with tempfile.TemporaryDirectory() as nowhere:
        found = scan(source, dataset, Memo(Store(Path(nowhere)), dataset.name))
    if not found.manifest:
        raise DatasetError(f"{dataset.name}: no images among {found.inputs} inputs")
    counts = Counter((row["label"], row["split"]) for row in found.manifest)
    classes = [
        {
            "class": label,
            **{split: counts[label, split] for split in SPLITS},
            "all": sum(counts[label, split] for split in SPLITS),
        }
        for label in sorted({label for label, _ in counts})
    ]
    refused = Counter(row["reason"] for row in found.quarantine)
    widths = sorted(row["width"] for row in found.manifest)
    heights = sorted(row["height"] for row in found.manifest)
    megabytes = sum(row["bytes"] for row in found.manifest) / 1e6
    totals = {
        "images": len(found.manifest),
        "groups": len({row["group"] for row in found.manifest} - {None}),
        "refused": ", ".join(f"{n} {why}" for why, n in refused.most_common()) or 0,
        "duplicates": len(found.duplicates),
        "width": f"{widths[0]} to {widths[-1]}, median {widths[len(widths) // 2]}",
        "height": f"{heights[0]} to {heights[-1]}, median {heights[len(heights) // 2]}",
        "size": f"{megabytes:.1f} MB",
    }
    return Overview(classes, totals, contact_sheet(source, found.manifest))

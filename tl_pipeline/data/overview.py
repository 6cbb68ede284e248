"""What a dataset holds, before anything is run on it."""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

import heapq
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont

from tl_pipeline.config.dataset_entry import PixelSpec
from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.data import refusals
from tl_pipeline.data.identity import Memo
from tl_pipeline.data.scan import scan
from tl_pipeline.data.splits import SPLITS, draw
from tl_pipeline.inputs.images import RefusedImage, decode
from tl_pipeline.sources import Source, open_source
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store

SIDE, GAP, LABEL_WIDTH = 72, 6, 190
_PAPER, _INK, _GAP_COLOUR = "#ffffff", "#1d2330", "#c8472f"


@dataclass(frozen=True)
class Overview:
    """Counts by class and split, totals by name, and a picture if of images.

    ``refused`` names the first inputs that were refused, ``notes`` are sentences.
    """

    classes: list[dict[str, Any]]
    totals: dict[str, Any]
    refused: list[str]
    notes: tuple[str, ...]
    sheet: Image.Image | None


def look(dataset: DatasetSpec) -> Overview:
    """Scan ``dataset`` without a store.

    Raises:
        DatasetError: it cannot be read.
        TooManyRefused: no input can be used.
    """
    source = open_source(dataset)
    with tempfile.TemporaryDirectory() as nowhere:
        memo = Memo(Store(Path(nowhere)), dataset.name)
        found = scan(source, dataset, memo, labelled=dataset.labelled)
    manifest = found.manifest
    if not dataset.labelled:  # that is what the one class of all of them is called
        place = manifest.column_names.index("label")
        manifest = manifest.set_column(place, "label", manifest["split"])
    if not manifest.num_rows:
        refusals.check(dataset, found.inputs, found.quarantine, found.manifest["label"])
    pairs = manifest.group_by(["label", "split"]).aggregate([([], "count_all")])
    counts = Counter(
        {(label, split): n for label, split, n in zip(*_lists(pairs), strict=True)}
    )
    classes = [
        {
            "class": label,
            **{split: counts[label, split] for split in SPLITS},
            "all": sum(n for (name, _), n in counts.items() if name == label),
        }
        for label in sorted({label for label, _ in counts})
    ]
    reasons = tables.counts(found.quarantine["reason"])
    totals = {
        "images": manifest.num_rows,
        "groups": pc.count_distinct(manifest["group"]).as_py(),
        "refused": ", ".join(f"{n} {why}" for why, n in reasons.items()) or 0,
        "duplicates": found.duplicates.num_rows,
        **_sizes(manifest),
        "size": f"{pc.sum(manifest['bytes']).as_py() / 1e6:.1f} MB",
    }
    images = dataset.modality == "image"
    sheet = contact_sheet(source, manifest, dataset.pixels) if images else None
    refused_first = refusals.details(found.quarantine)
    return Overview(classes, totals, refused_first, found.notes, sheet)


def _lists(rows: pa.Table) -> list[list[Any]]:
    return [column.to_pylist() for column in rows.columns]


def _sizes(manifest: pa.Table) -> dict[str, str]:
    sized = [n for n in ("width", "height") if not manifest[n].null_count]
    return {name: _range(manifest[name]) for name in sized}


def _range(pixels: pa.ChunkedArray) -> str:
    ordered = np.sort(pixels.to_numpy())
    return f"{ordered[0]} to {ordered[-1]}, median {ordered[len(ordered) // 2]}"


def contact_sheet(
    source: Source, manifest: pa.Table, how: PixelSpec, per_class: int = 10
) -> Image.Image:
    """One line of thumbnails a class, with its name and count.

    ``manifest`` has the columns of the manifest. The same images are shown as long as
    they are there: they are drawn by a hash of their content. One that cannot be
    decoded is a crossed box.
    """
    sizes = dict(sorted(tables.counts(manifest["label"]).items()))
    columns = min(per_class, max(sizes.values(), default=0))
    width = LABEL_WIDTH + columns * (SIDE + GAP) + GAP
    sheet = Image.new("RGB", (width, len(sizes) * (SIDE + GAP) + GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    rows, start = manifest.select(["label", "image_id", "uri"]).sort_by("label"), 0
    for line, (label, size) in enumerate(sizes.items()):
        top = GAP + line * (SIDE + GAP)
        pen.text((GAP, top + 18), _short(label), fill=_INK, font=font)
        pen.text((GAP, top + 38), f"{size:,}", fill="#667085", font=font)
        members = tables.values(rows.slice(start, size), "image_id", "uri")
        start += size
        chosen = heapq.nsmallest(per_class, members, key=lambda row: draw(row[0], 0))
        for column, (_, uri) in enumerate(chosen):
            left = LABEL_WIDTH + column * (SIDE + GAP)
            thumbnail = _thumbnail(source, uri, how)
            offset = ((SIDE - thumbnail.width) // 2, (SIDE - thumbnail.height) // 2)
            sheet.paste(thumbnail, (left + offset[0], top + offset[1]))
    return sheet


def _thumbnail(source: Source, uri: str, how: PixelSpec) -> Image.Image:
    try:
        image = decode(source.read(uri), how)
    except (RefusedImage, OSError):
        image = Image.new("RGB", (SIDE, SIDE), _PAPER)
        pen = ImageDraw.Draw(image)
        pen.rectangle((0, 0, SIDE - 1, SIDE - 1), outline=_GAP_COLOUR)
        pen.line((0, 0, SIDE, SIDE), fill=_GAP_COLOUR)
        return image
    scale = SIDE / max(image.size)
    size = tuple(max(1, round(length * scale)) for length in image.size)
    return image.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def _short(label: str) -> str:
    return label if len(label) <= 24 else f"{label[:23]}…"

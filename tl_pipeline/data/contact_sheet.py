"""A look at a dataset: a few images of every class, on one picture."""

import heapq

import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

from tl_pipeline.config.catalog_entry import PixelSpec
from tl_pipeline.data.splits import draw
from tl_pipeline.inputs.images import RefusedImage, decode
from tl_pipeline.sources import Source
from tl_pipeline.store import tables

SIDE, GAP, LABEL_WIDTH = 72, 6, 190
_PAPER, _INK, _GAP_COLOUR = "#ffffff", "#1d2330", "#c8472f"


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

"""A contact sheet: an image and those that are most like it, in one HTML file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tl_pipeline.config import catalog
from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.errors import CatalogError, StoreError, UnknownName
from tl_pipeline.inputs.images import decode
from tl_pipeline.report.page import TEMPLATES
from tl_pipeline.report.thumbnails import Thumbnail, Thumbnails, data_uri, fitted
from tl_pipeline.runs import records
from tl_pipeline.runs.records import Record
from tl_pipeline.store.artifacts import Store

Row = Mapping[str, Any]


def contact_sheet(
    store: Store,
    asked: Path | Row,
    found: Sequence[Row],
    encoder: str,
    catalog_file: Path | None = None,
) -> str:
    """The page as text; an image that nothing tells how to read has no picture.

    Args:
        store: where the images of ``found`` are.
        asked: a file, or a stored image as the view images has it.
        found: what ``Reader.neighbours`` gives, the most alike first.
        encoder: its name.
        catalog_file: the data catalogue, which tells where pictures are.

    Raises:
        RefusedImage: ``asked`` is a file, and no image.
    """
    stored = [*found, *([] if isinstance(asked, Path) else [asked])]
    made = {
        name: _thumbnails(store, name, stored, catalog_file)
        for name in dict.fromkeys(row["dataset"] for row in stored)
    }
    first = (
        _of_file(asked)
        if isinstance(asked, Path)
        else made[asked["dataset"]][asked["image_id"]]
    )
    return TEMPLATES.get_template("similar.html").render(
        asked=first,
        found=[(made[row["dataset"]][row["image_id"]], row) for row in found],
        encoder=encoder,
        several=len(made) > 1,
    )


def _thumbnails(
    store: Store, dataset: str, rows: Sequence[Row], catalog_file: Path | None
) -> Mapping[str, Thumbnail]:
    record = records.latest(store, dataset) or records.latest_batch(store, dataset)
    if record is None:
        raise StoreError(f"the record of the last run on {dataset} cannot be read")
    own = [row for row in rows if row["dataset"] == dataset]
    try:
        where = _dataset(record, catalog_file)
    except (CatalogError, UnknownName) as error:
        return {
            row["image_id"]: Thumbnail(
                image_id=row["image_id"],
                uri=row["uri"],
                label=row["label"] or "",
                split=row["split"],
                missing=str(error),
            )
            for row in own
        }
    made = Thumbnails(store, record.manifest, where)
    return made.of(row["image_id"] for row in own)


def _dataset(record: Record, catalog_file: Path | None) -> DatasetSpec:
    """The entry of the dataset; of a folder without one, where it was."""
    try:
        return catalog.find(record.dataset, catalog_file)
    except (CatalogError, UnknownName):
        folder = record.source
        if catalog_file or folder is None or not Path(folder).is_dir():
            raise
        return catalog.find(folder)


def _of_file(file: Path) -> Thumbnail:
    image = decode(file.read_bytes())
    width, height = fitted(image.size)
    about = {"image_id": "", "uri": str(file), "label": "", "split": ""}
    return Thumbnail(**about, src=data_uri(image), width=width, height=height)

"""Small pictures of a dataset's inputs, as they are shown in a page."""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

import base64
import io
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import joblib
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.data import reading
from tl_pipeline.inputs import texts
from tl_pipeline.inputs.images import decode
from tl_pipeline.inputs.refusals import RefusedImage
from tl_pipeline.sources import Source, open_source
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.tables import MANIFEST

SIDE = 112  # pixels of the longer side
_QUALITY = 65
_THREADS = 4
_TEXT = 240  # characters of a text
_COLUMNS = ("image_id", "uri", "label", "split", "width", "height")


@dataclass(frozen=True)
class Thumbnail:
    """An input as a page shows it.

    ``src`` is a data URI, "" where there is no picture; then ``text`` is the beginning
    of a text, or None. ``missing`` says why neither could be had.
    """

    image_id: str
    uri: str
    label: str
    split: str
    src: str = ""
    width: int = 0
    height: int = 0
    text: str | None = None
    missing: str | None = None


class Thumbnails:
    """Makes thumbnails of the images of one manifest from the bytes of its source."""

    def __init__(self, store: Store, manifest: str, dataset: DatasetSpec) -> None:
        """``manifest`` is a key.

        Raises:
            DamagedArtifact: the manifest cannot be read.
        """
        folder = store.path(Artifact("manifests", manifest, manifest))
        self.manifest = tables.read(MANIFEST, folder, _COLUMNS)
        self._dataset = dataset
        self._made: dict[str, Thumbnail] = {}

    @property
    def failed(self) -> bool:
        """Whether some input could not be read."""
        return any(made.missing for made in self._made.values())

    def of(self, image_ids: Iterable[str]) -> dict[str, Thumbnail]:
        """The thumbnails of ``image_ids``; each input is read at most once."""
        wanted = [name for name in dict.fromkeys(image_ids) if name not in self._made]
        rows = self.rows(wanted).to_pylist()
        if rows:
            source = open_source(self._dataset)
            with ThreadPoolExecutor(min(_THREADS, joblib.cpu_count())) as threads:
                made = threads.map(lambda row: self._make(source, row), rows)
                self._made |= {one.image_id: one for one in made}
        return self._made

    def rows(self, image_ids: list[str]) -> pa.Table:
        """The rows of the manifest of those of ``image_ids`` that it has."""
        names = pa.array(image_ids, pa.string())
        place = pc.index_in(names, self.manifest["image_id"].combine_chunks())
        return self.manifest.take(place.drop_null())

    def _make(self, source: Source, row: Mapping[str, Any]) -> Thumbnail:
        about = {name: row[name] for name in ("image_id", "uri", "label", "split")}
        if self._dataset.modality == "vector":
            return Thumbnail(**about)
        try:
            data = reading.checked((row["image_id"], row["uri"]), source.read)
            if self._dataset.modality == "text":
                text = texts.text(data)
                return Thumbnail(**about, text=text[:_TEXT] + "…" * (len(text) > _TEXT))
            image = decode(data, self._dataset.pixels)
        except RefusedImage as error:
            return Thumbnail(**about, missing=str(error))
        except Exception as error:  # noqa: BLE001 - a page must not fail a run
            return Thumbnail(**about, missing=f"{type(error).__name__}: {error}")
        size = fitted(image.size)
        return Thumbnail(**about, src=data_uri(image), width=size[0], height=size[1])


def fitted(size: tuple[int, int], side: int = SIDE) -> tuple[int, int]:
    """``size`` in pixels scaled so that the longer side is ``side``."""
    scale = side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def data_uri(image: Image.Image, side: int = SIDE) -> str:
    """``image`` as a WebP of at most ``side`` pixels; smaller ones are not enlarged."""
    if max(image.size) > side:
        image = image.resize(
            fitted(image.size, side), Image.Resampling.LANCZOS, reducing_gap=3
        )
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=_QUALITY, method=2)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"

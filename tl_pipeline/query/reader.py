"""A store as an analyst reads it in Python: frames, and arrays for what is large."""

import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tl_pipeline.data.identity import image_id
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.encoders.weight_store import located
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.query import catalogue
from tl_pipeline.query.neighbours import Neighbours
from tl_pipeline.query.views import quoted
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.unit_vectors import Near

if TYPE_CHECKING:
    import pandas as pd
    import torch

Image = str | Path


@dataclass(frozen=True)
class LabelledEmbeddings:
    """The embeddings of a dataset under one encoder, a row an image.

    ``ids``, ``uris``, ``labels`` and ``split`` are arrays of str (n,), labels None
    where images have none; ``vectors`` is float32 (n, width).
    """

    ids: np.ndarray
    uris: np.ndarray
    labels: np.ndarray
    split: np.ndarray
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.vectors)

    def to_numpy(self) -> np.ndarray:
        """The vectors, not copied."""
        return self.vectors

    def to_torch(self) -> "torch.Tensor":
        """The vectors as a tensor on the CPU, not copied."""
        import torch  # noqa: PLC0415 - seconds

        return torch.from_numpy(self.vectors)

    def to_arrow(self) -> pa.Table:
        """A table with the vectors as ``embedding``, FLOAT[width], not copied."""
        width = self.vectors.shape[1]
        flat = pa.array(self.vectors.reshape(-1))
        embedding = pa.FixedSizeListArray.from_arrays(flat, width)
        return pa.table({**self._columns(), "embedding": embedding})

    def to_pandas(self) -> "pd.DataFrame":
        """A frame with a vector a row as ``embedding``, not copied."""
        import pandas as pd  # noqa: PLC0415 - a second

        return pd.DataFrame({**self._columns(), "embedding": list(self.vectors)})

    def _columns(self) -> dict[str, np.ndarray]:
        return {
            "image_id": self.ids,
            "uri": self.uris,
            "label": self.labels,
            "split": self.split,
        }


class Similar:
    """The stored images most like one: ``frame``, as ``Reader.neighbours`` gives it.

    A notebook shows their pictures.
    """

    def __init__(self, frame: "pd.DataFrame", page: Callable[[], str]) -> None:
        self.frame, self._page = frame, page

    def html(self) -> str:
        """A page of the pictures, which are read for it; it needs no other file."""
        return self._page()

    def __repr__(self) -> str:
        return repr(self.frame)

    def _repr_html_(self) -> str:
        page = html.escape(self.html())
        return f'<iframe srcdoc="{page}" width="100%" height="480"></iframe>'


class Reader:
    """What ``tl_pipeline.open`` gives: it reads a store and writes nothing but caches.

    An encoder goes by its name or key in the view encoders, or by its backbone if no
    other trained one has that; None is the only trained one.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: tuple[str, Neighbours] | None = None

    def sql(self, query: str) -> "pd.DataFrame":
        """The rows that a query of the SQL catalogue gives.

        Raises:
            InvalidSpec: it does more than read, or DuckDB refuses it.
            StoreError: no run has finished.
        """
        return catalogue.ask(self._store, query).to_pandas()

    def metrics(self, dataset: str | None = None) -> "pd.DataFrame":
        """The view metrics, of all datasets or of one."""
        return self.sql(f"FROM metrics{_where(dataset)}")

    def predictions(self, dataset: str | None = None) -> "pd.DataFrame":
        """The view predictions, of all datasets or of one."""
        return self.sql(f"FROM predictions{_where(dataset)}")

    def embeddings(
        self, dataset: str, encoder: str | None = None
    ) -> LabelledEmbeddings:
        """The embeddings of ``dataset``, sorted by image id.

        Images that the encoder refused are left out.

        Raises:
            UnknownName, InvalidSpec: there is no such encoder or dataset.
            DamagedArtifact: a part cannot be read; the next run makes it anew.
        """
        key = self._neighbours().encoder(encoder)["encoder_key"]
        images = catalogue.ask(
            self._store,
            f"SELECT image_id, uri, label, split FROM images{_where(dataset)} "  # noqa: S608
            "ORDER BY image_id",
        ).to_pydict()
        found = EmbeddingFolder(self._store, key).load(images["image_id"])
        there = set(found.image_ids)
        rows = [row for row, one in enumerate(images["image_id"]) if one in there]
        ids, uris, labels, split = (
            np.array(images[name], object)[rows]
            for name in ("image_id", "uri", "label", "split")
        )
        return LabelledEmbeddings(ids, uris, labels, split, found.vectors)

    def encoder(self, name: str | None = None) -> str:
        """The name in the view encoders of the one that goes by ``name``.

        Raises:
            UnknownName, InvalidSpec: there is none, or are several.
        """
        return self._neighbours().encoder(name)["encoder"]

    def stored(self, images: Sequence[Image]) -> dict[str, dict[str, Any]]:
        """The rows of the view images of those that are the id or uri of one."""
        names = ", ".join(f"'{quoted(image)}'" for image in images) or "''"
        rows = catalogue.ask(
            self._store,
            f"SELECT dataset, image_id, uri, label, split FROM images WHERE uri "  # noqa: S608
            f"IN ({names}) OR image_id IN ({names}) ORDER BY dataset",
        ).to_pylist()
        by_uri = {row["uri"]: row for row in reversed(rows)}
        by_name = by_uri | {row["image_id"]: row for row in reversed(rows)}
        return {str(one): by_name[str(one)] for one in images if str(one) in by_name}

    def embed(
        self, files: Sequence[Image | bytes], encoder: str | None = None
    ) -> np.ndarray:
        """The embeddings of new files, or of contents: float32 (n, width).

        They are those that a run would keep; nothing is.

        Raises:
            InvalidSpec: one cannot be read, or is no input of the encoder.
            WeightsError: the weights are gone or changed.
        """
        from tl_pipeline.registry import prediction  # noqa: PLC0415 - torch

        key = self._neighbours().encoder(encoder)["encoder_key"]
        text = EmbeddingFolder(self._store, key).description.read_text()
        with_weights = located(Encoder.model_validate_json(text), self._store)
        given = [Path(one) if isinstance(one, str) else one for one in files]
        return prediction.embed(with_weights, given)

    def neighbours(
        self, images: Sequence[Image], k: int = 10, encoder: str | None = None
    ) -> "pd.DataFrame":
        """The ``k`` stored images most like each of ``images``, by cosine.

        Args:
            images: files, or ids or uris of stored images. One that is stored is not
                its own neighbour.
            k: how many; fewer where there are no more.
            encoder: see the class.

        Returns:
            image (as it was given), image_id, dataset, uri, label, split, similarity
            (-1 to 1); one row for each dataset that has the neighbour.

        Raises:
            InvalidSpec: an image is neither, or cannot be read; see ``embed``.
        """
        import pandas as pd  # noqa: PLC0415 - a second

        near = self._nearest(images, k, encoder)
        rows = [
            (str(image), one, cosine)
            for image, some in zip(images, near, strict=True)
            for one, cosine in some
        ]
        found = pd.DataFrame(rows, columns=["image", "image_id", "similarity"])
        ids = ", ".join(f"'{one}'" for one in dict.fromkeys(found["image_id"])) or "''"
        about = self.sql(
            f"SELECT dataset, image_id, uri, label, split FROM images "  # noqa: S608
            f"WHERE image_id IN ({ids}) ORDER BY dataset"
        )
        found = found.merge(about, on="image_id")
        found["similarity"] = found.pop("similarity").astype("float32")  # as in SQL
        return found

    def similar(
        self,
        image: Image,
        k: int = 12,
        encoder: str | None = None,
        catalog: Path | None = None,
    ) -> Similar:
        """The ``k`` stored images most like ``image``, for a notebook to show.

        Args:
            image: see ``neighbours``, as ``k`` and ``encoder``.
            k: how many.
            encoder: see the class.
            catalog: the data catalogue, which tells where pictures are. Default:
                data_catalog.yaml, here.

        Raises:
            InvalidSpec: see ``neighbours``.
        """
        from tl_pipeline.report.contact_sheet import contact_sheet  # noqa: PLC0415

        found = self.neighbours([image], k, encoder)

        def page() -> str:
            asked = self.stored([image]).get(str(image)) or Path(image)
            rows, name = found.to_dict("records"), self.encoder(encoder)
            return contact_sheet(self._store, asked, rows, name, catalog)

        return Similar(found, page)

    def _nearest(
        self, images: Sequence[Image], k: int, encoder: str | None
    ) -> list[Near]:
        if k < 1:
            raise InvalidSpec(f"k={k}: ask for 1 neighbour or more")
        near, given = self._neighbours(), list(self._given(images))
        ids = [one if isinstance(one, str) else image_id(one) for one in given]
        found, _ = near.vectors(encoder)
        new = np.flatnonzero(found.find(ids) < 0).tolist()
        files = [one for at in new if isinstance(one := given[at], bytes)]
        if len(files) < len(new) or not new:
            return near.neighbours(ids, k, encoder)
        vectors = np.zeros((len(ids), near.encoder(encoder)["width"]), np.float32)
        stored = np.setdiff1d(np.arange(len(ids)), new)
        vectors[stored] = found.vectors[found.find([ids[at] for at in stored])]
        vectors[new] = self.embed([images[at] for at in new], encoder)
        return near.nearest_to(vectors, k, encoder, ids)

    def _given(self, images: Sequence[Image]) -> Iterator[str | bytes]:
        """The contents of each image that is a file, the ids of the others."""
        stored = self.stored(images)
        for image in images:
            if row := stored.get(str(image)):
                yield row["image_id"]
            elif not Path(image).is_file():
                raise InvalidSpec(f"{image} is no file, nor the id or uri of an image")
            else:
                try:
                    yield Path(image).read_bytes()
                except OSError as error:
                    raise InvalidSpec(f"{image}: {error.strerror}") from None

    def _neighbours(self) -> Neighbours:
        """Those of the images that the store has now."""
        state = catalogue.state(self._store)
        if self._known is None or self._known[0] != state:
            with catalogue.connect(self._store) as connection:
                self._known = state, Neighbours(self._store, connection)
        return self._known[1]


def _where(dataset: str | None) -> str:
    if dataset is None:
        return ""
    return f" WHERE dataset = dataset_named('{quoted(dataset)}')"

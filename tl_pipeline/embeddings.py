"""Per-image embeddings of one encoder: a folder of immutable part files.

``embeddings/encoder=<key>/part-*.parquet`` holds one row per image, shared by every
dataset that has the image; ``refused-*.parquet`` holds the images that could not be
decoded. What is missing is an anti-join of ids, so a lost part costs only its images.
"""

import contextlib
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tl_pipeline.artifacts import Store, digest, write_atomically
from tl_pipeline.errors import DamagedArtifact

# Reasons that say nothing about the image, so that it is tried again.
RETRIED = ("unreadable", "changed")

_REFUSED = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        # null in the files of versions that did not note it
        pa.field("first_seen", pa.timestamp("us", "UTC")),
    ]
)
_IDS = pa.schema([_REFUSED.field("image_id")])


@dataclass(frozen=True)
class Embeddings:
    """The vectors of some images under one encoder.

    ``vectors`` is float32 of shape (n_images, width), row i belonging to
    ``image_ids[i]``.
    """

    encoder_key: str
    image_ids: list[str]
    vectors: np.ndarray


class EmbeddingFolder:
    """Reads and adds to the embeddings of one encoder."""

    def __init__(self, store: Store, encoder_key: str) -> None:
        self._store = store
        self.encoder_key = encoder_key
        self.path = store.root / "embeddings" / f"encoder={encoder_key}"

    def describe(self, identity: str) -> None:
        """Write the encoder's identity (JSON) beside the parts, once."""
        if not (self.path / "encoder.json").exists():
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / "encoder.json", identity)

    def embedded(self) -> set[str]:
        """Ids of all images that have an embedding here; damaged parts do not count."""
        return set().union(*(ids for _, ids in self._parts("part-*.parquet")))

    def refused(self) -> dict[str, tuple[str, str]]:
        """Image id -> (reason, detail) of every image that could not be decoded."""
        rows = self.refusals().items()
        return {i: (row["reason"], row["detail"]) for i, row in rows}

    def refusals(self) -> dict[str, dict[str, Any]]:
        """Image id -> ``image_id, reason, detail, first_seen``.

        ``first_seen`` is when the image was first refused for that reason, None where
        an older version did not note it. Of several refusals of an image the last one
        counts, and none if it was embedded later.
        """
        rows: list[dict[str, Any]] = []
        for file, _ in self._parts("refused-*.parquet"):
            table = _read(file, _REFUSED)
            rows += [] if table is None else table.to_pylist()
        rows.sort(key=lambda row: (row["first_seen"] is not None, row["first_seen"]))
        # All ids are read only where a second try may have gone well.
        again = any(row["reason"] in RETRIED for row in rows)
        embedded = self.embedded() if again else set()
        return {r["image_id"]: r for r in rows if r["image_id"] not in embedded}

    def add(self, image_ids: list[str], vectors: np.ndarray) -> None:
        """Publish one part: ``vectors`` is float32 of shape (len(image_ids), width)."""
        width = vectors.shape[1]
        flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
        table = pa.table(
            [pa.array(image_ids), pa.FixedSizeListArray.from_arrays(flat, width)],
            schema=pa.schema(
                [
                    pa.field("image_id", pa.string(), nullable=False),
                    pa.field(
                        "embedding", pa.list_(pa.float32(), width), nullable=False
                    ),
                ]
            ),
        )
        self._publish(table, f"part-{digest(image_ids)}.parquet")

    def refuse(self, rows: list[tuple[str, str, str]]) -> None:
        """Publish (image_id, reason, detail) of images that could not be decoded."""
        known, now = self.refusals(), datetime.now(UTC)
        records: list[dict[str, Any]] = []
        for image_id, reason, detail in rows:
            before = known.get(image_id, {})
            seen = before["first_seen"] if before.get("reason") == reason else now
            values = (image_id, reason, detail, seen)
            records.append(dict(zip(_REFUSED.names, values, strict=True)))
        table = pa.Table.from_pylist(records, schema=_REFUSED)
        self._publish(table, f"refused-{digest([row[0] for row in rows])}.parquet")

    def load(self, wanted: Iterable[str]) -> Embeddings:
        """The embeddings of ``wanted`` that are here, sorted by id.

        Raises:
            DamagedArtifact: a part cannot be read; it has been set aside, and the next
                run computes its images again.
        """
        wanted = set(wanted)
        ids: list[str] = []
        blocks: list[np.ndarray] = []
        for file, part_ids in self._parts("part-*.parquet"):
            rows = [i for i, part_id in enumerate(part_ids) if part_id in wanted]
            if rows:
                blocks.append(self._vectors(file, len(part_ids))[rows])
                ids += [part_ids[i] for i in rows]
                wanted.difference_update(part_ids)
        order = np.argsort(np.array(ids, dtype=str), kind="stable")
        vectors = np.concatenate(blocks)[order] if blocks else np.empty((0, 0), "f4")
        return Embeddings(self.encoder_key, [ids[i] for i in order], vectors)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer on this machine, and sweep what a killed one left."""
        with self._store.lock(f"encoder-{self.encoder_key}"):
            for left in self.path.glob(".writing-*"):
                left.unlink()
            for file in [*self.path.glob("part-*"), *self.path.glob("refused-*")]:
                schema = _REFUSED if file.name.startswith("refused-") else _IDS
                if _read(file, schema) is None:
                    _set_aside(file)
            yield

    def _parts(self, pattern: str) -> Iterator[tuple[Path, list[str]]]:
        for file in sorted(self.path.glob(pattern)):
            ids = _ids(file)
            if ids is not None:
                yield file, ids

    def _vectors(self, file: Path, rows: int) -> np.ndarray:
        try:
            column = pq.read_table(
                file, columns=["embedding"], page_checksum_verification=True
            )["embedding"]
            if not pa.types.is_fixed_size_list(column.type) or len(column) != rows:
                raise pa.ArrowInvalid(f"holds {len(column)} values of {column.type}")
        except (OSError, KeyError, pa.ArrowException) as error:
            aside = _set_aside(file)
            raise DamagedArtifact(
                f"{file}: {error}. It was set aside as {aside.name}; run again to "
                "compute its images anew"
            ) from None
        width = column.type.list_size
        return np.concatenate(
            [chunk.flatten().to_numpy().reshape(-1, width) for chunk in column.chunks]
        )

    def _publish(self, table: pa.Table, name: str) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        beside = self.path / f".writing-{uuid.uuid4().hex}"
        # No dictionary and no compression for floats: twice as fast to write and read.
        pq.write_table(
            table,
            beside,
            row_group_size=16384,
            compression="none",
            use_dictionary=False,
            write_page_checksum=True,
        )
        beside.replace(self.path / name)


def _ids(file: Path) -> list[str] | None:
    """The ids in a part, or None if it is truncated or damaged there."""
    table = _read(file, _IDS)
    return None if table is None else table["image_id"].to_pylist()


def _read(file: Path, schema: pa.Schema) -> pa.Table | None:
    """The columns of ``schema``, or None if they are truncated or damaged.

    One that may be null is null where the file does not have it.
    """
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as part:
            there = part.schema_arrow.names
            table = part.read([name for name in schema.names if name in there])
        for field in schema:
            if field.nullable and field.name not in there:
                table = table.append_column(field, pa.nulls(len(table), field.type))
        table = table.select(schema.names).cast(schema)
        table.validate(full=True)
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None
    return table


def _set_aside(file: Path) -> Path:
    aside = file.with_name(f".damaged-{file.name}-{uuid.uuid4().hex[:8]}")
    file.rename(aside)
    return aside

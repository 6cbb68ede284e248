"""The Parquet tables: what one row is, which columns are its key.

Writing checks the key and the types, so that no reader has to.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tl_pipeline.errors import DamagedArtifact


@dataclass(frozen=True)
class Table:
    """A kind of table: its file name, what one row is, its key, its columns."""

    file: str
    grain: str
    key: tuple[str, ...]
    schema: pa.Schema


def _columns(required: Mapping[str, Any], **optional: Any) -> pa.Schema:
    fields = [pa.field(name, kind, nullable=False) for name, kind in required.items()]
    return pa.schema(fields + [pa.field(name, kind) for name, kind in optional.items()])


MANIFEST = Table(
    "manifest.parquet",
    "One row per image of a dataset.",
    ("image_id",),
    _columns(
        {
            "image_id": pa.string(),
            "uri": pa.string(),
            "label": pa.string(),
            "split": pa.string(),
            "width": pa.int32(),
            "height": pa.int32(),
            "bytes": pa.int64(),
        },
        group=pa.string(),
    ),
)
QUARANTINE = Table(
    "quarantine.parquet",
    "One row per input that was refused, with the reason.",
    ("uri",),
    _columns(
        {"uri": pa.string(), "reason": pa.string(), "detail": pa.string()},
        image_id=pa.string(),
    ),
)
DUPLICATES = Table(
    "duplicates.parquet",
    "One row per file with the very bytes of another, which stands in the manifest.",
    ("uri",),
    _columns(
        {"uri": pa.string(), "image_id": pa.string(), "kept_uri": pa.string()},
        declared_split=pa.string(),
    ),
)
PREDICTIONS = Table(
    "predictions.parquet",
    "One row per evaluation and image of its validation and test splits.",
    ("evaluation", "image_id"),
    _columns(
        {
            "evaluation": pa.string(),
            "image_id": pa.string(),
            "split": pa.string(),
            "label": pa.string(),
            "predicted": pa.string(),
            "confidence": pa.float32(),
            "probabilities": pa.list_(pa.float32()),
        }
    ),
)
METRICS = Table(
    "metrics.parquet",
    "One row per evaluation, head configuration, split and metric.",
    ("evaluation", "head", "split", "metric"),
    _columns(
        {
            "evaluation": pa.string(),
            "encoder_key": pa.string(),
            "encoder": pa.string(),
            "family": pa.string(),
            "head": pa.string(),
            "chosen": pa.bool_(),
            "split": pa.string(),
            "metric": pa.string(),
            "value": pa.float64(),
            "images": pa.int64(),
        },
        low=pa.float64(),
        high=pa.float64(),
    ),
)
TABLES = (MANIFEST, QUARANTINE, DUPLICATES, PREDICTIONS, METRICS)


def from_rows(table: Table, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows as an Arrow table of ``table``'s schema; what is left out is null."""
    return pa.Table.from_pylist(list(rows), schema=table.schema)


def write(table: Table, data: pa.Table, folder: Path) -> None:
    """Write ``data`` to its file in ``folder``, after checking its key.

    Raises:
        ValueError: a column is missing or null, or the key is not unique; that is an
            error of this package and not of its user.
    """
    missing = [name for name in table.schema.names if name not in data.column_names]
    if missing:
        raise ValueError(f"{table.file}: no column {', '.join(missing)}")
    data = data.select(table.schema.names).cast(table.schema)
    for field in table.schema:
        if not field.nullable and data[field.name].null_count:
            raise ValueError(f"{table.file}: column {field.name} has nulls")
    distinct = data.group_by(list(table.key)).aggregate([]).num_rows
    if distinct != data.num_rows:
        raise ValueError(f"{table.file}: {table.key} is not unique")
    pq.write_table(data, folder / table.file, compression="zstd")


def read(table: Table, folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the file of ``table`` in ``folder``.

    Raises:
        DamagedArtifact: the file is missing or not whole.
    """
    try:
        return pq.read_table(
            folder / table.file, columns=list(columns) if columns else None
        )
    except (OSError, pa.ArrowInvalid) as error:
        raise DamagedArtifact(f"{folder / table.file}: {error}; run again") from None


def count(table: Table, folder: Path) -> int:
    """How many rows the file of ``table`` in ``folder`` has; reads only its footer.

    Raises:
        DamagedArtifact: the file is missing or not whole.
    """
    try:
        return pq.read_metadata(folder / table.file).num_rows
    except (OSError, pa.ArrowInvalid) as error:
        raise DamagedArtifact(f"{folder / table.file}: {error}; run again") from None

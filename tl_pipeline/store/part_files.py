"""One part file: published whole by a rename, and believed only if it reads back.

Parquet checks its data pages by checksums, but not its footer; so a file's name is the
digest of the ids in it, in their order, and ties rows, ids and footer together.
"""

import errno
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tl_pipeline.errors import StoreError
from tl_pipeline.store.files import make_folder, publish
from tl_pipeline.store.keys import digest

PART, REFUSED = "part", "refused"
ROW_GROUP = 16_384

REFUSALS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        # null in the files of versions that did not note it
        pa.field("first_seen", pa.timestamp("us", "UTC")),
    ]
)
_KINDS = (pa.float32(), pa.float16())  # of values
IDS = pa.schema([REFUSALS.field("image_id")])


class DamagedPartError(Exception):
    """A file that does not read back; the message says what is wrong with it."""


def named(folder: Path, prefix: str, image_ids: list[str]) -> Path:
    """The file of these rows, in their order."""
    return folder / f"{prefix}-{digest(image_ids)}.parquet"


def write_part(folder: Path, image_ids: list[str], vectors: np.ndarray) -> Path:
    """Publish a part: ``vectors`` (len(image_ids), width), of float32 or of float16.

    They are kept as they come; DuckDB reads both as FLOAT.
    """
    width = vectors.shape[1]
    kind = np.float16 if vectors.dtype == np.float16 else np.float32
    flat = pa.array(np.ascontiguousarray(vectors, kind).reshape(-1))
    column = pa.field("embedding", pa.list_(flat.type, width), nullable=False)
    table = pa.table(
        [pa.array(image_ids), pa.FixedSizeListArray.from_arrays(flat, width)],
        schema=pa.schema([IDS.field("image_id"), column]),
    )
    return _publish(table, folder, PART, image_ids)


def write_refusals(folder: Path, rows: pa.Table) -> Path:
    """Publish a table of ``REFUSALS``."""
    return _publish(rows.cast(REFUSALS), folder, REFUSED, rows["image_id"].to_pylist())


def _publish(table: pa.Table, folder: Path, prefix: str, ids: list[str]) -> Path:
    make_folder(folder)
    beside = folder / f".writing-{uuid.uuid4().hex}"
    # No dictionary and no compression for floats: twice as fast to write and read.
    pq.write_table(
        table,
        beside,
        row_group_size=ROW_GROUP,
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
    )
    file = named(folder, prefix, ids)
    publish(beside, file)
    return file


def check_part(file: Path) -> pa.Table:
    """The ids (``IDS``) in a part all of whose pages were read and found whole.

    Raises:
        DamagedPartError: it is truncated, or a byte was changed where that is noticed.
        FileNotFoundError: it is gone.
        StoreError: it cannot be read now; that says nothing about the file.
    """
    batches = [ids for ids, _ in blocks(file)]
    found = pa.Table.from_arrays([pa.chunked_array(batches, pa.string())], schema=IDS)
    return _named(file, found)


def read_ids(name: str, part: IO[bytes]) -> pa.Table:
    """The ids (``IDS``) in a part of that name that lies elsewhere.

    Only they are read; the vectors are looked at once the part is here.

    Raises:
        DamagedPartError, FileNotFoundError, StoreError: see ``check_part``.
    """
    try:
        with pq.ParquetFile(part, page_checksum_verification=True) as rows:
            ids = rows.read(["image_id"])
        ids = ids.cast(IDS)
        ids.validate(full=True)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise _meaning(Path(name), error) from None
    return _named(Path(name), ids)


def blocks(file: Path) -> Iterator[tuple[pa.Array, np.ndarray]]:
    """The ids and vectors (n, width) of a part, ``ROW_GROUP`` rows at a time.

    Vectors are of float32 or of float16, as they were written.

    Raises:
        DamagedPartError, FileNotFoundError, StoreError: see ``check_part``.
    """
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as part:
            if part.schema_arrow.names != ["image_id", "embedding"]:
                raise DamagedPartError(f"has columns {part.schema_arrow.names}")
            for group in range(part.num_row_groups):
                rows = part.read_row_group(group)
                rows.validate(full=True)
                rows = rows.combine_chunks()
                if len(rows):
                    yield _column(rows, "image_id"), _matrix(_column(rows, "embedding"))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise _meaning(file, error) from None


def read_part(file: Path) -> tuple[list[str], np.ndarray]:
    """All ids and the vectors (n, width) of a part, as they were written.

    Raises:
        DamagedPartError, FileNotFoundError, StoreError: see ``check_part``.
    """
    ids: list[str] = []
    found: list[np.ndarray] = []
    for some, vectors in blocks(file):
        ids += some.to_pylist()
        found.append(vectors)
    return ids, np.concatenate(found) if found else np.empty((0, 0), np.float32)


def read_refusals(file: Path) -> pa.Table:
    """The rows (``REFUSALS``) of a whole table of refused images.

    Raises:
        DamagedPartError, FileNotFoundError, StoreError: see ``check_part``.
    """
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as part:
            there = part.schema_arrow.names
            table = part.read([name for name in REFUSALS.names if name in there])
        if "first_seen" not in there:
            nothing = pa.nulls(len(table), REFUSALS.field("first_seen").type)
            table = table.append_column("first_seen", nothing)
        table = table.select(REFUSALS.names).cast(REFUSALS)
        table.validate(full=True)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise _meaning(file, error) from None
    return _named(file, table)


def _column(rows: pa.Table, name: str) -> pa.Array:
    array = rows[name].chunk(0)
    if array.null_count:
        raise DamagedPartError(f"{name} has {array.null_count} nulls")
    if name == "image_id" and array.type != pa.string():
        raise DamagedPartError(f"{name} is of {array.type}")
    return array


def _matrix(column: pa.Array) -> np.ndarray:
    kind = column.type
    if not pa.types.is_fixed_size_list(kind) or kind.value_type not in _KINDS:
        raise DamagedPartError(f"embedding is of {kind}")
    values = column.flatten()
    if len(values) != len(column) * kind.list_size or values.null_count:
        raise DamagedPartError(f"{len(column)} embeddings have {len(values)} values")
    return values.to_numpy().reshape(-1, kind.list_size)


def _named(file: Path, table: pa.Table) -> pa.Table:
    """``table`` if ``file`` has the name of its ids."""
    said = file.stem.partition("-")[2]
    if digest(table["image_id"].to_pylist()) != said:
        raise DamagedPartError(f"its {len(table)} rows are not those of its name")
    return table


def _meaning(file: Path, error: Exception) -> Exception:
    """What ``error`` means: a damaged file, a vanished one, or a fault of neither."""
    if isinstance(error, FileNotFoundError):
        return error
    # Parquet's own complaints are OSErrors without a number.
    if isinstance(error, OSError) and error.errno not in (None, errno.EIO):
        return StoreError(f"cannot read {file}: {error}")
    return DamagedPartError(str(error))

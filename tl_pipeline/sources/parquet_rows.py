"""The rows of a Parquet file as text, and its images as bytes.

What is opened is a path, or a binary file at its start where it lies behind a URL.
"""

import json
import re
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tl_pipeline.errors import DatasetError
from tl_pipeline.sources.csv_rows import Row, check_columns
from tl_pipeline.sources.entry import SEVERAL_LABELS

_IMAGES = re.compile(
    r"(large_)?(string|binary)|fixed_size_binary|null"
    r"|struct<.*\b(bytes: \w*binary|path: \w*string)"
)
_TEXTS = re.compile(r"(large_)?string(_view)?|null")
_BATCH, _BUFFER = 128, 1 << 20  # rows, bytes


def parquet_rows(
    file: Path | str, source: Any, names: Row, *, of_texts: bool = False
) -> Iterator[Row]:
    """The columns ``names`` of a Parquet file; bytes of images are not read.

    Raises:
        DatasetError: a column is missing, or the first holds no images (or texts).
        pyarrow.ArrowException: it is no Parquet file.
    """
    with pq.ParquetFile(source, buffer_size=_BUFFER) as table:
        image, *others = check_columns(file, names, table.schema_arrow.names)
        kind = str(_value_type(table.schema_arrow.field(image).type))
        if of_texts and not _TEXTS.fullmatch(kind):
            raise DatasetError(
                f"{file}: column {image!r} holds {kind}; 'text_column' must hold text"
            )
        if not of_texts and not _IMAGES.match(kind):
            raise DatasetError(
                f"{file}: column {image!r} holds {kind}; 'image_column' must hold "
                "paths, bytes, or a struct of 'bytes' and 'path'"
            )
        for name in others:
            _check_value(file, name, table.schema_arrow.field(name).type)
        classes = {name: _class_names(table.schema_arrow, name) for name in others}
        for number in range(table.num_row_groups):
            group = table.metadata.row_group(number)
            chunks = map(group.column, range(group.num_columns))
            statistics = {chunk.path_in_schema: chunk.statistics for chunk in chunks}
            nulls = statistics.get(f"{image}.bytes")
            # Bytes are not read to list them, where nothing but bytes can be there.
            full = nulls and nulls.has_null_count and nulls.null_count == 0
            full = full or "binary" in kind.partition("<")[0]
            columns = others if full else [image, *others]
            for batch in table.iter_batches(_BATCH, [number], columns):
                texts: dict[str | None, list[str | None]] = {
                    name: _texts(batch.column(name), classes.get(name))
                    for name in columns
                }
                none = [None] * batch.num_rows
                yield from zip(*(texts.get(n, none) for n in names), strict=True)


def _value_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values, where ``kind`` keeps each of them once."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _check_value(file: Path | str, name: str, kind: pa.DataType) -> None:
    """Refuse a column of labels, splits or the like that holds no plain values."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        raise DatasetError(f"{file}: column {name!r} {SEVERAL_LABELS}")
    if pa.types.is_nested(kind):
        raise DatasetError(
            f"{file}: column {name!r} holds {kind}; it must hold a text or a number in "
            "each row"
        )


def _class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """How the writer calls the whole numbers of ``column``, if it does.

    Hugging Face's ``datasets`` keeps the names of a ClassLabel as JSON in the schema's
    metadata; its -1 is no label.
    """
    try:
        written = json.loads((schema.metadata or {})[b"huggingface"])
        names = written["info"]["features"][column]["names"]
    except (LookupError, TypeError, ValueError):
        return None
    numbers = pa.types.is_integer(schema.field(column).type)
    return list(map(str, names)) if numbers and isinstance(names, list) else None


def _texts(column: pa.Array, classes: list[str] | None = None) -> list[str | None]:
    """The cells as text, None for nothing; of structs the path, if without bytes."""
    if classes is not None:
        known = range(len(classes))
        return [classes[n] if n in known else None for n in column.to_pylist()]
    if pa.types.is_struct(column.type):
        rows = (row or {} for row in column.to_pylist())
        return [r.get("path") or None if r.get("bytes") is None else None for r in rows]
    empty = ("", "nan") if pa.types.is_floating(column.type) else ("",)
    texts = column.cast(pa.string()).to_pylist()
    return [None if text in empty else text for text in texts]


def row_starts(file: Any) -> list[int]:
    """The first row of every row group, and the number of rows."""
    footer = pq.read_metadata(file)
    groups = map(footer.row_group, range(footer.num_row_groups))
    return list(accumulate((group.num_rows for group in groups), initial=0))


def row_images(file: Any, group: int, column: str) -> pa.ChunkedArray:
    """The bytes of all images of a row group."""
    with pq.ParquetFile(file, buffer_size=_BUFFER) as table:
        nested = pa.types.is_struct(table.schema_arrow.field(column).type)
        wanted = [f"{column}.bytes" if nested else column]
        batches = table.iter_batches(_BATCH, [group], wanted)
        arrays = [batch.column(0) for batch in batches]
    return pa.chunked_array([a.flatten()[0] if nested else a for a in arrays])

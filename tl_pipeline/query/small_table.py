"""A small table of the catalogue: its rows are made, no stage wrote them."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

Row = Mapping[str, Any]

_KINDS = {
    "s": pa.string(),
    "i": pa.int64(),
    "f": pa.float64(),
    "b": pa.bool_(),
    "t": pa.timestamp("us", "UTC"),
    "l": pa.list_(pa.string()),
}


class SmallTable(NamedTuple):
    """A table's rows, columns, and what one row is."""

    rows: Iterable[Row]
    schema: pa.Schema
    comment: str


def schema(*groups: str) -> pa.Schema:
    """``"a b:s"`` means the columns a and b, both strings."""
    fields = []
    for group in groups:
        names, _, kind = group.partition(":")
        fields += [(name, _KINDS[kind]) for name in names.split()]
    return pa.schema(fields)

"""The Parquet tables: what one row is, which columns are its key.

Writing checks the key and the types, so that no reader has to.
"""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tl_pipeline.errors import DamagedArtifact

# Rows that are Python objects at one time; the rest of a large table is columns.
_STEP = 32_768
_ROW_GROUP = 131_072
# What JSON writes otherwise than it stands in a string.
_ESCAPED = r'["\\\x00-\x1f]'


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
    "One row per image (or text, or vector) of a dataset.",
    ("image_id",),
    _columns(
        {
            "image_id": pa.string(),
            "uri": pa.string(),
            "label": pa.string(),
            "split": pa.string(),
            "bytes": pa.int64(),
        },
        width=pa.int32(),  # a text or a vector has none
        height=pa.int32(),
        group=pa.string(),
        weight=pa.float32(),
        declared=pa.string(),
    ).set(2, pa.field("label", pa.string())),  # images to be predicted have none
)
QUARANTINE = Table(
    "quarantine.parquet",
    "One row per input that was refused, with the reason.",
    ("uri",),
    _columns(
        {"uri": pa.string(), "reason": pa.string(), "detail": pa.string()},
        image_id=pa.string(),
        first_seen=pa.timestamp("us", "UTC"),
    ),
)
DUPLICATES = Table(
    "duplicates.parquet",
    "One row per file with the very bytes of another, which stands in the manifest.",
    ("uri",),
    _columns(
        {"uri": pa.string(), "image_id": pa.string(), "kept_uri": pa.string()},
        declared_split=pa.string(),
        kept_declared_split=pa.string(),
    ),
)
NEAR_DUPLICATES = Table(
    "near_duplicates.parquet",
    "One row per pair of near duplicates, with their cluster.",
    ("image_id", "near_id"),
    _columns(
        {
            "image_id": pa.string(),
            "near_id": pa.string(),
            "similarity": pa.float32(),
            "cluster": pa.int64(),
        }
    ),
)
PREDICTIONS = Table(
    "predictions.parquet",
    "One row per evaluation and image that scored it: held out of heads, or of test.",
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
        },
        accepted=pa.bool_(),
        set_size=pa.int32(),
        in_set=pa.bool_(),
        group=pa.string(),
    ),
)
BATCH_PREDICTIONS = Table(
    "batch_predictions.parquet",
    "One row per image of a dataset that a model predicted outside of any run.",
    ("image_id",),
    _columns(
        {
            "dataset": pa.string(),
            "image_id": pa.string(),
            "uri": pa.string(),
            "label": pa.string(),
            "confidence": pa.float32(),
            "top": pa.list_(
                pa.struct({"label": pa.string(), "probability": pa.float32()})
            ),
            "name": pa.string(),
            "version": pa.int64(),
            "model": pa.string(),
            "predicted_at": pa.timestamp("us", "UTC"),
        },
        labels=pa.list_(pa.string()),  # models of older versions give no sets
        accepted=pa.bool_(),
        nearest_id=pa.string(),  # a model may no longer tell what it learned from
        nearest_similarity=pa.float32(),
        novelty=pa.float32(),
    ),
)
REFERENCE = Table(
    "reference.parquet",
    "One row per test image of a model with which batches are compared, 1,000 at most.",
    ("image_id",),
    _columns(
        {"image_id": pa.string(), "predicted": pa.string()},
        accepted=pa.bool_(),
        nearest_similarity=pa.float32(),
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
CLASS_SCORES = Table(
    "class_scores.parquet",
    "One row per evaluation, split, class and metric that is defined for it.",
    ("evaluation", "split", "label", "metric"),
    _columns(
        {
            "evaluation": pa.string(),
            "split": pa.string(),
            "label": pa.string(),
            "metric": pa.string(),
            "value": pa.float64(),
            "low": pa.float64(),
            "high": pa.float64(),
            "images": pa.int64(),
        }
    ),
)
TRIAL = Table(
    "trial.parquet",
    "One row per fold of a trial: how a configuration did on rows it did not learn.",
    ("fold",),
    _columns(
        {
            "fold": pa.int32(),
            "rows": pa.int64(),
            "accuracy": pa.float64(),
            "log_loss": pa.float64(),
        },
        right=pa.list_(pa.bool_()),  # of each row, in the order of image ids
    ),
)
SEARCH = Table(
    "search.parquet",
    "One row per search, round and configuration of a head.",
    ("search", "round", "head"),
    _columns(
        {
            "search": pa.string(),
            "encoder": pa.string(),
            "family": pa.string(),
            "head": pa.string(),
            "round": pa.int32(),
            "images": pa.int64(),
            "folds": pa.int32(),
            "accuracy": pa.float64(),
            "log_loss": pa.float64(),
            "chosen": pa.bool_(),
            "trial": pa.string(),
        },
        deviation=pa.float64(),
    ),
)
HELD_OUT = Table(
    "held_out.parquet",
    "One row per image that scored a search: what the chosen configuration said of it.",
    ("image_id",),
    _columns(
        {
            "image_id": pa.string(),
            "label": pa.string(),
            "probabilities": pa.list_(pa.float32()),
        }
    ),
)
CURVE = Table(
    "curve.parquet",
    "One row per epoch of a fine-tuning and split: how the network did.",
    ("epoch", "split"),
    _columns(
        {
            "finetuned": pa.string(),
            "encoder": pa.string(),
            "epoch": pa.int32(),
            "split": pa.string(),
            "loss": pa.float64(),
            "accuracy": pa.float64(),
            "learning_rate": pa.float64(),
            "seconds": pa.float64(),
        }
    ),
)
SEEN = Table(
    "seen.parquet",
    "One row per image that a network was fine-tuned on.",
    ("image_id",),
    _columns({"image_id": pa.string()}),
)
TABLES = (
    MANIFEST,
    QUARANTINE,
    DUPLICATES,
    NEAR_DUPLICATES,
    PREDICTIONS,
    BATCH_PREDICTIONS,
    REFERENCE,
    METRICS,
    CLASS_SCORES,
    TRIAL,
    SEARCH,
    HELD_OUT,
    CURVE,
    SEEN,
)


class Columns:
    """Rows of ``schema`` that come one by one and are kept as columns.

    They are converted ``_STEP`` at a time: buffers of a few kilobytes would cost twice
    their size, as the memory between them is never whole enough to be given back.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._rows: list[tuple[Any, ...]] = []
        self._batches: list[pa.RecordBatch] = []

    def extend(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Add ``rows``, tuples in the order of the schema."""
        self._rows.extend(rows)
        if len(self._rows) >= _STEP:
            self._convert()

    def table(self) -> pa.Table:
        """All rows, in the order in which they came."""
        self._convert()
        return pa.Table.from_batches(self._batches, self._schema)

    def _convert(self) -> None:
        if not self._rows:
            return
        columns = zip(*self._rows, strict=True)
        arrays = [
            pa.array(column, kind)
            for column, kind in zip(columns, self._schema.types, strict=True)
        ]
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._rows = []


def from_rows(table: Table, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows as an Arrow table of ``table``'s schema; what is left out is null."""
    schema, rest = table.schema, iter(rows)
    parts = [schema.empty_table()]
    while step := list(islice(rest, _STEP)):
        parts.append(pa.Table.from_pylist(step, schema=schema))
    return pa.concat_tables(parts)


def values(data: pa.Table, *names: str) -> Iterator[tuple[Any, ...]]:
    """The rows of ``data`` as tuples of the columns ``names``, in bounded memory."""
    for start in range(0, data.num_rows, _STEP):
        columns = (data[name].slice(start, _STEP).to_pylist() for name in names)
        yield from zip(*columns, strict=True)


def counts(column: pa.ChunkedArray) -> dict[Any, int]:
    """How often each value stands in ``column``: the most frequent first."""
    found = {
        pair["values"]: pair["counts"] for pair in pc.value_counts(column).to_pylist()
    }
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def fingerprint(data: pa.Table, *names: str) -> str:
    """``artifacts.digest`` of the columns ``names`` as lists, in bounded memory."""
    sha = hashlib.sha256()
    for column, name in enumerate(names):
        sha.update(b",[" if column else b"[[")
        _add_json(sha, data.select([name]), "{}")
        sha.update(b"]")
    sha.update(b"]")
    return sha.hexdigest()[:32]


def named_fingerprint(name: str, column: pa.ChunkedArray) -> str:
    """``artifacts.digest`` of [``name``, the values of ``column``]."""
    sha = hashlib.sha256(f"[{json.dumps(name, ensure_ascii=False)},[".encode())
    _add_json(sha, pa.table([column], ["value"]), "{}")
    sha.update(b"]]")
    return sha.hexdigest()[:32]


def rows_fingerprint(*parts: pa.Table) -> str:
    """``artifacts.digest`` of the rows of each of ``parts`` as lists of their values.

    That of one part alone is [[value, ...], ...], that of several a list of such.
    """
    sha = hashlib.sha256()
    sha.update(b"[" * (len(parts) > 1))
    for number, part in enumerate(parts):
        sha.update(b",[" if number else b"[")
        _add_json(sha, part, "[{}]")
        sha.update(b"]")
    sha.update(b"]" * (len(parts) > 1))
    return sha.hexdigest()[:32]


def _add_json(sha: "hashlib._Hash", data: pa.Table, row: str) -> None:
    """Feed ``sha`` the rows of ``data`` as JSON, separated by commas."""
    before, after = row.split("{}")
    for start in range(0, data.num_rows, _STEP):
        columns = [
            _json(data.column(at).slice(start, _STEP).combine_chunks())
            for at in range(data.num_columns)
        ]
        values = pc.binary_join_element_wise(*columns, ",")
        text = pc.binary_join_element_wise(f",{before}", values, after, "")
        offsets = np.frombuffer(text.buffers()[1], np.int32)
        bytes_of = memoryview(text.buffers()[2])[: offsets[len(text)]]
        sha.update(bytes_of if start else bytes_of[1:])


def _json(column: pa.Array) -> pa.Array:
    """Each value as JSON; strings by Arrow, as there are millions of them."""
    if pa.types.is_string(column.type):
        escaped = pc.any(pc.match_substring_regex(column, _ESCAPED)).as_py()
        if not escaped:
            quoted = pc.binary_join_element_wise('"', column, '"', "")
            return pc.fill_null(quoted, "null")
    return pa.array([json.dumps(v, ensure_ascii=False) for v in column.to_pylist()])


def content(manifest: pa.Table) -> str:
    """The fingerprint of a manifest: of what is computed from its rows.

    Weights enter where there are some, so that the keys of those without stay.
    """
    weighted = manifest["weight"].null_count < manifest.num_rows
    names = ["image_id", "label", "split", "group", *(["weight"] if weighted else [])]
    return fingerprint(manifest, *names)


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
    if not _unique(data, table.key):
        raise ValueError(f"{table.file}: {table.key} is not unique")
    pq.write_table(
        data, folder / table.file, compression="zstd", row_group_size=_ROW_GROUP
    )


def _unique(data: pa.Table, key: Sequence[str]) -> bool:
    if len(key) == 1 and data.num_rows:
        # Sorted, as most tables are: a hash of all values would take their memory anew.
        column = data[key[0]]
        if pc.all(pc.less(column[:-1], column[1:])).as_py() is not False:
            return True
    return data.group_by(list(key)).aggregate([]).num_rows == data.num_rows


def read(table: Table, folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the file of ``table`` in ``folder``.

    An optional column that the file of an older version lacks is null.

    Raises:
        DamagedArtifact: the file is missing or not whole.
    """
    file = folder / table.file
    wanted = list(columns or table.schema.names)
    try:
        with pq.ParquetFile(file) as parts:
            there = parts.schema_arrow.names
            data = parts.read([name for name in wanted if name in there])
    except (OSError, pa.ArrowInvalid) as error:
        raise DamagedArtifact(f"{file}: {error}; run again") from None
    for name in wanted:
        field = table.schema.field(name)
        if name not in there and not field.nullable:
            raise DamagedArtifact(f"{file}: it has no column {name}; run again")
        if name not in there:
            data = data.append_column(field, pa.nulls(data.num_rows, field.type))
    return data.select(wanted)


def count(table: Table, folder: Path) -> int:
    """How many rows the file of ``table`` in ``folder`` has; reads only its footer.

    Raises:
        DamagedArtifact: the file is missing or not whole.
    """
    try:
        return pq.read_metadata(folder / table.file).num_rows
    except (OSError, pa.ArrowInvalid) as error:
        raise DamagedArtifact(f"{folder / table.file}: {error}; run again") from None

"""``views.sql`` with the files of one store put in."""

import glob
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow as pa

from tl_pipeline import progress
from tl_pipeline.evaluation.choice import ALPHA
from tl_pipeline.query.run_records import Known
from tl_pipeline.runs import records
from tl_pipeline.runs.records import BatchRecord, RunRecord
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder, described
from tl_pipeline.store.tables import (
    BATCH_PREDICTIONS,
    CLASS_SCORES,
    CURVE,
    DUPLICATES,
    MANIFEST,
    METRICS,
    NEAR_DUPLICATES,
    PREDICTIONS,
    QUARANTINE,
    SEARCH,
)
from tl_pipeline.store.timings import BUSY

_EMBEDDINGS = pa.schema(
    {
        "encoder": pa.string(),
        "image_id": pa.string(),
        "embedding": pa.list_(pa.float32()),
        "file_row_number": pa.int64(),
    }
)


class Read(NamedTuple):
    """What the views read.

    ``latest`` has the last record of each dataset, ``batches`` that of its last batch,
    ``manifests`` the keys of their last manifests. ``known`` is what all records of
    runs tell, ``batch_files`` are those of batches.
    """

    latest: Sequence[RunRecord]
    batches: Sequence[BatchRecord]
    manifests: Collection[str]
    known: Known
    batch_files: Sequence[Path]


@cache
def text(name: str = "views.sql") -> str:
    """A file of this package as it was written."""
    return (resources.files("tl_pipeline.query") / name).read_text()


@cache
def columns() -> dict[str, str]:
    """What each column means, by its name, or by that of its view and its own."""
    lines = text("columns.txt").replace("\n    ", " ").splitlines()
    told = (line.split(": ", 1) for line in lines if ": " in line)
    return {name: meaning for name, meaning in told if name[0] != "#"}


def statements(store: Store, read: Read, home: Path) -> dict[str, str]:
    """Table or view of ``store`` -> the statements that make it of what is ``read``.

    ``home`` is where the catalogue will lie when it is opened.
    """
    put = {f"{{files of {name}}}": code for name, code in _sources(store, read).items()}
    put |= {"{here}": _here(home), "{busy}": str(BUSY), "{alpha}": str(ALPHA)}
    return filled(text(), put)


def filled(code: str, put: Mapping[str, str]) -> dict[str, str]:
    """What ``code`` makes -> its statements, with what is to be ``put`` into them.

    A macro is named with parentheses: a view may have the same name.
    """
    lines = (line for line in code.splitlines() if not line.startswith("--"))
    found = {}
    for block in "\n".join(lines).split("CREATE ")[1:]:
        kind, name = re.split(r"\W", block, maxsplit=2)[:2]
        for words, value in put.items():
            block = block.replace(words, value)  # noqa: PLW2901
        found[f"{name}()" if kind == "MACRO" else name] = f"CREATE OR REPLACE {block}"
    return found


def fetch(store: Store, batches: Iterable[BatchRecord]) -> None:
    """Bring to a mirror what the views read.

    Of the embeddings of each encoder that is one part, which tells their width. What is
    gone or damaged there is missing here, as in a local store.
    """
    if store.mirror.url is None:
        return
    for key in _predictions(batches):
        store.find("predictions", key)
    every = records.every(store)
    for key in {r.evaluation: None for record in every for r in record.results}:
        store.find("evaluations", key)
    for step in (step for record in every for step in record.steps):
        for label, kind in (("search", "searches"), ("finetuned", "finetuned")):
            if label in step.keys:
                store.find(kind, step.keys[label])
    for record in (*every, *batches):
        store.find("manifests", record.manifest)
    for key in described(store):
        if not any((store.root / "embeddings").glob(f"encoder={key}/part-*.parquet")):
            EmbeddingFolder(store, key).gather(1)


def comment(table: str, column: str) -> str:
    """The statement that says what a column means.

    Raises:
        KeyError: it has no text; that is an error of this package.
    """
    known = columns()
    meaning = known.get(f"{table}.{column}") or known[column]
    return f"COMMENT ON COLUMN {table}.{column} IS '{quoted(meaning)}'"


def pattern(path: Path) -> str:
    """What DuckDB, which takes every path as a pattern, reads as this ``path``."""
    return glob.escape(str(path))


def quoted(value: object) -> str:
    """``value`` as it stands between the quotes of an SQL string."""
    return str(value).replace("'", "''")


def _sources(store: Store, read: Read) -> dict[str, str]:
    """What stands in FROM for the tables that ``views.sql`` names."""
    root = store.root
    last = (record.manifest for record in (*read.latest, *read.batches))
    keys = {*read.manifests, *last}
    every = _whole(sorted((root / "manifests").glob(f"[!.]*/{MANIFEST.file}")))
    all_evaluations = sorted(read.known.evaluations)
    current = sorted({key for _, keys in read.known.current.values() for key in keys})
    told = [root / "evaluations" / key / "chosen.json" for key in all_evaluations]
    tables = {
        "quarantines": (QUARANTINE, "manifests", sorted(keys)),
        "duplicates": (DUPLICATES, "manifests", sorted(keys)),
        "near duplicates": (NEAR_DUPLICATES, "manifests", sorted(keys)),
        "predictions": (PREDICTIONS, "evaluations", current),
        "all predictions": (PREDICTIONS, "evaluations", all_evaluations),
        "metrics": (METRICS, "evaluations", current),
        "all metrics": (METRICS, "evaluations", all_evaluations),
        "class scores": (CLASS_SCORES, "evaluations", current),
        "batch predictions": (
            *(BATCH_PREDICTIONS, "predictions"),
            _predictions(read.batches),
        ),
        "searches": (SEARCH, "searches", _keys(root / "searches")),
        "curves": (CURVE, "finetuned", _keys(root / "finetuned")),
    }
    parts = quoted(f"{pattern(root)}/embeddings/encoder=*/part-*.parquet")
    return {
        name: _read(table.schema, _whole(root / kind / k / table.file for k in some))
        for name, (table, kind, some) in tables.items()
    } | {
        "manifests": _read(
            MANIFEST.schema, [file for file in every if file.parent.name in keys]
        ),
        "all manifests": _read(MANIFEST.schema, every),
        "names of all manifests": f"{_list(f.parent.name for f in every)}::VARCHAR[]",
        "choices": _texts([file for file in told if file.is_file()]),
        "batch records": _texts(read.batch_files),
        "records": _texts(read.known.files),
        "embeddings": (
            f"read_parquet('{parts}', hive_partitioning = true, "
            "hive_types_autocast = false, filename = true, file_row_number = true)"
            if any((root / "embeddings").glob("encoder=*/part-*.parquet"))
            else _empty(_EMBEDDINGS)
        ),
    }


def _keys(folder: Path) -> list[str]:
    return sorted(found.name for found in folder.glob("[!.]*"))


def _predictions(batches: Iterable[BatchRecord]) -> list[str]:
    """The keys of all predictions that ``batches``, the last of each dataset, name."""
    several = (some for record in batches for some in record.predictions.values())
    return [key for some in several for key in some]


def _texts(files: Sequence[Path]) -> str:
    """One row per file: its ``content`` and ``filename``."""
    if not files:
        return _empty(pa.schema({"content": pa.string()}))
    return f"read_text({_list(map(pattern, files))})"


def _read(schema: pa.Schema, files: Sequence[Path]) -> str:
    """The rows of ``files``.

    Columns that all of them lack are null, and without files there are no rows.
    """
    if not files:
        return _empty(schema)
    named = _list(map(pattern, files))
    rows = f"read_parquet({named}, filename = true, union_by_name = true)"
    return f"(FROM {_empty(schema)} UNION ALL BY NAME FROM {rows})"


def _whole(files: Iterable[Path]) -> list[Path]:
    return [file for file in files if _is_whole(file)]


def _is_whole(file: Path) -> bool:
    """Whether ``file`` has an end as Parquet writes it: a truncated one has not.

    A run whose artifacts were deleted keeps its record, not its rows.
    """
    try:
        with file.open("rb") as handle:
            handle.seek(-4, 2)
            whole = handle.read() == b"PAR1"
    except FileNotFoundError:
        return False
    except OSError:  # shorter than that
        whole = False
    if not whole:
        progress.notice(f"left {file} out of the SQL catalogue: it is damaged")
    return whole


def _empty(schema: pa.Schema) -> str:
    """No rows, with the columns of ``schema`` and ``filename``."""
    rows = duckdb.from_arrow(schema.empty_table())
    columns = [
        f'NULL::{kind} AS "{name}"'
        for name, kind in zip(rows.columns, rows.types, strict=True)
    ]
    return f"(SELECT {', '.join(columns)}, NULL::VARCHAR AS filename WHERE false)"


def _here(home: Path) -> str:
    """A condition that fails where the catalogue is not opened as ``home``."""
    fault = (
        f"this SQL catalogue was built for {home}; ask a copy or a moved store once "
        "with tl sql --store FOLDER, which builds its own"
    )
    opened = f"SELECT path FROM duckdb_databases() WHERE path = '{quoted(home)}'"  # noqa: S608
    return f"(EXISTS ({opened}) OR error('{quoted(fault)}'))"


def _list(texts: Iterable[object]) -> str:
    names = ", ".join("'" + quoted(text) + "'" for text in texts)
    return f"[{names}]"

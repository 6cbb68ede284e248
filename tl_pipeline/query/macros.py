"""``macros.sql`` for one store, and ``help()``: what there is to ask, with examples."""

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import pyarrow as pa

from tl_pipeline.errors import DamagedArtifact
from tl_pipeline.query import views
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.tables import MANIFEST

HELP = pa.schema(
    {
        "name": pa.string(),
        "kind": pa.string(),
        "comment": pa.string(),
        "columns": pa.list_(
            pa.struct(
                {"name": pa.string(), "type": pa.string(), "comment": pa.string()}
            )
        ),
        "example": pa.string(),
    }
)
_MACRO = re.compile(
    r"^CREATE MACRO (\w+)\((.*?)\).*?^COMMENT ON MACRO .*?'(.*?)';\n-- Example: (.*?)$",
    re.DOTALL | re.MULTILINE,
)
_MADE = re.compile(r"^CREATE (VIEW|MACRO) (\w+)(.*?);\n", re.DOTALL | re.MULTILINE)
Row = Mapping[str, Any]


class Macro(NamedTuple):
    """A macro as ``help()`` lists it."""

    name: str
    parameters: str
    comment: str
    example: str


@cache
def text() -> str:
    """``macros.sql`` as it was written."""
    return (resources.files("tl_pipeline.query") / "macros.sql").read_text()


def statements(encoders: Iterable[Row]) -> Iterator[str]:
    """The statements that make the macros, for the rows of the table encoders."""
    code = text().replace("{embeddings of encoder}", _choice(encoders))
    return views.split(code)


def listed() -> list[Macro]:
    """Every macro, in the order in which they were written."""
    return [Macro(*found) for found in _MACRO.findall(text())]


def help_rows(
    columns: Iterable[Sequence[str]],
    comments: Mapping[str, str],
    names: Mapping[str, str],
) -> list[Row]:
    """The rows of ``help()``: views by name, then macros.

    Args:
        columns: (view, column, type, comment) of all, a view's together.
        comments: view -> what one row is.
        names: what stands in examples for ``{dataset}`` and the like.
    """
    of: dict[str, list[dict[str, str]]] = {view: [] for view in comments}
    for view, *told in columns:
        if view in of:
            of[view].append(dict(zip(("name", "type", "comment"), told, strict=True)))
    rows: list[Row] = [
        {
            "name": view,
            "kind": "view",
            "comment": " ".join(comments[view].split()),
            "columns": of[view],
            "example": f"FROM {view} LIMIT 3",
        }
        for view in sorted(comments)
    ]
    for macro in listed():
        example = macro.example
        for word, name in names.items():
            example = example.replace(f"{{{word}}}", views.quoted(name))
        rows.append(
            {
                "name": f"{macro.name}({macro.parameters})",
                "kind": "macro",
                "comment": " ".join(macro.comment.replace("''", "'").split()),
                "columns": None,
                "example": example,
            }
        )
    return rows


def examples(
    store: Store, latest: Mapping[str, RunRecord], encoders: Iterable[Row]
) -> dict[str, str]:
    """Names of this store for the examples of ``help()``: those of the last run.

    What it has not is a word in capitals.
    """
    names = {name: name.upper() for name in ("dataset", "encoder", "image")}
    names |= dict.fromkeys(("evaluation", "other"), "EVALUATION")
    if not latest:
        return names
    record = max(latest.values(), key=lambda record: record.run_id)
    evaluations = [result.evaluation for result in record.results]
    names |= {"dataset": record.dataset, "evaluation": evaluations[0]}
    names["other"] = evaluations[min(1, len(evaluations) - 1)]
    rows = [row for row in encoders if row.get("width") and not row["control"]]
    used = {result.encoder_key for result in record.results}
    rows.sort(key=lambda row: (row["encoder_key"] not in used, row["encoder_key"]))
    if rows:
        names["encoder"] = rows[0]["encoder"]
        refused = EmbeddingFolder(store, rows[0]["encoder_key"]).refused()
        with contextlib.suppress(DamagedArtifact):
            folder = store.root / "manifests" / record.manifest
            ids = tables.read(MANIFEST, folder, ["image_id"])["image_id"].to_pylist()
            names["image"] = next((one for one in ids if one not in refused), "IMAGE")
    return names


@cache
def reads_embeddings() -> re.Pattern[str]:
    """Matches SQL that names what reads embeddings, be it through another."""
    found = [r"\bembeddings\b"]
    for kind, name, body in _MADE.findall(f"{views.text()}\n{text()}"):
        if any(re.search(pattern, body) for pattern in found):
            found.append(rf"\b{name}\b" if kind == "VIEW" else rf"\b{name}\s*\(")
    return re.compile("|".join(found), re.IGNORECASE)


def _choice(encoders: Iterable[Row]) -> str:
    """An expression that gives the query of the embeddings of ``encoder``."""
    rows = [row for row in encoders if row.get("width")]
    names: dict[str, Row] = {}
    trained = [row for row in rows if not row["control"]]
    often = Counter(row["backbone"] for row in trained)
    names |= {r["backbone"]: r for r in trained if often[r["backbone"]] == 1}
    for row in rows:
        names |= {row["encoder"]: row, row["encoder_key"]: row}
    cases = "".join(
        f" WHEN encoder = '{views.quoted(name)}' THEN '{views.quoted(_query(row))}'"
        for name, row in names.items()
    )
    known = ", ".join(f'"{row["encoder"]}"' for row in rows) or "none"
    fault = views.quoted(f"; those with embeddings are {known}")
    error = f"error('no encoder \"' || encoder || '\"' || '{fault}')"
    return f"CASE WHEN false THEN ''{cases} ELSE {error} END"


def _query(row: Row) -> str:
    return (
        f"SELECT image_id, embedding::FLOAT[{row['width']}] AS embedding "  # noqa: S608
        f"FROM embeddings WHERE encoder_key = '{row['encoder_key']}'"
    )

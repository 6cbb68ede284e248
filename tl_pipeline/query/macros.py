"""``macros.sql`` for one store: names of its encoders, and examples to be asked."""

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from tl_pipeline.errors import DamagedArtifact
from tl_pipeline.query import views
from tl_pipeline.query.views import quoted, text
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.tables import MANIFEST

FILE = "macros.sql"
Row = Mapping[str, Any]
_MADE = re.compile(r"^CREATE (VIEW|MACRO) (\w+)(.*?);\n", re.DOTALL | re.MULTILINE)


def statements(
    store: Store, latest: Mapping[str, RunRecord], encoders: Iterable[Row]
) -> dict[str, str]:
    """Macro -> the statements that make it; ``encoders`` are rows of that table.

    Examples name what is of the last run of ``latest``; what it has not is a word in
    capitals.
    """
    names = _examples(store, latest, encoders)
    put = {f"{{{word}}}": quoted(quoted(name)) for word, name in names.items()}
    return views.filled(
        text(FILE), {"{embeddings of encoder}": _choice(encoders), **put}
    )


def _examples(
    store: Store, latest: Mapping[str, RunRecord], encoders: Iterable[Row]
) -> dict[str, str]:
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
    for kind, name, body in _MADE.findall(f"{text()}\n{text(FILE)}"):
        if any(re.search(pattern, body) for pattern in found):
            found.append(rf"\b{name}\b" if kind == "VIEW" else rf"\b{name}\s*\(")
    return re.compile("|".join(found), re.IGNORECASE)


def named(encoders: Iterable[Row]) -> dict[str, Row]:
    """The encoders with embeddings by each name that they go by.

    Those are name, key, and the backbone of the only trained one that has it.
    """
    rows = [row for row in encoders if row.get("width")]
    trained = [row for row in rows if not row["control"]]
    often = Counter(row["backbone"] for row in trained)
    names = {r["backbone"]: r for r in trained if often[r["backbone"]] == 1}
    for row in rows:
        names |= {row["encoder"]: row, row["encoder_key"]: row}
    return names


def _choice(encoders: Iterable[Row]) -> str:
    """An expression that gives the query of the embeddings of ``encoder``."""
    names = named(encoders)
    cases = "".join(
        f" WHEN encoder = '{quoted(name)}' THEN '{quoted(_query(row))}'"
        for name, row in names.items()
    )
    known = ", ".join(dict.fromkeys(f'"{r["encoder"]}"' for r in names.values()))
    fault = quoted(f"; those with embeddings are {known or 'none'}")
    error = f"error('no encoder \"' || encoder || '\"' || '{fault}')"
    return f"CASE WHEN false THEN ''{cases} ELSE {error} END"


def _query(row: Row) -> str:
    return (
        f"SELECT image_id, embedding::FLOAT[{row['width']}] AS embedding "  # noqa: S608
        f"FROM embeddings WHERE encoder_key = '{row['encoder_key']}'"
    )

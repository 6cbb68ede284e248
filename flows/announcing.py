"""What a finished run came to, where people of Prefect look: log, artifacts, events.

Artifacts have the same key in each run of a dataset, so that Prefect's UI shows their
history. Without a server that outlives the run nobody would see one.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.events import emit_event
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_API_URL

from tl_pipeline import report
from tl_pipeline.runs import summary
from tl_pipeline.runs.records import BatchRecord, Record, RunRecord
from tl_pipeline.runs.summary import Sentence
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.tables import QUARANTINE

CHAMPION_CHANGED = "tl.champion.changed"
DRIFT = "tl.drift"
REFUSED = 100  # the most inputs that the artifact of the quarantine names
_LEVELS = {"warning": logging.WARNING, "alarm": logging.WARNING}


def run_finished(store: Store, record: RunRecord) -> None:
    """Tell of ``record``; of a new champion by the event ``CHAMPION_CHANGED``."""
    found = list(summary.of_run(record))
    page = report.path(store, record)
    _log([*found, Sentence(f"report: {page}")])
    if not PREFECT_API_URL.value():
        return
    body = [_title(found), _results(record), _list(found[1:]), f"Report: `{page}`"]
    create_markdown_artifact(
        "\n\n".join(body), key=f"run-{_slug(record.dataset)}", description=found[0].text
    )
    _show_refused(store, record)
    entry = record.registered
    if entry.promoted:
        emit_event(
            CHAMPION_CHANGED,
            resource={"prefect.resource.id": f"tl.model.{entry.name}"},
            payload={
                "model": entry.name,
                "version": entry.version,
                "reason": entry.reason,
                "test_accuracy": record.best.test.value,
                "report": str(page),
            },
        )


def batch_finished(store: Store, record: BatchRecord) -> None:
    """Tell of ``record``; of images that are unlike the model's by the event DRIFT."""
    found = list(summary.of_batch(record))
    _log(found)
    if not PREFECT_API_URL.value():
        return
    create_markdown_artifact(
        f"{_title(found)}\n\n{_list(found[1:])}",
        key=f"batch-{_slug(record.dataset)}",
        description=found[0].text,
    )
    _show_refused(store, record)
    if tripped := [one.model_dump() for one in record.drift if one.tripped]:
        emit_event(
            DRIFT,
            resource={"prefect.resource.id": f"tl.dataset.{record.dataset}"},
            payload={
                "dataset": record.dataset,
                "model": record.name,
                "version": record.version,
                "new": record.new,
                "tripped": tripped,
            },
        )


def _log(sentences: Iterable[Sentence]) -> None:
    logger = get_run_logger()
    for text, tone in sentences:
        logger.log(_LEVELS.get(tone, logging.INFO), text)


def _show_refused(store: Store, record: Record) -> None:
    """A table of the inputs that ingest refused, if there are any."""
    made = store.find("manifests", record.manifest)
    if made is None or not record.quarantined:
        return
    columns = ["uri", "reason", "detail"]
    rows = tables.read(QUARANTINE, store.path(made), columns).slice(0, REFUSED)
    if rows.num_rows:
        create_table_artifact(
            rows.to_pylist(),
            key=f"quarantine-{_slug(record.dataset)}",
            description=f"{record.quarantined:,} inputs refused; all of them: "
            "`tl sql 'FROM quarantine'`",
        )


def _title(sentences: Sequence[Sentence]) -> str:
    return f"# {_literal(sentences[0].text)}"


def _list(sentences: Iterable[Sentence]) -> str:
    return "\n".join(
        f"- {'**Look:** ' * (tone != 'plain')}{_literal(text)}"
        for text, tone in sentences
    )


def _results(record: RunRecord) -> str:
    rows: list[tuple[Any, ...]] = [
        ("", "encoder", "head", "held out", "test [95 % interval]"),
        ("---",) * 5,
    ]
    rows += [
        (r.role, r.encoder, r.head, r.held_out.share, r.test.percent)
        for r in record.results
    ]
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in rows)


def _cell(text: str) -> str:
    return _literal(text).replace("|", r"\|")


def _literal(text: str) -> str:
    """``text`` without what Markdown or HTML would make of it, but for commands."""
    return re.sub(r"(`[^`]+`)|([\\`*_\[\]<>])", _kept_or_escaped, text)


def _kept_or_escaped(found: re.Match[str]) -> str:
    return found[1] or f"\\{found[2]}"


def _slug(dataset: str) -> str:
    """The name of a dataset as keys of artifacts may have it."""
    return re.sub("[^a-z0-9]+", "-", dataset.lower()).strip("-")

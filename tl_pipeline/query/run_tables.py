"""The small tables that tell what runs did, from their records."""

from collections.abc import Iterable
from dataclasses import asdict

from tl_pipeline.query.small_table import Row, SmallTable, schema
from tl_pipeline.runs.planning import Step
from tl_pipeline.runs.records import RunRecord


def run_tables(records: list[RunRecord]) -> dict[str, SmallTable]:
    """Runs, their stages, and the seconds of those that embedded."""
    return {
        "runs": SmallTable(
            map(_run, records),
            schema(
                "run_id dataset manifest best_encoder best_head:s",
                "started finished:t",
                "images quarantined duplicates:i",
                "seconds test_accuracy gain_by_transfer:f",
            ),
            "One row per finished run.",
        ),
        "stages": SmallTable(
            [_step(record, step) for record in records for step in record.steps],
            schema("run_id dataset stage subject reason:s", "cached:b", "seconds:f"),
            "One row per run, stage and subject: what was cached, what ran, and why.",
        ),
        "timings": SmallTable(
            [row for record in records for row in _timings(record)],
            schema(
                "run_id dataset encoder bottleneck:s",
                "images:i",
                "read decode transfer forward write idle elapsed:f",
            ),
            "One row per run and encoder that embedded images: where its seconds went; "
            "all but elapsed add up all threads, idle is the network's.",
        ),
    }


def _run(record: RunRecord) -> Row:
    best = record.best
    return {
        "run_id": record.run_id,
        "dataset": record.dataset,
        "manifest": record.manifest,
        "started": record.started,
        "finished": record.finished,
        "seconds": (record.finished - record.started).total_seconds(),
        "images": record.images,
        "quarantined": record.quarantined,
        "duplicates": record.duplicates,
        "best_encoder": best.encoder,
        "best_head": best.head,
        "test_accuracy": best.test.value,
        "gain_by_transfer": record.gain.value if record.gain else None,
    }


def _step(record: RunRecord, step: Step) -> Row:
    return {
        "run_id": record.run_id,
        "dataset": record.dataset,
        "stage": step.stage,
        "subject": step.subject,
        "reason": step.reason,
        "cached": step.cached,
        "seconds": step.seconds,
    }


def _timings(record: RunRecord) -> Iterable[Row]:
    for step in record.steps:
        if step.timings:
            yield {
                "run_id": record.run_id,
                "dataset": record.dataset,
                "encoder": step.subject,
                "bottleneck": step.timings.bottleneck,
                "images": step.units,
                **asdict(step.timings),
            }

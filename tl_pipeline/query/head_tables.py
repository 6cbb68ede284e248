"""The small tables that tell how heads were tried, scored and averaged."""

from collections.abc import Iterable, Iterator

from tl_pipeline.query.small_table import Row, SmallTable, schema
from tl_pipeline.runs import records as runs
from tl_pipeline.runs.records import Result, RunRecord
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.tables import SEARCH


def head_tables(store: Store, records: list[RunRecord]) -> dict[str, SmallTable]:
    """Searches, evaluations, and the members of averaged heads."""
    latest = runs.latest_of_each(records)
    return {
        "searches": SmallTable(
            [row for record in records for row in _searches(store, record)],
            schema(
                "dataset encoder head:s",
                "round images folds:i",
                "accuracy deviation log_loss:f",
                "chosen:b",
                "run_id family trial search:s",
            ),
            "One row per run, search, round and configuration: how it did on training "
            "images that it did not learn from (deviation over the folds), or on "
            "validation.",
        ),
        "run_evaluations": SmallTable(
            [
                _evaluation(record, result, latest[record.dataset])
                for record in records
                for result in record.results
            ],
            schema("run_id dataset evaluation encoder head role:s", "latest:b"),
            "One row per run and evaluation: best, candidate or control.",
        ),
        "members": SmallTable(
            _members(records),
            schema("evaluation member encoder head:s", "times:i"),
            "One row per evaluation of averaged heads and head: member is the "
            "evaluation of that head, which counts so many times.",
        ),
    }


def _searches(store: Store, record: RunRecord) -> Iterator[Row]:
    for step in record.steps:
        if step.stage == "search":
            made = store.find("searches", step.keys["search"])
            # a run whose artifacts were deleted keeps its record, not its rows
            found = tables.read(SEARCH, store.path(made)).to_pylist() if made else []
            for row in found:
                yield {"run_id": record.run_id, "dataset": record.dataset, **row}


def _evaluation(record: RunRecord, result: Result, latest: RunRecord) -> Row:
    return {
        "run_id": record.run_id,
        "dataset": record.dataset,
        "evaluation": result.evaluation,
        "encoder": result.encoder,
        "head": result.head,
        "role": result.role,
        "latest": latest.run_id == record.run_id,
    }


def _members(records: list[RunRecord]) -> Iterable[Row]:
    results = {r.evaluation: r for record in records for r in record.results}
    for result in results.values():
        for member in result.members:
            yield {
                "evaluation": result.evaluation,
                "member": member.evaluation,
                "encoder": member.encoder,
                "head": member.head,
                "times": member.times,
            }

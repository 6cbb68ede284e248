"""What the command line prints: tables, live progress, the summary of a run."""

import json
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from tl_pipeline import progress
from tl_pipeline.encoders import labels
from tl_pipeline.runs import summary
from tl_pipeline.runs.planning import Step
from tl_pipeline.runs.records import BatchRecord, Record, Result, RunRecord
from tl_pipeline.runs.summary import Sentence
from tl_pipeline.store.timings import Timings

_STYLES = {
    "headline": "bold",
    "plain": None,
    "warning": "yellow",
    "alarm": "bold yellow",
}
# Where there is no terminal, tables are as wide as they need to be.
_WIDTH = None if sys.stdout.isatty() else 160

out = Console(highlight=False, soft_wrap=True, width=_WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(document: Any) -> None:
    """Print ``document`` as JSON for a script; NaN and infinities are null."""
    sys.stdout.write(f"{as_json(document, indent=1)}\n")


def as_json(document: Any, *, indent: int | None = None) -> str:
    """``document`` as JSON; NaN and infinities are null."""
    return json.dumps(_finite(document), indent=indent, default=str, ensure_ascii=False)


def _finite(document: Any) -> Any:
    if isinstance(document, float):
        return document if math.isfinite(document) else None
    if isinstance(document, BaseModel):
        document = document.model_dump(mode="json")
    if isinstance(document, Mapping):
        return {name: _finite(value) for name, value in document.items()}
    if isinstance(document, list | tuple):
        return [_finite(value) for value in document]
    return document


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print ``columns`` of ``rows`` as a table; numbers to the right."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in columns:
        numeric = any(isinstance(row[name], int | float) for row in rows)
        table.add_column(name.replace("_", " "), justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(Text(_cell(row[name])) for name in columns))
    out.print(table)


def summarise(record: RunRecord, places: Mapping[str, object]) -> None:
    """Print a finished run: its stages, its results, where to look."""
    print_stages(record)
    out.print()
    _print_results(record)
    out.print()
    print_sentences(summary.of_run(record))
    print_bottleneck(record)
    for name, place in places.items():
        out.print(f"{name:10} {place}")


def print_sentences(sentences: Iterable[Sentence]) -> None:
    """Print each in a line of its own."""
    for text, tone in sentences:
        out.print(text, style=_STYLES[tone], markup=False)


def print_stages(record: Record) -> None:
    """Print what each stage of a run did, and why."""
    shown = _names(record)
    print_rows(
        [
            {
                "stage": step.stage,
                "subject": shown[step.subject],
                "time": _time(step),
                "why": step.reason,
            }
            for step in record.steps
        ],
        ["stage", "subject", "time", "why"],
    )


def timing_rows(record: RunRecord) -> list[dict[str, Any]]:
    """Where the seconds of each encoder went that embedded something."""
    shown = _names(record)
    return [
        {
            "encoder": shown[step.subject],
            "images": step.units,
            **{name: round(value, 2) for name, value in asdict(step.timings).items()},
            "bottleneck": step.timings.bottleneck,
        }
        for step in record.steps
        if step.timings
    ]


def _names(record: Record) -> dict[str, str]:
    """Subjects of steps and encoders of results, as short as tables may have them."""
    subjects = [step.subject for step in record.steps]
    results = record.results if isinstance(record, RunRecord) else []
    return labels.short([*subjects, *(result.encoder for result in results)])


def print_bottleneck(record: Record) -> None:
    """Print in words what embedding waited for, if anything was embedded."""
    done = [step for step in record.steps if step.timings]
    spent = sum((step.timings for step in done if step.timings), start=Timings())
    if not done:
        return
    embeddings = sum(step.units for step in done)
    working = f"{spent.busy:.0%}".replace("%", " %")
    out.print(
        f"embedding: {embeddings:,} in {spent.elapsed:.1f} s; the network worked "
        f"{working} of the time; in all threads reading took {spent.read:.1f} s, "
        f"decoding {spent.decode:.1f} s, writing {spent.write:.1f} s. "
        f"The bottleneck: {spent.bottleneck}"
    )


def print_plan(steps: Sequence[Step], *, as_json: bool) -> None:
    """Print what would be done, why, and what it would cost."""
    if as_json:
        print_json([asdict(step) for step in steps])
        return
    shown = labels.short(step.subject for step in steps)
    rows = [
        {
            "stage": step.stage,
            "subject": shown[step.subject],
            "would": _would(step),
            "estimate": _estimate(step),
            "why": step.reason,
        }
        for step in steps
    ]
    print_rows(rows, ["stage", "subject", "would", "estimate", "why"])
    due = sum(not step.cached for step in steps)
    able = sum(not step.skipped for step in steps)
    out.print(f"\n{due} of {able} stages would run")
    for note in dict.fromkeys(step.note for step in steps if step.note):
        out.print(note, markup=False)
    if said := _training_time(steps):
        out.print(said)


def summarise_batch(record: BatchRecord, output: Path | None) -> None:
    """Print a finished batch: its stages, its counts, where to look."""
    print_stages(record)
    print_bottleneck(record)
    out.print()
    print_sentences(summary.of_batch(record))
    if output:
        out.print(f"output      {output}", markup=False)


def _would(step: Step) -> str:
    """What a run would do with ``step``, in a word."""
    if step.skipped:
        return "skip"
    return "cached" if step.cached else "run"


def _time(step: Step) -> str:
    if step.skipped:
        return "skipped"
    return "cached" if step.cached else f"{step.seconds:.1f} s"


def _print_results(record: RunRecord) -> None:
    splits = {"folds" if result.folds else "validation" for result in record.results}
    split = splits.pop() if len(splits) == 1 else "held out"
    shown = _names(record)
    said = {
        one.evaluation: f"{one.verdict}, {one.summary}" for one in record.comparisons
    }
    told = ["against the leader"] if said else []
    costs = {result.evaluation: _cost(result) for result in record.results}
    told += ["an image"] if any(costs.values()) else []
    print_rows(
        [
            {
                "": {"best": "*", "control": "control"}.get(result.role, ""),
                "encoder": shown[result.encoder],
                "head": result.head,
                split: result.held_out.share,
                "against the leader": said.get(result.evaluation, ""),
                "an image": costs[result.evaluation],
                "test [95 % interval]": result.test.percent,
            }
            for result in record.results
        ],
        ["", "encoder", "head", split, *told, "test [95 % interval]"],
    )
    out.print(f"* chosen {record.chosen or ''}", markup=False)


def _cost(result: Result) -> str:
    """What an image costs its encoder: ``0.5 ms, 480 B``."""
    if result.milliseconds is None or result.bytes is None:
        return ""
    return f"{result.milliseconds:.2g} ms, {result.bytes:,} B"


def show(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    *,
    as_json: bool,
    empty: str = "",
) -> None:
    """Print ``rows`` whole as JSON, or their ``columns``, or that there are none."""
    if as_json:
        print_json(rows)
    elif rows:
        print_rows(rows, columns)
    else:
        out.print(empty)


class LiveProgress:
    """Progress bars with items/s and time left; plain lines without a terminal."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=err,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}

    def __enter__(self) -> Self:
        if err.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars.live.is_started:
            self._bars.stop()

    def start(self, task: str, total: int) -> None:
        """Show a bar for ``task``; a ``total`` of 0 means unknown."""
        self._started[task] = time.monotonic()
        self._tasks[task] = self._bars.add_task(task, total=total or None)

    def advance(self, task: str, done: int) -> None:
        """Move the bar of ``task``."""
        self._bars.advance(self._tasks[task], done)

    def finish(self, task: str) -> None:
        """Take the bar of ``task`` away."""
        bar = self._tasks.pop(task)
        done = self._bars._tasks[bar].completed  # noqa: SLF001 - no public reader by id
        seconds = time.monotonic() - self._started[task]
        self._bars.remove_task(bar)
        if not err.is_terminal and seconds > 1:
            rate = done / seconds
            err.print(f"{task}: {done:,.0f} in {seconds:.1f} s ({rate:,.1f}/s)")

    def notice(self, text: str) -> None:
        """Print one line above the bars."""
        err.print(text, markup=False)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.1f}/s" if speed else "")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(map(str, value[:8])) + ", ..." * (len(value) > 8)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _training_time(steps: Sequence[Step]) -> str:
    """How long all that is to be fine-tuned takes; "" where nothing is."""
    found = [s for s in steps if s.stage == "finetune" and not s.cached]
    known = [s.estimated_seconds for s in found if s.estimated_seconds is not None]
    if not found:
        return ""
    if len(known) < len(found):
        return "fine-tuning: no speed is measured yet; the first epoch will say"
    return f"fine-tuning takes about {progress.duration(sum(known))}"


def _estimate(step: Step) -> str:
    """Time, room in the store, and the values of an embedding, where known."""
    said = []
    if seconds := step.estimated_seconds:
        said.append(
            f"~{seconds:.0f} s" if seconds < 120 else f"~{seconds / 60:.0f} min"
        )
    if step.estimated_bytes:
        said.append(f"{step.estimated_bytes / 1e6:.1f} MB")
    if step.width:
        said.append(f"{step.width:,} values an image")
    return ", ".join(said)

"""``tl``: run, plan, query. The one module that stands above ``flows``.

Heavy imports wait inside the commands, so that ``tl --help`` answers at once.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclopts import App

from tl_pipeline import (
    backbone_commands,
    catalog_commands,
    few_shot_command,
    rank_command,
    run_commands,
    store_commands,
)
from tl_pipeline.errors import InvalidSpec, TransferLearningError
from tl_pipeline.request import Json, Request, StoreOption

if TYPE_CHECKING:
    from tl_pipeline.artifacts import Store
    from tl_pipeline.pipeline import Work

app = App(
    name="tl",
    help="Transfer learning on images: embed once, compare heads, register the best.",
    suppress_keyboard_interrupt=False,  # main() says what was kept
    version_flags=["--version"],
)

app.command(catalog_commands.app)
app.command(backbone_commands.app)
app.command(rank_command.rank)
app.command(few_shot_command.few_shot)
app.command(store_commands.app)
app.command(run_commands.app)

NOTHING = Request()


@app.command
def run(
    request: Request = NOTHING,
    *,
    runner: Literal["prefect", "direct", "dask", "ray"] = "prefect",
    address: str | None = None,
    json: Json = False,
) -> None:
    """Run the whole pipeline on a dataset; only what changed is computed.

    Args:
        request: what to run.
        runner: as a Prefect flow, or directly in this process; dask and ray are the
            flow, with embed on the workers of a cluster.
        address: of an existing cluster of dask or ray. Default: workers here.
        json: print the run's record as JSON.
    """
    from tl_pipeline import console, pipeline, progress, report

    if runner == "direct" and address:
        raise InvalidSpec("--address is of a cluster: give --runner dask or ray too")
    work, store = _prepare(request, download=True)
    with console.LiveProgress() as live, progress.reporting(live):
        if runner == "direct":
            record = pipeline.run(work)
        else:
            from flows import launch

            given = request.parameters(work.spec)
            record = launch.run_here(given | _cluster(runner, address))
    if json:
        console.print_json(record.model_dump(mode="json"))
        return
    places = {
        "report": report.path(store, record),
        "catalogue": store.root / "catalog.duckdb",
        "registry": store.root / "mlflow.db",
        "model": store.root / "models" / record.registered.model,
    }
    console.summarise(record, places)


@app.command
def plan(request: Request = NOTHING, *, json: Json = False) -> None:
    """Say what ``run`` would do and why; nothing is computed or written.

    Args:
        request: what would be run.
        json: print the steps as JSON.
    """
    from dataclasses import asdict

    from tl_pipeline import console, pipeline

    work, _ = _prepare(request, download=False)
    steps = pipeline.plan(work)
    if json:
        console.print_json([asdict(step) for step in steps])
        return
    rows = [
        {
            "stage": step.stage,
            "subject": step.subject,
            "would": console.would(step),
            "estimate": _estimate(step.estimated_seconds, step.estimated_bytes),
            "why": step.reason,
        }
        for step in steps
    ]
    console.print_rows(rows, ["stage", "subject", "would", "estimate", "why"])
    due = sum(not step.cached for step in steps)
    able = sum(not step.skipped for step in steps)
    console.out.print(f"\n{due} of {able} stages would run")


@app.command
def sql(
    query: str | None = None, /, *, store: StoreOption = "tl_store", json: Json = False
) -> None:
    """Ask the catalogue in SQL; without a query, list what there is to ask.

    Args:
        query: DuckDB SQL, read from standard input when piped.
        store: folder or URL of all artifacts.
        json: print the rows as JSON.
    """
    from tl_pipeline import console
    from tl_pipeline import query as catalogue
    from tl_pipeline.artifacts import Store

    piped = "" if query or sys.stdin.isatty() else sys.stdin.read().strip()
    text = query or piped or catalogue.CONTENTS
    rows = catalogue.ask(Store.open(store), text)
    if json:
        console.print_json(rows.to_pylist())
    else:
        catalogue.show(rows)


@app.command
def models(*, store: StoreOption = "tl_store", json: Json = False) -> None:
    """List the registered models, their scores, and who is champion."""
    from tl_pipeline import console, registry
    from tl_pipeline.artifacts import Store

    rows = registry.models(Store.open(store))
    columns = ["name", "version", "aliases", "encoder", "head"]
    if any(row["folds_accuracy"] for row in rows):
        columns.append("folds_accuracy")
    columns += ["validation_accuracy", "test_accuracy", "folder"]
    console.show(rows, columns, as_json=json, empty="no models yet: tl run DATASET")
    if rows and not json:
        console.out.print(f"\nMLflow: {registry.database(Store.open(store))}")


@app.command
def predict(
    name: str,
    files: list[Path],
    /,
    *,
    alias: str = "champion",
    store: StoreOption = "tl_store",
    json: Json = False,
) -> None:
    """Classify files with a registered model.

    Args:
        name: of the model, which is that of its dataset.
        files: each an image; or one text in UTF-8, or one vector as .npy.
        alias: which of its versions.
        store: folder or URL of all artifacts.
        json: print the predictions as JSON.
    """
    from dataclasses import asdict

    from tl_pipeline import console, prediction, registry
    from tl_pipeline.artifacts import Store

    model = registry.load_model(Store.open(store), name, alias)
    rows = [asdict(found) for found in prediction.predict(model, files)]
    columns = ["file", "label", "confidence", "labels", "accepted", "refused"]
    point = model.operating_point
    if point is None:  # of an older version
        columns = [name for name in columns if name not in ("labels", "accepted")]
    console.show(rows, columns, as_json=json)
    if point and point.shortage:
        console.err.print(point.shortage)
    if any(row["refused"] for row in rows):
        sys.exit(3)


@app.command
def heads(name: str | None = None, /, *, json: Json = False) -> None:
    """List the heads with their defaults, as `--head` takes them; 1/2 is a grid.

    Args:
        name: a head: list all its parameters, what they mean and the values they take.
        json: print JSON.
    """
    from tl_pipeline import console
    from tl_pipeline import heads as table

    if name is not None:
        rows = table.describe(name)
        console.show(rows, ["parameter", "default", "values", "meaning"], as_json=json)
        return
    rows = [
        {
            "head": row.name,
            "summary": row.summary,
            "parameters": row.parameters
            if json
            else " ".join(
                f"{part['parameter']}={part['default']}"
                for part in table.describe(row.name)
                if part["parameter"] in row.defaults
            ),
        }
        for row in table.HEADS.values()
    ]
    console.show(rows, list(rows[0]), as_json=json)
    if not json:
        console.out.print("All parameters of one: tl heads NAME. Several at once:")
        sets = [
            {"profile": name, "summary": row.summary, "heads": " ".join(row.heads)}
            for name, row in table.PROFILES.items()
        ]
        console.print_rows(sets, list(sets[0]))


@app.command
def doctor(*, store: StoreOption = "tl_store", json: Json = False) -> None:
    """Check versions, torch, the processor, the store and the catalogue."""
    from dataclasses import asdict

    from flows import launch
    from tl_pipeline import console
    from tl_pipeline import doctor as checks

    found = checks.examine(store, launch.server_can_start)
    rows = [asdict(check) for check in found]
    shown = rows if json else [{**r, "ok": "ok" if r["ok"] else "FAULT"} for r in rows]
    console.show(shown, ["ok", "check", "found", "cure"], as_json=json)
    if not all(check.ok for check in found):
        sys.exit(1)


@app.command
def serve(
    request: Request = NOTHING,
    *,
    name: str = "served",
    cron: str | None = None,
    runner: Literal["prefect", "dask", "ray"] = "prefect",
    address: str | None = None,
) -> None:
    """Serve the flow from this process: scheduled runs, and `prefect deployment run`.

    Args:
        request: the default parameters of its runs.
        name: of the deployment: transfer-learning/NAME.
        cron: when to run by itself, such as "0 2 * * *" (UTC).
        runner: where its runs embed; see `tl run --help`.
        address: of an existing cluster of dask or ray.
    """
    work, _ = _prepare(request, download=False)
    from flows import launch

    given = request.parameters(work.spec) | _cluster(runner, address)
    launch.serve(name, cron, given)


def main() -> None:
    """The command ``tl``: errors become one message and an exit code."""
    try:
        app()
    except TransferLearningError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; finished parts are kept, run again to go on\n")
        sys.exit(130)


def _prepare(request: Request = NOTHING, *, download: bool) -> "tuple[Work, Store]":
    from tl_pipeline import pipeline
    from tl_pipeline.artifacts import Store

    store = Store.open(request.store)
    work = pipeline.prepare(
        request.spec(),
        store,
        catalog_file=request.catalog,
        verify=request.verify,
        download=download,
    )
    return work, store


def _cluster(runner: str, address: str | None) -> dict[str, str | None]:
    """The parameters of the flow that say where embed runs."""
    return {
        "runner": "threads" if runner == "prefect" else runner,
        "address": address,
    }


def _estimate(seconds: float | None, size: int | None) -> str:
    if seconds is None or size is None or not seconds:
        return ""
    time = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    return f"~{time}, {size / 1e6:.1f} MB"


if __name__ == "__main__":
    main()

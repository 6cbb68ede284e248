"""``tl runs``: the finished runs, and where the time of one of them went."""

from typing import Any

from cyclopts import App

from tl_pipeline.cli.request import Json, StoreOption
from tl_pipeline.errors import UnknownName

app = App(name="runs", help="Finished runs: list, and where the time of one went.")


@app.default
def runs(*, store: StoreOption = "tl_store", json: Json = False) -> None:
    """List the finished runs, the latest last.

    Args:
        store: folder or URL of all artifacts.
        json: print their records as JSON.
    """
    from tl_pipeline.cli import console
    from tl_pipeline.encoders import labels
    from tl_pipeline.runs import records
    from tl_pipeline.store.artifacts import Store

    found = records.every(Store.open(store))
    if json:
        console.print_json([record.model_dump(mode="json") for record in found])
        return
    shown = labels.short(record.best.encoder for record in found)
    rows = [
        {
            "run": record.run_id,
            "dataset": record.dataset,
            "images": record.images,
            "ran": sum(not step.cached for step in record.steps),
            "seconds": round((record.finished - record.started).total_seconds(), 1),
            "best": f"{record.best.head} on {shown[record.best.encoder]}",
            "test": record.best.test.percent,
        }
        for record in found
    ]
    columns = list(rows[0]) if rows else []
    console.show(rows, columns, as_json=False, empty="no runs yet: tl run DATASET")


@app.command
def show(
    run: str | None = None, /, *, store: StoreOption = "tl_store", json: Json = False
) -> None:
    """Show the stages of one run and, where images were embedded, the bottleneck.

    Args:
        run: its id or the beginning of one; the latest run without it.
        store: folder or URL of all artifacts.
        json: print its record as JSON.
    """
    from tl_pipeline.cli import console
    from tl_pipeline.runs import records
    from tl_pipeline.store.artifacts import Store

    found = records.every(Store.open(store))
    chosen = [record for record in found if record.run_id.startswith(run or "")]
    if run is None:
        chosen = found[-1:]
    if len(chosen) != 1:
        raise UnknownName("run", run or "", [record.run_id for record in found])
    (record,) = chosen
    if json:
        console.print_json(record.model_dump(mode="json"))
        return
    console.out.print(
        f"{record.run_id}: {record.dataset}, {record.images:,} images, "
        f"started {record.started:%Y-%m-%d %H:%M} UTC\n"
    )
    console.print_stages(record)
    rows: list[dict[str, Any]] = console.timing_rows(record)
    if rows:
        console.out.print(
            "\nseconds of embedding, all threads added up but for elapsed"
        )
        console.print_rows(rows, list(rows[0]))
    console.print_bottleneck(record)

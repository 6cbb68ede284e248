"""``tl``: its commands, and those that run. The one module that stands above ``flows``.

Heavy imports wait inside the commands, so that ``tl --help`` answers at once.
"""

import errno
import os
import signal
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from cyclopts import App

from tl_pipeline.cli import (
    backbone_commands,
    catalog_commands,
    embed_command,
    export_command,
    few_shot_command,
    head_command,
    model_commands,
    predict_command,
    rank_command,
    run_commands,
    similar_command,
    sql_command,
    store_commands,
)
from tl_pipeline.cli.request import (
    Json,
    RegistryOption,
    Request,
    StoreOption,
    use_registry,
)
from tl_pipeline.embedding import process
from tl_pipeline.errors import InvalidSpec, MachineError, TransferLearningError

if TYPE_CHECKING:
    from tl_pipeline.pipeline.wiring import Work
    from tl_pipeline.store.artifacts import Store

app = App(
    name="tl",
    help="Transfer learning on images: embed once, compare heads, register the best.",
    suppress_keyboard_interrupt=False,  # main() says what was kept
    version_flags=["--version"],
)

app.command(catalog_commands.app)
app.command(backbone_commands.app)
app.command(rank_command.rank)
app.command(rank_command.tune)
app.command(few_shot_command.few_shot)
app.command(head_command.heads)
app.command(model_commands.app)
app.command(predict_command.predict)
app.command(export_command.export)
app.command(sql_command.sql)
app.command(similar_command.similar)
app.command(embed_command.embed)
app.command(store_commands.app)
app.command(run_commands.app)
app.command(run_commands.why)

NOTHING = Request()
# What the machine may refuse, and what to do then.
_CURES = {
    errno.ENOSPC: "Free some space, or put --store on another disk",
    errno.EDQUOT: "Free some of your quota, or put --store on another disk",
    errno.EFBIG: "Allow larger files (ulimit -f)",
    errno.EROFS: "The disk is read-only: put --store on another",
    errno.EACCES: "Ask for permission to it, or put --store where you may write",
    errno.EPERM: "Ask for permission to it, or put --store where you may write",
    errno.EMFILE: "Allow more open files (ulimit -n)",
}


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
    from tl_pipeline import progress, report
    from tl_pipeline.cli import console
    from tl_pipeline.pipeline import wiring
    from tl_pipeline.registry import connection

    if runner == "direct" and address:
        raise InvalidSpec("--address is of a cluster: give --runner dask or ray too")
    work, store = _prepare(request, download=True)
    with console.LiveProgress() as live, progress.reporting(live):
        if runner == "direct":
            record = wiring.run(_tuned(request, work))
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
        "registry": connection.shown_uri(store),
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
    from tl_pipeline.cli import console
    from tl_pipeline.pipeline import wiring

    work, store = _prepare(request, download=False)
    with store.overlay() as overlay:
        work = replace(work, at=replace(work.at, store=overlay))
        steps = wiring.plan(_tuned(request, work, planning=True))
    console.print_plan(steps, as_json=json)


@app.command
def doctor(
    *,
    store: StoreOption = "tl_store",
    registry: RegistryOption = None,
    json: Json = False,
) -> None:
    """Check versions, processor, Prefect, store, clock, disk, registry, catalogue."""
    from dataclasses import asdict

    from flows import launch
    from tl_pipeline.cli import console
    from tl_pipeline.cli import doctor as checks

    use_registry(registry)
    found = checks.examine(store, launch.server_can_start, launch.dead_runs)
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
    process.claim()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # or nobody could catch what that raises
    except BrokenPipeError:  # as `| head` ends: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except TransferLearningError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in _CURES:
            raise
        fault = MachineError(
            f"{error.strerror}: {error.filename or 'while writing'}. "
            f"{_CURES[error.errno]}; what was finished is kept, run again to go on"
        )
        sys.stderr.write(f"{type(fault).__name__}: {fault}\n")
        sys.exit(fault.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; finished parts are kept, run again to go on\n")
        sys.exit(130)


def _prepare(request: Request = NOTHING, *, download: bool) -> "tuple[Work, Store]":
    from tl_pipeline.pipeline import wiring
    from tl_pipeline.store.artifacts import Store

    use_registry(request.registry)
    store = Store.open(request.store)
    work = wiring.prepare(
        request.spec(),
        store,
        catalog_file=request.catalog,
        verify=request.verify,
        download=download,
    )
    if work.spec.tune:
        from tl_pipeline.studies import tune_stage

        tune_stage.check(work)
    return work, store


def _tuned(
    request: Request,
    work: "Work",
    *,
    planning: bool = False,
) -> "Work":
    """``work`` with the encoder that is chosen for it, if it asks for that."""
    if work.spec.tune is None:
        return work
    from tl_pipeline.studies import tune_stage

    return tune_stage.tuned(
        work,
        (lambda stage: stage.plan()) if planning else (lambda stage: stage.run()),
        catalog_file=request.catalog,
        download=not planning,
    )


def _cluster(runner: str, address: str | None) -> dict[str, str | None]:
    """The parameters of the flow that say where embed runs."""
    return {
        "runner": "threads" if runner == "prefect" else runner,
        "address": address,
    }

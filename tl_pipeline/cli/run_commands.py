"""``tl runs``: the finished runs. ``tl why``: where what they made comes from."""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cyclopts import App

from tl_pipeline.cli.request import Json, RegistryOption, StoreOption, use_registry
from tl_pipeline.errors import UnknownName

if TYPE_CHECKING:
    from tl_pipeline.runs.differences import Difference, ScoreChange
    from tl_pipeline.runs.origins import Origin
    from tl_pipeline.runs.records import RunRecord
    from tl_pipeline.store.artifacts import Store

app = App(
    name="runs", help="Finished runs: list, stages and times of one, differences."
)
# So many images are printed; `--json` has all.
_PRINTED = 10
_VERSION = re.compile(r"(?P<name>.+?)(?:@(?P<alias>[^@/]+)|/(?P<number>\d+))")


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
    record = _named(found, run) if run else found[-1] if found else _named(found, "")
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


@app.command
def diff(
    before: str | None = None,
    after: str | None = None,
    /,
    *,
    store: StoreOption = "tl_store",
    json: Json = False,
) -> None:
    """Compare two runs: settings, images, encoders, scores, predictions, champion.

    Args:
        before: its id or the beginning of one; without it the last run but one of the
            dataset of AFTER.
        after: another; the last run of the dataset of BEFORE without it.
        store: folder or URL of all artifacts.
        json: print all images and scores as JSON.
    """
    from tl_pipeline.cli import console
    from tl_pipeline.runs import differences, records
    from tl_pipeline.store.artifacts import Store

    opened = Store.open(store)
    found = records.every(opened)
    first, second = _two(found, before, after)
    difference = differences.between(opened, first, second)
    if json:
        console.print_json(difference)
        return
    console.out.print(f"{first.run_id} -> {second.run_id}: {second.dataset}\n")
    _print_difference(difference)


def why(
    subject: str,
    /,
    *,
    store: StoreOption = "tl_store",
    registry: RegistryOption = None,
    json: Json = False,
) -> None:
    """Say what something was made of, by which run and why, and who used it last.

    Args:
        subject: a dataset, an encoder, a head, "HEAD on ENCODER"; a model's version as
            NAME/2 or NAME@champion; the key of an artifact or its beginning.
        store: folder or URL of all artifacts.
        registry: see `tl models --help`.
        json: print all of it as JSON.
    """
    from tl_pipeline.cli import console
    from tl_pipeline.runs import records
    from tl_pipeline.runs.origins import Origins
    from tl_pipeline.store.artifacts import Store

    use_registry(registry)
    opened = Store.open(store)
    finished = [*records.every(opened), *records.every_batch(opened)]
    known = Origins(opened, sorted(finished, key=lambda record: record.run_id))
    model = _model_key(opened, subject)
    found = [known.of(model)] if model else known.find(subject)
    if json:
        console.print_json(found)
        return
    for number, origin in enumerate(found):
        if number:
            console.out.print()
        _print_origin(origin)


def _named(found: "Sequence[RunRecord]", run: str) -> "RunRecord":
    """The one of ``found`` whose id begins so."""
    chosen = [record for record in found if record.run_id.startswith(run)]
    if len(chosen) != 1:
        raise UnknownName("run", run, [record.run_id for record in found])
    return chosen[0]


def _two(
    found: "Sequence[RunRecord]", before: str | None, after: str | None
) -> "tuple[RunRecord, RunRecord]":
    first = _named(found, before) if before else None
    if after or first is None:
        second = _named(found, after) if after else found[-1] if found else None
    else:
        second = [one for one in found if one.dataset == first.dataset][-1]
    earlier = [
        one
        for one in found
        if second and one.dataset == second.dataset and one.run_id < second.run_id
    ]
    if first is None and earlier:
        first = earlier[-1]
    if first is None or second is None:
        raise UnknownName("run", before or "before", [one.run_id for one in found])
    return first, second


def _model_key(store: "Store", subject: str) -> str | None:
    """The key of the model that ``subject`` names as NAME/2 or NAME@ALIAS, if any."""
    from tl_pipeline.registry import index

    parts = _VERSION.fullmatch(subject)
    models = {model.name: model for model in index.registered(store)} if parts else {}
    if parts is None or (model := models.get(parts["name"])) is None:
        return None
    number = parts["number"] and int(parts["number"])
    version = model.version(number or model.aliases.get(parts["alias"] or ""))
    if version is None or version.model is None:
        known = {*model.aliases, *(str(one.number) for one in model.versions)}
        asked = parts["number"] or parts["alias"]
        raise UnknownName(f"alias or version of model {model.name!r}", asked, known)
    return version.model


def _print_difference(found: "Difference") -> None:
    from tl_pipeline.cli import console
    from tl_pipeline.encoders import labels

    for line in found.settings:
        console.out.print(f"setting   {line}", markup=False)
    console.out.print(f"images    {_images(found)}")
    for sign, names in (("+", found.encoders_new), ("-", found.encoders_gone)):
        for name in names:
            console.out.print(f"encoder   {sign} {name}", markup=False)
    if found.changes:
        console.out.print()
        rows = [one.model_dump() for one in found.changes[:_PRINTED]]
        console.print_rows(rows, ["change", "before", "after", "label", "uri"])
        _print_rest(len(found.changes))
    console.out.print()
    short = labels.short(one.encoder for one in found.scores)
    rows = [_score_row(one, short[one.encoder]) for one in found.scores]
    console.print_rows(rows, list(rows[0]))
    console.out.print(f"\npredictions of the best head: {_flipped(found)}")
    if found.flips:
        rows = [one.model_dump() for one in found.flips[:_PRINTED]]
        console.print_rows(rows, ["label", "before", "after", "uri"])
        _print_rest(len(found.flips))
    console.out.print()
    for run, entry in (
        ("before", found.registered_before),
        ("after", found.registered_after),
    ):
        rank = "champion" if entry.champion else "not champion"
        said = f"{run:7} version {entry.version}, {rank}: {entry.reason}"
        console.out.print(said, markup=False)


def _images(found: "Difference") -> str:
    if found.changes is None:
        return "cannot be compared: a manifest is gone"
    counts = ", ".join(f"{number:,} {how}" for how, number in found.counts.items())
    total = f"{found.images_before:,} -> {found.images_after:,}"
    return f"{total}: {counts}" if counts else f"{found.images_after:,}, unchanged"


def _score_row(one: "ScoreChange", encoder: str) -> dict[str, str]:
    from tl_pipeline.runs import finetunings

    heads = dict.fromkeys(filter(None, (one.head_before, one.head_after)))
    change = "same" if one.same else ""
    if one.difference:
        change = f"{finetunings.points(one.difference)} on {one.images:,} images"
    return {
        "encoder": encoder,
        "head": " -> ".join(heads),
        "before": one.before.percent if one.before else "-",
        "after": one.after.percent if one.after else "-",
        "difference": change,
    }


def _flipped(found: "Difference") -> str:
    if found.flips is None:
        return "cannot be compared, an evaluation is gone"
    rest = len(found.flips) - found.won - found.lost
    return (
        f"{len(found.flips):,} of {found.compared:,} test images in common flipped: "
        f"{found.won:,} are right now, {found.lost:,} wrong, {rest:,} wrong as before"
    )


def _print_rest(number: int) -> None:
    from tl_pipeline.cli import console

    if number > _PRINTED:
        console.out.print(f"... and {number - _PRINTED:,} more: --json has all")


def _print_origin(origin: "Origin") -> None:
    from tl_pipeline.cli import console
    from tl_pipeline.encoders import labels
    from tl_pipeline.runs.planning import flat

    origins = list(_downwards(origin, set()))
    short = labels.short(one.subject for one, _ in origins)
    rows = [_origin_row(one, short[one.subject], depth) for one, depth in origins]
    console.print_rows(rows, list(rows[0]))
    for name, text in (
        ("used by", origin.used_by and f"run {origin.used_by} last"),
        ("registry", origin.registered),
        ("settings", ", ".join(f"{n}={v}" for n, v in flat(origin.params))),
        ("inputs", ", ".join(f"{n} {v[:8]}" for n, v in origin.inputs.items())),
        ("took", origin.seconds is not None and f"{origin.seconds} s on {origin.host}"),
        ("since then", ", ".join(f"{n} {v}" for n, v in origin.libraries.items())),
    ):
        if text:
            console.out.print(f"{name:10} {text}", markup=False)


def _downwards(
    origin: "Origin", shown: set[str], depth: int = 0
) -> "Iterator[tuple[Origin, int]]":
    """Each key once, below what was made of it, and how deep it is."""
    if origin.key in shown:
        return
    shown.add(origin.key)
    yield origin, depth
    for one in origin.made_of:
        yield from _downwards(one, shown, depth + 1)


def _origin_row(origin: "Origin", subject: str, depth: int) -> dict[str, str]:
    return {
        "what": f"{'  ' * depth}{origin.stage} {subject}".rstrip(),
        "key": origin.key[:8],
        "made": origin.finished[:16].replace("T", " "),
        "by run": origin.run,
        "why": origin.reason,
    }

"""``tl rank``, ``tl tune``: what suits the data, before the full pass is paid for."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tl_pipeline.cli.request import CatalogOption, Json, StoreOption
from tl_pipeline.config.encoder_specs import EncoderSpec
from tl_pipeline.config.short_forms import checked
from tl_pipeline.config.specs import TuneSpec
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.progress import duration

if TYPE_CHECKING:
    from tl_pipeline.studies.ranking import Ranked, Ranking
    from tl_pipeline.studies.tuning import Tuned


def rank(
    dataset: str,
    /,
    *,
    backbone: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    images: int = 1000,
    seed: int = 0,
    verify: Annotated[bool, Parameter(negative="")] = False,
    store: StoreOption = "tl_store",
    catalog: CatalogOption = None,
    json: Json = False,
) -> None:
    """Rank encoders on a sample of the training images, with their cost.

    The embeddings of the sample are kept: a later run does not compute them again.

    Args:
        dataset: a name in the data catalogue, or a folder of images.
        backbone: NAME or NAME:layer=...,weights=...; repeat to compare.
        images: the size of the sample; a larger one adds to a smaller one.
        seed: of the bootstrap behind the intervals.
        verify: read every input again instead of trusting size and time.
        store: folder or URL of all artifacts.
        catalog: the data catalogue.
        json: print the ranking as JSON.
    """
    wishes = _wishes(backbone)
    if images < 1:
        raise InvalidSpec(f"--images must be at least 1, not {images}")

    from tl_pipeline import progress
    from tl_pipeline.cli import console
    from tl_pipeline.store.artifacts import Store
    from tl_pipeline.studies import study

    opened = Store.open(store)
    asked = study.prepare(
        dataset, wishes, opened, catalog_file=catalog, seed=seed, verify=verify
    )
    from tl_pipeline.studies import (
        ranking,  # scikit-learn: after what may be refused at once
    )

    with console.LiveProgress() as live, progress.reporting(live), asked.in_use():
        sample = ranking.draw(asked.ingested(), images)
        ranked = ranking.rank(asked, asked.singles, sample)
    if json:
        console.print_json(_document(ranked))
        return
    ranked = _shortened(ranked, _short(ranked))
    rows = _table(ranked)
    console.print_rows(rows, list(rows[0]))
    said = [_sample(ranked), _conclusion(ranked), ranked.finetuning.sentence]
    console.out.print("\n" + "\n".join(said), markup=False)


def tune(
    dataset: str,
    /,
    *,
    backbone: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    side: str = "",
    fit: str = "",
    pool: str = "",
    images: int = 2000,
    minutes: float | None = None,
    write: Path | None = None,
    seed: int = 0,
    verify: Annotated[bool, Parameter(negative="")] = False,
    store: StoreOption = "tl_store",
    catalog: CatalogOption = None,
    json: Json = False,
) -> None:
    """Find the side of the input, the fit and the pooling that suit a dataset.

    Candidates are ranked on a sample as by `tl rank`; of many, at most half go on from
    a quarter of it to all of it. Of those within one standard error of the best the
    cheapest is chosen, unless a full pass takes seconds. The embeddings of the sample
    are kept.

    Args:
        dataset: a name in the data catalogue, or a folder of images.
        backbone: NAME or NAME:layer=...,weights=...; repeat to compare. A layer with
            places: of one that gives a vector only sides are compared.
        side: sides in pixels, 96/128/160; default: up to the network's own.
        fit: crop/squash/pad; default: what a backbone names, or its own and squash.
        pool: gap/grid2/grid3/avg+max; default: the layer's own and the last three.
        images: the size of the sample of training images.
        minutes: a budget for embedding and judging; the dearest candidates that do
            not fit are left out.
        write: a YAML file for `tl run --config`, with what was chosen.
        seed: of the bootstrap behind the intervals.
        verify: read every input again instead of trusting size and time.
        store: folder or URL of all artifacts.
        catalog: the data catalogue.
        json: print the ranking as JSON.
    """
    wishes = _wishes(backbone)
    given = {"side": side or (), "fit": fit or (), "pool": pool or ()}
    how = checked(TuneSpec, {**given, "images": images, "minutes": minutes}, "tl tune")

    from tl_pipeline import progress
    from tl_pipeline.cli import console
    from tl_pipeline.store.artifacts import Store
    from tl_pipeline.studies import ranking, study, tuning

    asked = study.prepare(
        dataset,
        wishes,
        Store.open(store),
        catalog_file=catalog,
        seed=seed,
        verify=verify,
    )
    grid = tuning.grid(wishes, asked.singles, how, asked)
    asked = replace(asked, encoders=grid.encoders)
    with console.LiveProgress() as live, progress.reporting(live), asked.in_use():
        sample = ranking.draw(asked.ingested(), images)
        found = tuning.tune(asked, grid.encoders, sample, minutes)
    ranked = found.ranking
    chosen = grid.candidates[ranked.pick.key].spec
    if write:
        _write(write, dataset, chosen)
    if json:
        more = {
            "chosen": chosen.short(),
            "dropped": found.dropped,
            "unaffordable": found.unaffordable,
        }
        console.print_json({**_document(ranked), **more, "refused": grid.refused})
        return
    short = _short(ranked, found.dropped, found.unaffordable)
    ranked = _shortened(ranked, short)
    rows = _table(ranked)
    console.print_rows(rows, list(rows[0]))
    told = f"--config {write}" if write else f"{dataset} --backbone {chosen.short()}"
    said = [
        *_rounds(found._replace(ranking=ranked), minutes, grid.refused, short),
        _conclusion(ranked),
        f"tl run {told}",
    ]
    console.out.print("\n" + "\n".join(said), markup=False)


def _write(file: Path, dataset: str, chosen: EncoderSpec) -> None:
    """A run's file with ``chosen``; see `tl run --config`."""
    from ruamel.yaml import YAML

    given = {"dataset": dataset, "backbones": [chosen.short()]}
    with file.open("w") as out:
        YAML().dump(given, out)


def _wishes(backbones: tuple[str, ...]) -> list[EncoderSpec]:
    """The encoders to rank.

    Raises:
        InvalidSpec: there is none.
    """
    if not backbones:
        raise InvalidSpec(
            "name the encoders to rank: --backbone NAME, once for each; "
            "see `tl backbones`"
        )
    return list(map(EncoderSpec.parse, backbones))


def _short(found: "Ranking", *others: Sequence[str]) -> dict[str, str]:
    """Label -> its short form, of all that a page names."""
    from tl_pipeline.encoders import labels

    return labels.short([*(row.encoder for row in found.rows), *chain(*others)])


def _shortened(found: "Ranking", short: Mapping[str, str]) -> "Ranking":
    rows = (replace(row, encoder=short[row.encoder]) for row in found.rows)
    return replace(found, rows=tuple(rows))


def _table(found: "Ranking") -> list[dict[str, Any]]:
    """A row for each; published scores only where they differ."""
    rows = [_row(place, row) for place, row in enumerate(found.rows, start=1)]
    if len({row["published"] for row in rows}) == 1:
        for row in rows:
            del row["published"]
    return rows


def _row(place: int, row: "Ranked") -> dict[str, Any]:
    from tl_pipeline.runs.records import Score

    probe, cost = row.probe, row.cost
    accuracy = Score(value=probe.value, low=probe.low, high=probe.high)
    each, whole = "", ""
    if cost.seconds_per_image is not None and cost.seconds is not None:
        mark = " (remembered)" if cost.remembered else ""
        each = f"{1000 * cost.seconds_per_image:.3g}{mark}"
        size = row.bytes_per_image * cost.images / 1e6
        whole = f"{duration(cost.seconds)}, {size:.1f} MB"
    tie = ", not distinguishable" if row.tied else ""
    return {
        "rank": place,
        "encoder": row.encoder,
        "published": row.published,
        "probe [95 % interval]": accuracy.percent,
        "points to the best": f"{_points(row)}{tie}" if row.behind else "",
        "ms/image": each,
        "full pass": whole,
        "width": row.width,
    }


def _points(row: "Ranked") -> str:
    """``-0.4 [-1.2, +0.3]``."""
    behind = row.behind
    if behind is None or behind.low is None or behind.high is None:
        return ""
    low, high = 100 * behind.low, 100 * behind.high
    return f"{100 * behind.value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _sample(found: "Ranking") -> str:
    said = (
        f"{found.dataset}: {found.sampled:,} of {found.trained:,} training images "
        f"sampled, {found.classes} classes"
    )
    if found.probed < found.sampled:
        said += (
            f"; {found.sampled - found.probed:,} left out: refused, or of a class with "
            "one image or group"
        )
    if found.grouped:
        said += "; whole groups are judged at a time"
    return said


def _rounds(
    found: "Tuned",
    minutes: float | None,
    refused: dict[str, list[str]],
    short: Mapping[str, str],
) -> list[str]:
    """The sample, and which candidates it did not judge to the end, and why."""
    said = [_sample(found.ranking)]
    if found.dropped:
        out = ", ".join(map(short.__getitem__, found.dropped))
        said.append(f"behind on a quarter of it: {out}")
    if found.unaffordable:
        out = ", ".join(map(short.__getitem__, found.unaffordable))
        said.append(f"left out, as they do not fit into {minutes:g} min: {out}")
    return said + [
        f"not compared: {', '.join(texts)}: {why}" for why, texts in refused.items()
    ]


def _conclusion(found: "Ranking") -> str:
    """Which one, by how much, at which cost."""
    pick, best = found.pick, found.rows[0]
    cost = f"a full pass over {pick.cost.images:,} images costs{_price(pick)}"
    ties = sum(row.tied for row in found.rows)
    close = sum(row.close for row in found.rows)
    if pick is not best:
        return (
            f"{pick.encoder} is the cheapest of {close} within one standard error of "
            f"the best: {_points(pick)} points to {best.encoder}; {cost} instead of"
            f"{_price(best)}"
        )
    if len(found.rows) == 1:
        return f"{best.encoder} stands alone; {cost}"
    if ties > 1:
        return f"{best.encoder} is the best of {ties} that cannot be told apart; {cost}"
    second = found.rows[1]
    lead = _points(second).removeprefix("-").partition(" [")[0]
    return f"{best.encoder} is the best, {lead} points before {second.encoder}; {cost}"


def _price(row: "Ranked") -> str:
    seconds = row.cost.seconds
    return " an unknown time" if seconds is None else f" {duration(seconds)}"


def _document(found: "Ranking") -> dict[str, Any]:
    """The ranking for a script."""
    rows = [
        {
            "rank": place,
            **asdict(row),
            "tied": row.tied,
            "bytes_per_image": row.bytes_per_image,
            "full_pass_seconds": row.cost.seconds,
            "full_pass_bytes": row.bytes_per_image * row.cost.images,
        }
        for place, row in enumerate(found.rows, start=1)
    ]
    finetuning = found.finetuning.model_dump() | {"verdict": found.finetuning.verdict}
    more = {"pick": found.pick.encoder, "finetuning": finetuning, "rows": rows}
    return {**asdict(found), **more}

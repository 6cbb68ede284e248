"""``tl few-shot``: how well k images of each class do, over n draws."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tl_pipeline.cli.request import CatalogOption, ConcatOption, Json, StoreOption
from tl_pipeline.config.encoder_specs import parse_backbones
from tl_pipeline.config.specs import HeadSpec, RunSpec, SearchSpec
from tl_pipeline.errors import InvalidSpec

if TYPE_CHECKING:
    from tl_pipeline.studies.few_shots import FewShots

_USUAL = ("logistic", "nearest_centroid")
_TIMES = {2: "twice", 4: "four times"}


def few_shot(
    dataset: str,
    /,
    *,
    backbone: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    concat: ConcatOption = (),
    head: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    shots: str = "1/2/5/10",
    draws: int = 10,
    seed: int = 0,
    verify: Annotated[bool, Parameter(negative="")] = False,
    store: StoreOption = "tl_store",
    catalog: CatalogOption = None,
    json: Json = False,
) -> None:
    """Train heads on a few images of each class, many times, and score on validation.

    Test is not looked at, and nothing is registered. Every draw is kept: more of them,
    or another number of images, computes only what is new. Of four numbers of images
    or more the curve is continued: what more images would give.

    Args:
        dataset: a name in the data catalogue, or a folder of images.
        backbone: NAME or NAME:layer=...,weights=...; repeat to compare.
            Default: lenet5.
        concat: A,B: one candidate whose embedding is theirs side by side.
        head: NAME or NAME:param=value; of a grid the best on average is shown.
            Default: logistic and nearest_centroid.
        shots: images of each class, a slash between several.
        draws: how many times they are drawn.
        seed: of the draws and the heads.
        verify: read every input again instead of trusting size and time.
        store: folder or URL of all artifacts.
        catalog: the data catalogue.
        json: print the rows as JSON.
    """
    counts = _counts(shots)
    if draws < 1:
        raise InvalidSpec(f"--draws must be at least 1, not {draws}")
    from tl_pipeline import heads, progress
    from tl_pipeline.cli import console
    from tl_pipeline.heads import search
    from tl_pipeline.store.artifacts import Store
    from tl_pipeline.studies import study

    named = [HeadSpec.parse(text) for text in head or _USUAL]
    wanted = [heads.complete(one) for given in named for one in heads.expanded(given)]
    for one in wanted:
        search.candidates(one, SearchSpec(), seed)  # refuses ranges
    wishes = parse_backbones(backbone, concat) or RunSpec(dataset="-").backbones
    opened = Store.open(store)
    asked = study.prepare(
        dataset, wishes, opened, catalog_file=catalog, seed=seed, verify=verify
    )

    from tl_pipeline.studies import (
        few_shots,  # scikit-learn: after what may be refused at once
    )

    with console.LiveProgress() as live, progress.reporting(live), asked.in_use():
        found = few_shots.few_shots(asked, wanted, counts, draws)
    if json:
        console.print_json(asdict(found))
        return
    _show(found)


def _counts(text: str) -> list[int]:
    parts = text.split("/")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InvalidSpec(
            f"--shots {text}: give numbers of images of each class, such as 1/5/10"
        )
    return sorted({int(part) for part in parts})


def _show(found: "FewShots") -> None:
    from tl_pipeline.cli import console
    from tl_pipeline.encoders import labels

    rows = [
        {
            "encoder": row.encoder,
            "head": row.head,
            "shots": row.shots,
            "images": row.images,
            "accuracy": f"{100 * row.accuracy:.1f} %",
            "95 % interval": ""
            if row.low is None or row.high is None
            else f"[{100 * row.low:.1f}, {100 * row.high:.1f}]",
            "deviation": "" if row.deviation is None else f"{100 * row.deviation:.1f}",
        }
        for row in found.rows
    ]
    console.print_rows(rows, list(rows[0]))
    said = (
        f"{found.dataset}: {found.classes} classes, {found.rows[0].draws} draws, "
        f"scored on {found.validation:,} validation images"
    )
    if found.short:
        said += f"; {found.short} classes have fewer than {found.most} training images"
    if any(row.tried > 1 for row in found.rows):
        said += "; of a grid the best on average is shown, so a wider one flatters"
    names = labels.short(row.encoder for row in found.rows)
    for one in found.outlooks:
        said += (
            f"\n{_TIMES[one.times]} as many images would give {one.head} on "
            f"{names[one.encoder]} {100 * one.accuracy:.1f} % "
            f"[{100 * one.low:.1f}, {100 * one.high:.1f}], if its curve goes on"
        )
    console.out.print(f"\n{said}", markup=False)

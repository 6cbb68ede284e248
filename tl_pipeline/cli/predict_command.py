"""``tl predict``: what a registered model says of new inputs."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tl_pipeline.cli.request import (
    CatalogOption,
    Json,
    RegistryOption,
    StoreOption,
    use_registry,
)
from tl_pipeline.errors import InvalidSpec

if TYPE_CHECKING:
    from tl_pipeline.registry.model import Model
    from tl_pipeline.registry.occlusion import Occluded
    from tl_pipeline.store.artifacts import Store


def predict(
    model: str,
    inputs: list[str],
    /,
    *,
    alias: str = "champion",
    output: Path | None = None,
    html: Path | None = None,
    plan: Annotated[bool, Parameter(negative="")] = False,
    verify: Annotated[bool, Parameter(negative="")] = False,
    store: StoreOption = "tl_store",
    registry: RegistryOption = None,
    catalog: CatalogOption = None,
    json: Json = False,
) -> None:
    """Classify files, or all images of a dataset or folder, with a registered model.

    Files are classified at once, and nothing is kept. Of a dataset or folder the store
    keeps embeddings and predictions: each image is embedded and predicted once.

    Args:
        model: its name, which is that of the dataset that it learned from.
        inputs: a dataset of the catalogue, or a folder of images with or without
            labels; or files, each an image, one text in UTF-8, or one vector as .npy.
        alias: which of its versions, or the number of one.
        output: of a dataset or folder: also write all predictions of its images to
            this file, .parquet, .csv or .jsonl.
        html: of files: also write a page that shows which places of each image its
            label rests on; 50 forward passes an image.
        plan: of a dataset or folder: only say what would be done, and why.
        verify: of a dataset or folder: read every input again instead of trusting
            size and time.
        store: folder or URL of all artifacts.
        registry: see `tl models --help`.
        catalog: the data catalogue.
        json: print the predictions of files, or the record of the batch, as JSON.
    """
    from tl_pipeline.store.artifacts import Store

    use_registry(registry)
    opened = Store.open(store)
    if not _is_dataset(inputs, catalog):
        if output or plan or verify:
            raise InvalidSpec(
                "--output, --plan and --verify are of a dataset or folder, not of files"
            )
        files = [Path(name) for name in inputs]
        _files(opened, model, files, alias, html, as_json=json)
        return
    if html:
        raise InvalidSpec(
            f"--html is of files, not of a dataset or folder: name some of {inputs[0]}"
        )
    from tl_pipeline import progress
    from tl_pipeline.cli import console
    from tl_pipeline.pipeline import batch

    work = batch.prepare(
        model,
        inputs[0],
        opened,
        alias=alias,
        catalog_file=catalog,
        verify=verify,
        output=output,
    )
    if plan:
        console.print_plan(batch.plan(work), as_json=json)
        return
    with console.LiveProgress() as live, progress.reporting(live):
        record = batch.run(work)
    if json:
        console.print_json(record.model_dump(mode="json"))
    else:
        console.summarise_batch(record, output)


def _is_dataset(inputs: list[str], file: Path | None) -> bool:
    """Whether ``inputs`` is a dataset or a folder, and not files.

    Raises:
        InvalidSpec: a folder stands beside other inputs.
        UnknownName: a single name without an ending is neither.
        CatalogError: the catalogue has faults.
    """
    from tl_pipeline.config import catalog

    if len(inputs) > 1:
        if folders := [name for name in inputs if Path(name).is_dir()]:
            raise InvalidSpec(
                f"{folders[0]} is a folder: give one folder or dataset, or files alone"
            )
        return False
    name, there = inputs[0], Path(inputs[0])
    if there.is_file():
        return False
    if there.is_dir() or not there.suffix:
        catalog.find(name, file)
        return True
    return (file or catalog.DEFAULT).exists() and name in catalog.load(
        file or catalog.DEFAULT
    )


def _files(
    store: "Store",
    name: str,
    files: list[Path],
    alias: str,
    html: Path | None,
    *,
    as_json: bool,
) -> None:
    """Classify ``files`` in memory; exit with 3 if one was refused."""
    from dataclasses import asdict

    from tl_pipeline.cli import console
    from tl_pipeline.registry import index, prediction

    model = index.load_model(store, name, alias)
    rows = [asdict(found) for found in prediction.predict(model, files)]
    if html:
        good = [row["file"] for row in rows if not row["refused"]]
        _show_places(html, f"{name} ({alias})", model, good)
    columns = ["file", "label", "confidence", "labels", "accepted", "refused"]
    point = model.operating_point
    if point is None:  # of an older version
        columns = [name for name in columns if name not in ("labels", "accepted")]
    console.show(rows, columns, as_json=as_json)
    if point and point.shortage:
        console.err.print(point.shortage)
    if any(row["refused"] for row in rows):
        sys.exit(3)


def _show_places(file: Path, name: str, model: "Model", images: list[Path]) -> None:
    """Write to ``file`` which places of ``images`` the predictions rest on.

    Raises:
        InvalidSpec: the model takes no images, or ``file`` cannot be written.
    """
    from tl_pipeline import progress
    from tl_pipeline.cli import console
    from tl_pipeline.registry.occlusion import occlude
    from tl_pipeline.report.occlusion_page import occlusion_page

    found: list[Occluded] = []
    with (
        console.LiveProgress() as live,
        progress.reporting(live),
        progress.track("occlude", len(images)) as track,
    ):
        for image in images:
            found.append(occlude(model, image))
            track.advance()
    try:
        file.write_text(occlusion_page(name, found), encoding="utf-8")
    except OSError as error:
        raise InvalidSpec(f"cannot write {file}: {error.strerror}") from None

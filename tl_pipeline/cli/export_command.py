"""``tl export``: a registered model as a folder that needs none of this package."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter, validators

from tl_pipeline.cli.request import (
    CatalogOption,
    Json,
    RegistryOption,
    StoreOption,
    use_registry,
)

if TYPE_CHECKING:
    from tl_pipeline.export.exporting import Exported


def export(
    name: str,
    /,
    *,
    alias: str = "champion",
    format: Literal["onnx", "torch-export"] = "onnx",  # noqa: A002
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    output: Path | None = None,
    max_loss: Annotated[float, Parameter(validator=validators.Number(gte=0))] = 0.02,
    store: StoreOption = "tl_store",
    registry: RegistryOption = None,
    catalog: CatalogOption = None,
    json: Json = False,
) -> None:
    """Write a model as a folder: network and head in one graph, and how to use it.

    Before it is there it is compared with the model on validation images, from the
    bytes of files on, in a process without this package.

    Args:
        name: of the model, which is that of its dataset.
        alias: which of its versions, or the number of one.
        format: ONNX, for onnxruntime; or what torch.export writes.
        precision: of the network; int8 is for ONNX.
        output: the folder to write. Default: NAME-FORMAT-PRECISION, here.
        max_loss: accuracy that fp16 or int8 may cost; beyond it nothing is written.
        store: folder or URL of all artifacts.
        registry: see `tl models --help`.
        catalog: tells where the images are. Default: ./data_catalog.yaml.
        json: print the card as JSON.
    """
    from tl_pipeline.cli import console
    from tl_pipeline.export import exporting
    from tl_pipeline.registry import index
    from tl_pipeline.store.artifacts import Store

    use_registry(registry)
    opened = Store.open(store)
    model = index.load_model(opened, name, alias)
    found = index.find(opened, name)
    number = int(alias) if alias.isdigit() else found.aliases[alias]
    wanted = exporting.Export(
        model, f"{name} version {number}", format, precision, max_loss
    )
    place = output or Path(f"{name}-{format}-{precision}")
    done = exporting.export(wanted, opened, place, catalog)
    if json:
        console.out.print((place / "card.json").read_text("utf-8"), markup=False)
        return
    rows = _rows(done, precision)
    columns = ["", "accuracy", "difference", "ms_an_image", "MB"]
    console.print_rows(rows, columns)
    _print_rest(done)


def _rows(done: "Exported", precision: str) -> list[dict[str, Any]]:

    rows = [
        {
            "": "tl predict",
            "accuracy": done.model.accuracy.percent,
            "difference": None,
            "ms_an_image": done.model.milliseconds,
            "MB": done.model.megabytes,
        }
    ]
    both = {"fp32": (done.exact, None), precision: (done.found, done.megabytes)}
    for name, (found, megabytes) in both.items():
        rows.append(
            {
                "": name,
                "accuracy": found.accuracy.percent,
                "difference": found.of_files,
                "ms_an_image": found.milliseconds,
                "MB": megabytes,
            }
        )
    return rows


def _print_rest(done: "Exported") -> None:
    from tl_pipeline.cli import console

    found = done.found
    console.out.print(
        f"\ncompared on {found.images} validation images, from the bytes of files. A "
        "model that was refitted learned from them: the accuracies are for comparison. "
        "Difference: the largest in probability from the model in float32",
        markup=False,
    )
    if done.found is not done.exact:
        low, high = 100 * (found.loss.low or 0), 100 * (found.loss.high or 0)
        console.out.print(
            f"it costs {100 * found.loss.value:.1f} points of accuracy "
            f"[{low:.1f}, {high:.1f}]",
            markup=False,
        )
    if found.unread:
        console.out.print(
            f"predict.py cannot read {found.unread} more of them: {found.why}",
            style="yellow",
            markup=False,
        )
    console.out.print(f"written    {done.folder}", markup=False)

"""``tl catalog``: list, check, and look at what the data catalogue names."""

from pathlib import Path

from cyclopts import App

from tl_pipeline.cli.request import CatalogOption, Json

app = App(name="catalog", help="The data catalogue: list, check, look.")


@app.default
def catalog(*, catalog: CatalogOption = None, json: Json = False) -> None:
    """Check the data catalogue and list its datasets."""
    from tl_pipeline.cli import console
    from tl_pipeline.config import catalog as entries

    found = entries.load(catalog or entries.DEFAULT).values()
    rows = [entry.model_dump(mode="json") for entry in found]
    shown = [{**row, "path": row.get("path", "")} for row in rows]
    columns = ["name", "type", "path", "licence", "description"]
    empty = "the catalogue has no datasets"
    console.show(rows if json else shown, columns, as_json=json, empty=empty)


@app.command
def check(*, catalog: CatalogOption = None) -> None:
    """Report every fault of the catalogue with file and line; exit code 2 if any."""
    from tl_pipeline.cli import console
    from tl_pipeline.config import catalog as entries

    file = catalog or entries.DEFAULT
    console.out.print(f"{file}: {len(entries.load(file))} datasets, no faults")


@app.command
def schema() -> None:
    """Print the JSON schema of the catalogue, for editors."""
    from tl_pipeline.cli import console
    from tl_pipeline.config import catalog as entries

    console.print_json(entries.schema())


@app.command
def show(
    dataset: str,
    /,
    *,
    sheet: Path | None = None,
    catalog: CatalogOption = None,
    json: Json = False,
) -> None:
    """Look at a dataset: counts, sizes, what is refused, a contact sheet if of images.

    Args:
        dataset: a name in the catalogue, or a folder of images.
        sheet: where to write the contact sheet; default: ./DATASET.png.
        catalog: the data catalogue.
        json: print the counts as JSON.
    """
    from tl_pipeline.cli import console
    from tl_pipeline.config import catalog as entries
    from tl_pipeline.data import overview

    spec = entries.find(dataset, catalog)
    found = overview.look(spec)
    file = sheet or Path(f"{spec.name}.png")
    if found.sheet:
        found.sheet.save(file)
    elif sheet:
        console.err.print(f"no contact sheet: {dataset} is no dataset of images")
    if json:
        more = {"refused_first": found.refused, "notes": found.notes}
        console.print_json({**found.totals, **more, "classes": found.classes})
        return
    console.print_rows(found.classes, list(found.classes[0]))
    for name, value in found.totals.items():
        console.out.print(f"{name:12} {value}")
    shown = str(file) if found.sheet else f"none: each input is a {spec.modality}"
    console.out.print(f"{'sheet':12} {shown}")
    for sentence in (*found.refused, *found.notes):
        console.out.print(f"- {sentence}", markup=False)

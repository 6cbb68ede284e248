"""``tl models``: what is registered, and who is champion."""

from typing import Any

from cyclopts import App

from tl_pipeline.cli.request import (
    CatalogOption,
    Json,
    RegistryOption,
    StoreOption,
    use_registry,
)

app = App(name="models", help="List registered models; choose who is champion.")


@app.default
def models(
    *,
    store: StoreOption = "tl_store",
    registry: RegistryOption = None,
    json: Json = False,
) -> None:
    """List the registered models, their scores, and who is champion."""
    from tl_pipeline.cli import console
    from tl_pipeline.registry import connection, index
    from tl_pipeline.store.artifacts import Store

    use_registry(registry)
    opened = Store.open(store)
    _show(index.models(opened), as_json=json)
    if not json:
        console.out.print(f"\nMLflow: {connection.shown_uri(opened)}")


@app.command
def compare(
    name: str,
    version: int,
    other: int,
    /,
    *,
    store: StoreOption = "tl_store",
    registry: RegistryOption = None,
    catalog: CatalogOption = None,
    json: Json = False,
) -> None:
    """Compare two versions on the held-out images that both were scored on.

    By the gate of the catalogue's entry and what the last run chose by: what a run
    would say of VERSION if OTHER were champion.

    Args:
        name: of the model, which is that of its dataset.
        version: a number.
        other: the number of another.
        store: folder or URL of all artifacts.
        registry: see `tl models --help`.
        catalog: the data catalogue; a dataset without an entry has the usual gate.
        json: print what was found as JSON.
    """
    from tl_pipeline.cli import console
    from tl_pipeline.config import catalog as catalogue
    from tl_pipeline.config.specs import GateSpec
    from tl_pipeline.errors import InvalidSpec
    from tl_pipeline.evaluation.costs import COST
    from tl_pipeline.registry import registration
    from tl_pipeline.runs import records
    from tl_pipeline.store.artifacts import Store

    use_registry(registry)
    opened = Store.open(store)
    there = catalog or catalogue.DEFAULT.exists()
    entry = catalogue.load(catalog or catalogue.DEFAULT).get(name) if there else None
    gate, costs = (entry.gate, entry.costs) if entry else (GateSpec(), {})
    last = records.latest(opened, name)
    metric = last.spec.choose_by if last else None
    if metric == COST and not costs:
        raise InvalidSpec(
            f"the last run on {name} chose by cost: name the catalogue whose entry "
            "says what errors cost, --catalog FILE"
        )
    found = registration.compare(opened, name, version, other, gate, metric, costs)
    if json:
        console.print_json(found.evidence)
        return
    if found.evidence:
        rows = [one.model_dump() for one in found.evidence.findings]
        console.print_rows(rows, ["rule", "kept", "found"])
    console.out.print(f"version {version}: {found.reason}", markup=False)


@app.command
def promote(
    name: str,
    version: int,
    /,
    *,
    reason: str = "by hand",
    store: StoreOption = "tl_store",
    registry: RegistryOption = None,
) -> None:
    """Make a version champion. Later runs keep it until a newer version is as good.

    Args:
        name: of the model, which is that of its dataset.
        version: its number.
        reason: what the registry is to remember.
        store: folder or URL of all artifacts.
        registry: see `tl models --help`.
    """
    from tl_pipeline.registry import index, registration
    from tl_pipeline.store.artifacts import Store

    use_registry(registry)
    opened = Store.open(store)
    registration.promote(opened, name, version, reason)
    _show([row for row in index.models(opened) if row["name"] == name])


@app.command
def rollback(
    name: str,
    /,
    *,
    reason: str = "",
    store: StoreOption = "tl_store",
    registry: RegistryOption = None,
) -> None:
    """Make the champion before the present one champion again.

    Args:
        name: of the model, which is that of its dataset.
        reason: what the registry is to remember.
        store: folder or URL of all artifacts.
        registry: see `tl models --help`.
    """
    from tl_pipeline.registry import index, registration
    from tl_pipeline.store.artifacts import Store

    use_registry(registry)
    opened = Store.open(store)
    registration.roll_back(opened, name, reason)
    _show([row for row in index.models(opened) if row["name"] == name])


@app.command
def rebuild(*, store: StoreOption = "tl_store", json: Json = False) -> None:
    """Make MLflow's database in the store again: versions, aliases, candidates."""
    from tl_pipeline.registry import index, rebuilding
    from tl_pipeline.store.artifacts import Store

    opened = Store.open(store)
    rebuilding.rebuild(opened)
    _show(index.models(opened), as_json=json)


def _show(rows: list[dict[str, Any]], *, as_json: bool = False) -> None:
    from tl_pipeline.cli import console

    columns = ["name", "version", "aliases", "encoder", "head"]
    if any(row["folds_accuracy"] for row in rows):
        columns.append("folds_accuracy")
    columns += ["validation_accuracy", "test_accuracy", "folder"]
    console.show(rows, columns, as_json=as_json, empty="no models yet: tl run DATASET")

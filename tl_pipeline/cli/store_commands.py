"""``tl store``: what lies in a store, what of it nothing needs, and small parts."""

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter, validators

from tl_pipeline.cli.request import Json, StoreOption

if TYPE_CHECKING:
    from tl_pipeline.maintenance.gc import Garbage
    from tl_pipeline.store.artifacts import Store

app = App(name="store", help="The store: look, remove what nothing needs, compact.")

_Days = Annotated[float, Parameter(validator=validators.Number(gte=0))]


@app.command
def show(*, store: StoreOption = "tl_store", json: Json = False) -> None:
    """Show what lies in the store, how large it is, and who uses it.

    Args:
        store: folder or URL of all artifacts.
        json: print everything as JSON.
    """
    from tl_pipeline.cli import console
    from tl_pipeline.maintenance import inventory

    opened = _open(store)
    found = inventory.take(opened)
    if json:
        console.print_json(found.as_json())
        return
    kinds = [{**row, "size": amount(row["bytes"])} for row in found.kinds]
    console.print_rows(kinds, ["kind", "count", "size", "unused"])
    if found.encoders:
        console.out.print()
        rows = [{**row, "size": amount(row["bytes"])} for row in found.encoders]
        columns = ["encoder", "images", "refused", "parts", "size", "used_by"]
        console.print_rows(rows, columns)
    if found.damaged:
        console.out.print("\nset aside because damaged:")
        console.print_rows(found.damaged, ["file", "why"])
    total = amount(sum(row["bytes"] for row in found.kinds))
    console.out.print(f"\n{total} in {opened.uri}")
    if found.unused_bytes:
        console.out.print(
            f"{amount(found.unused_bytes)} are used by no run or model: "
            "tl store gc --dry-run"
        )


@app.command
def gc(
    *,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    keep_runs: Annotated[
        int | None, Parameter(validator=validators.Number(gte=1))
    ] = None,
    older_than: _Days | None = None,
    retention: _Days = 7.0,
    store: StoreOption = "tl_store",
    json: Json = False,
) -> None:
    """Remove what no run and no registered model uses.

    What a registered model, the last run of a dataset, or a run under way uses always
    stays. The retention must be longer than any run takes.

    Args:
        dry_run: only say what would go.
        keep_runs: keep the records of so many runs per dataset; default: of all.
        older_than: keep the records of runs that ended within so many days.
        retention: keep what was written within so many days.
        store: folder or URL of all artifacts.
        json: print the list as JSON.
    """
    from tl_pipeline.cli import console
    from tl_pipeline.maintenance import gc
    from tl_pipeline.maintenance.gc_roots import RunPolicy

    opened = _open(store)
    work = gc.find if dry_run else gc.collect
    found = work(opened, RunPolicy(keep_runs, older_than), retention)
    rows = [_row(opened, item) for item in found.garbage]
    if json:
        stay = [_row(opened, item) for item in found.stays]
        console.print_json({"removed": not dry_run, "garbage": rows, "stay": stay})
        return
    rows = [{**row, "size": amount(row["bytes"])} for row in rows]
    if rows:
        console.print_rows(rows, ["kind", "path", "size", "why"])
        console.out.print()
    total = amount(sum(row.item.bytes for row in found.garbage))
    verb = "would be removed" if dry_run else "removed"
    console.out.print(f"{len(rows):,} files and folders, {total}, {verb}")
    if found.stays:
        total = amount(sum(row.item.bytes for row in found.stays))
        console.out.print(
            f"{len(found.stays):,} more, {total}, stay: written within --retention "
            f"{retention:g} days, or being written"
        )


@app.command
def compact(
    *,
    encoder: str | None = None,
    rows: Annotated[int, Parameter(validator=validators.Number(gte=2))] = 65_536,
    store: StoreOption = "tl_store",
    json: Json = False,
) -> None:
    """Merge small part files of embeddings into large ones.

    Waits while a run embeds with the same encoder. Queries see rows twice for a moment,
    and one that is reading a part that goes says so: ask again.

    Args:
        encoder: only of this encoder: its key or the beginning of it.
        rows: the most images of a merged part.
        store: folder or URL of all artifacts.
        json: print the counts as JSON.
    """
    from dataclasses import asdict

    from tl_pipeline.cli import console
    from tl_pipeline.errors import UnknownName
    from tl_pipeline.maintenance import compaction, inventory

    opened = _open(store)
    known = list(compaction.encoders(opened))
    chosen = [key for key in known if key.startswith(encoder or "")]
    if encoder and not chosen:
        raise UnknownName("encoder key", encoder, known)
    done = [
        {
            "encoder": inventory.label(opened, key),
            **asdict(compaction.compact(opened, key, rows)),
        }
        for key in chosen
    ]
    columns = ["encoder", "parts_before", "parts_after"]
    columns += ["refused_before", "refused_after"]
    console.show(done, columns, as_json=json, empty="no embeddings yet")


@app.command
def verify(*, store: StoreOption = "tl_store", json: Json = False) -> None:
    """Read every artifact, embedding and weights file again; set aside what is damaged.

    A run hashes each file once and then trusts its size and times; this trusts nothing.
    Of a store at a URL everything is fetched.

    Args:
        store: folder or URL of all artifacts.
        json: print the result as JSON.
    """
    from dataclasses import asdict

    from tl_pipeline.cli import console
    from tl_pipeline.errors import DamagedArtifact
    from tl_pipeline.maintenance import verification

    done = verification.verify(_open(store))
    if json:
        console.print_json(asdict(done))
    if done.damaged:
        raise DamagedArtifact(
            f"{len(done.damaged)} damaged, set aside: {', '.join(done.damaged)}. The "
            "next run makes again what it needs of them"
        )
    if not json:
        console.out.print(f"{done.checked:,} artifacts, encoders and weights are whole")


def _row(store: "Store", garbage: "Garbage") -> dict[str, Any]:
    item, path = garbage.item, str(garbage.item.path.relative_to(store.root))
    return {"kind": item.kind, "path": path, "bytes": item.bytes, "why": garbage.why}


def amount(size: int) -> str:
    """``size`` bytes for people: 1.4 MB."""
    number = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def _open(place: str) -> "Store":
    from tl_pipeline.errors import StoreError
    from tl_pipeline.store.artifacts import Store

    opened = Store.open(place)
    if not (opened.root / "store.json").exists():
        raise StoreError(f"{opened.uri} is no store yet; `tl run DATASET` makes one")
    return opened

"""``tl heads``: which heads there are, and their parameters."""

from tl_pipeline.cli.request import Json


def heads(name: str | None = None, /, *, json: Json = False) -> None:
    """List the heads with their defaults, as `--head` takes them; 1/2 is a grid.

    Args:
        name: a head: list all its parameters, what they mean and the values they take.
        json: print JSON.
    """
    from tl_pipeline import heads as table
    from tl_pipeline.cli import console

    if name is not None:
        rows = table.describe(name)
        console.show(rows, ["parameter", "default", "values", "meaning"], as_json=json)
        return
    rows = [
        {
            "head": row.name,
            "summary": row.summary,
            "parameters": row.parameters
            if json
            else " ".join(
                f"{part['parameter']}={part['default']}"
                for part in table.describe(row.name)
                if part["parameter"] in row.defaults
            ),
        }
        for row in table.HEADS.values()
    ]
    console.show(rows, list(rows[0]), as_json=json)
    if not json:
        console.out.print("All parameters of one: tl heads NAME. Several at once:")
        sets = [
            {"preset": name, "summary": row.summary, "heads": " ".join(row.heads)}
            for name, row in table.PRESETS.items()
        ]
        console.print_rows(sets, list(sets[0]))

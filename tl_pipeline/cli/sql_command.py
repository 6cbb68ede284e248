"""``tl sql``: ask the SQL catalogue."""

import sys

from tl_pipeline.cli.request import Json, StoreOption


def sql(
    query: str | None = None, /, *, store: StoreOption = "tl_store", json: Json = False
) -> None:
    """Ask the catalogue in SQL; without a query, list what there is to ask.

    Args:
        query: DuckDB SQL, read from standard input when piped.
        store: folder or URL of all artifacts.
        json: print the rows as JSON.
    """
    from tl_pipeline import query as sql_catalogue
    from tl_pipeline.cli import console
    from tl_pipeline.store.artifacts import Store

    piped = "" if query or sys.stdin.isatty() else sys.stdin.read().strip()
    text = query or piped or sql_catalogue.CONTENTS
    rows = sql_catalogue.ask(Store.open(store), text)
    if json:
        console.print_json(rows.to_pylist())
    else:
        sql_catalogue.show(rows)

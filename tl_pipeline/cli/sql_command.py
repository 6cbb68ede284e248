"""``tl sql``: ask the SQL catalogue."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tl_pipeline.cli import row_formats
from tl_pipeline.cli.request import Json, StoreOption
from tl_pipeline.cli.row_formats import Format
from tl_pipeline.errors import InvalidSpec


def sql(
    query: str | None = None,
    /,
    *,
    store: StoreOption = "tl_store",
    form: Annotated[Format | None, Parameter(name="--format")] = None,
    output: Path | None = None,
    json: Json = False,
) -> None:
    """Ask the catalogue in SQL; without a query on a terminal, one after another.

    A query reads the store, and nothing else.

    Args:
        query: DuckDB SQL, read from standard input when piped. Default: what there is
            to ask.
        store: folder or URL of all artifacts.
        form: how the rows are written. Default: as OUTPUT ends, else a table.
        output: write the rows to this file.
        json: the same as --format json.
    """
    from tl_pipeline import query as sql_catalogue
    from tl_pipeline.cli import sql_shell
    from tl_pipeline.store.artifacts import Store

    form = row_formats.chosen("json" if json and form is None else form, output)
    asked = Store.open(store)
    if output and output.resolve().is_relative_to(asked.root):
        raise InvalidSpec(f"{output} is in the store, which is only read; name another")

    def answer(text: str) -> None:
        rows = sql_catalogue.ask(asked, text)
        if form == "table":
            sql_catalogue.show(rows)
        else:
            row_formats.write(rows, form, output)

    if query is None and output is None and sys.stdin.isatty() and sys.stdout.isatty():
        known = sql_catalogue.ask(asked, "FROM help()").to_pylist()
        sql_shell.converse(answer, known)
        return
    piped = "" if query or sys.stdin.isatty() else sys.stdin.read().strip()
    answer(query or piped or sql_catalogue.CONTENTS)

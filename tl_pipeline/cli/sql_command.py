"""``tl sql``: ask the SQL catalogue."""

import io
import sys
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from cyclopts import Parameter

from tl_pipeline.cli.request import Json, StoreOption
from tl_pipeline.errors import InvalidSpec

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["table", "csv", "json", "jsonl", "parquet", "md"]


def sql(
    query: str | None = None,
    /,
    *,
    store: StoreOption = "tl_store",
    form: Annotated[Format | None, Parameter(name="--format")] = None,
    output: Path | None = None,
    json: Json = False,
) -> None:
    """Ask the catalogue in SQL; without a query, list what there is to ask.

    A query reads the store, and nothing else.

    Args:
        query: DuckDB SQL, read from standard input when piped.
        store: folder or URL of all artifacts.
        form: how the rows are written. Default: as OUTPUT ends, else a table.
        output: write the rows to this file.
        json: the same as --format json.
    """
    from tl_pipeline import query as sql_catalogue
    from tl_pipeline.store.artifacts import Store

    form = _chosen("json" if json and form is None else form, output)
    piped = "" if query or sys.stdin.isatty() else sys.stdin.read().strip()
    text = query or piped or sql_catalogue.CONTENTS
    asked = Store.open(store)
    if output and output.resolve().is_relative_to(asked.root):
        raise InvalidSpec(f"{output} is in the store, which is only read; name another")
    rows = sql_catalogue.ask(asked, text)
    if form == "table":
        sql_catalogue.show(rows)
    elif output is None:
        sys.stdout.flush()
        _write(_written(rows, form))
    else:
        try:
            output.write_bytes(_written(rows, form))
        except OSError as error:
            raise InvalidSpec(f"cannot write {output}: {error.strerror}") from None


def _chosen(form: Format | None, output: Path | None) -> Format:
    """How the rows are written.

    Raises:
        InvalidSpec: OUTPUT does not tell, or is to hold a table for a terminal.
    """
    if output is None:
        if form == "parquet" and sys.stdout.isatty():
            raise InvalidSpec("Parquet is no text: name a file by --output")
        return form or "table"
    known = [name for name in get_args(Format) if name != "table"]
    ending = output.suffix.removeprefix(".")
    found = form or next((name for name in known if name == ending), None)
    if found in (None, "table"):
        raise InvalidSpec(
            f"in which format is {output} to be written? Give --format "
            f"{', '.join(known)}, or name a file that ends so"
        )
    return found


def _write(content: bytes) -> None:
    """Write to standard output, which may be one of text only."""
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer:
        buffer.write(content)
        buffer.flush()
    else:
        sys.stdout.write(content.decode())


def _written(rows: "pa.Table", form: Format) -> bytes:
    if form == "parquet":
        import pyarrow.parquet as pq

        file = io.BytesIO()
        pq.write_table(rows, file)
        return file.getvalue()
    if form == "csv":
        return _csv(rows)
    from tl_pipeline.cli import console

    found = [_plain(row) for row in rows.to_pylist()]
    if form == "md":
        return _markdown(rows.column_names, found).encode()
    if form == "jsonl":
        return "".join(f"{console.as_json(row)}\n" for row in found).encode()
    return f"{console.as_json(found, indent=1)}\n".encode()


def _plain(value: Any) -> Any:
    """Sums of whole numbers, which DuckDB gives as decimals, as numbers."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value


def _csv(rows: "pa.Table") -> bytes:
    """Lists and structs are written as JSON."""
    import pyarrow as pa
    from pyarrow import csv

    from tl_pipeline.cli import console

    for at, field in enumerate(rows.schema):
        if pa.types.is_nested(field.type):
            texts = [
                None if value is None else console.as_json(_plain(value))
                for value in rows.column(at).to_pylist()
            ]
            rows = rows.set_column(at, field.name, pa.array(texts, pa.string()))
    file = io.BytesIO()
    csv.write_csv(rows, file)
    return file.getvalue()


def _markdown(names: list[str], rows: list[dict[str, Any]]) -> str:
    lines = [names, ["---"] * len(names), *([row[n] for n in names] for row in rows)]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>")

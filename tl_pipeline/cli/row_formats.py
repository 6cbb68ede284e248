"""Rows in the formats that ``tl`` writes, to a file or to standard output."""

import io
import sys
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from tl_pipeline.errors import InvalidSpec

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["table", "csv", "json", "jsonl", "parquet", "md"]


def chosen(form: Format | None, output: Path | None) -> Format:
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


def write(rows: "pa.Table", form: Format, output: Path | None) -> None:
    """Write ``rows`` to ``output``; None is standard output, which may be of text only.

    Raises:
        InvalidSpec: ``output`` cannot be written.
    """
    content = _written(rows, form)
    if output:
        try:
            output.write_bytes(content)
        except OSError as error:
            raise InvalidSpec(f"cannot write {output}: {error.strerror}") from None
        return
    sys.stdout.flush()
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

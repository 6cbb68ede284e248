"""What a query may do: read its store, and nothing else.

DuckDB itself refuses files outside the store, extensions and changed settings. What
reads is told from what writes by the kind of each statement, as ``COPY`` may write
wherever it may read.
"""

import re
import tempfile
import uuid
from pathlib import Path

import duckdb

from tl_pipeline.errors import InvalidSpec
from tl_pipeline.query.views import pattern, quoted

# EXPLAIN ANALYZE carries out what it explains; PIVOT is several statements in one.
_READS = re.compile(
    r"\s*(?:EXPLAIN\s+(?:ANALYZE\s+|\([^)]*\)\s*)?)?"
    r"[\s(]*(?:SELECT|FROM|WITH|VALUES|TABLE|PIVOT|UNPIVOT|SUMMARIZE|DESCRIBE|SHOW)\b",
    re.IGNORECASE,
)
_MIXED = (duckdb.StatementType.EXPLAIN, duckdb.StatementType.MULTI)


def check(sql: str) -> None:
    """See that ``sql`` only reads.

    Raises:
        InvalidSpec: a statement does more, or is no SQL.
    """
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise InvalidSpec(f"{error}") from None
    for statement in statements:
        kind = statement.type
        reads = kind == duckdb.StatementType.SELECT or (
            kind in _MIXED and _READS.match(statement.query)
        )
        if not reads:
            raise InvalidSpec(
                f"{kind.name} is refused, as the store is only read: ask with SELECT, "
                "FROM, WITH, DESCRIBE, SUMMARIZE or EXPLAIN; `tl sql --output FILE` "
                "writes the rows to a file"
            )


def close(connection: duckdb.DuckDBPyConnection, root: Path) -> None:
    """Let ``connection`` read files below ``root`` only, for good.

    What does not fit into memory goes to a folder of its own, which DuckDB makes when
    it needs it, and removes. It lets queries read that, too.
    """
    spill = Path(tempfile.gettempdir()).resolve() / f"tl-sql-{uuid.uuid4().hex}"
    settings = {
        # paths are compared as they are written, in the views as patterns
        "allowed_directories": f"['{quoted(root)}', '{quoted(pattern(root))}']",
        "temp_directory": f"'{quoted(spill)}'",
        "python_enable_replacements": "false",  # variables of this program as tables
        "enable_external_access": "false",
        "lock_configuration": "true",
    }
    for name, value in settings.items():
        connection.execute(f"SET {name} = {value}")

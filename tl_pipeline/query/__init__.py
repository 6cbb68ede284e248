"""The SQL catalogue, ``catalog.duckdb``: everything in a store as views.

In: run records, Parquet tables, and what is computed of a few rows. Out: a DuckDB file
that anyone opens read-only, the answers to queries, and a ``Reader`` for Python.
"""

from tl_pipeline.query.catalogue import CONTENTS, ask, build, connect, show
from tl_pipeline.query.reader import Reader

__all__ = ["CONTENTS", "Reader", "ask", "build", "connect", "show"]

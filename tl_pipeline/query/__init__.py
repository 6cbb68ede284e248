"""The SQL catalogue, ``catalog.duckdb``: everything in a store as views.

In: run records, Parquet tables, and what is computed of a few rows. Out: a DuckDB file
that anyone opens read-only, and the answers to queries.
"""

from tl_pipeline.query.catalogue import CONTENTS, ask, build, connect, show

__all__ = ["CONTENTS", "ask", "build", "connect", "show"]

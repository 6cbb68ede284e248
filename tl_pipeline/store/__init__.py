"""Artifacts, tables and embeddings, on a disk or, through a mirror, at a URL.

In: key documents and the functions that write what they describe. Out: immutable
folders found by key. ``remote`` is the object store.
"""

__all__ = [
    "artifacts",
    "cache",
    "checks",
    "duplicate_rows",
    "embeddings",
    "files",
    "in_use",
    "keys",
    "part_files",
    "part_index",
    "remote",
    "tables",
    "timings",
    "unit_vectors",
    "weights",
]

"""Bytes at a path or a URL; only this package knows fsspec.

In: places and credentials. Out: ``Storage`` reads them, ``objects`` also writes below
one URL of an object store, ``downloads`` watches what other libraries fetch.
"""

from tl_pipeline.storage.places import Place, Storage

__all__ = ["Place", "Storage", "downloads", "objects", "stamps"]

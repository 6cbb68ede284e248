"""The embedding loop: read, decode, forward, write, at the same time.

In: encoders with their networks, and references to images. Out: rows in part files, and
where the time went. ``gpu`` holds what needs a GPU that decodes JPEGs.
"""

__all__ = [
    "devices",
    "engine",
    "forward",
    "gpu",
    "precision",
    "process",
    "result",
    "rounding",
    "workers",
]

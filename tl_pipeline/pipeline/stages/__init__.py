"""The five verbs, one file each; they meet in the store and never import one another.

A stage module has ``plan`` and ``run`` of the same signature. ``plan`` only looks and
says what ``run`` would do; what it returns names the output before it exists, so that
the stages after it can be planned too.
"""

__all__ = [
    "audit",
    "average",
    "embed",
    "evaluate",
    "ingest",
    "register",
    "search",
    "shuffle",
    "train",
]

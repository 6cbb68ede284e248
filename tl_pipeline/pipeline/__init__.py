"""The stages and the order in which they run.

In: a ``RunSpec`` and a store; ``work.prepare`` resolves it. Out: artifacts in the store
and a run record, by ``wiring.plan``, ``wiring.run`` or the flow. ``stages`` holds one
module per stage.
"""

__all__ = [
    "batch",
    "choices",
    "costs",
    "fits",
    "manifest",
    "partitions",
    "speeds",
    "stage",
    "stages",
    "trials",
    "wiring",
    "work",
]

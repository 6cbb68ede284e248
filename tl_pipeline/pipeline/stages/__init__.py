"""The stages, one file each; they meet in the store and never import one another.

In: a workspace, the manifest, embeddings, heads. Out: artifacts, and steps that say
what was done and why. A stage is a class named as its file; see ``pipeline.stage``.
"""

__all__ = [
    "adopt",
    "audit",
    "average",
    "compare",
    "embed",
    "evaluate",
    "finetune",
    "ingest",
    "predict",
    "reference",
    "register",
    "shuffle",
    "train",
]

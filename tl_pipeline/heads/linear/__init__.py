"""Linear heads by solvers of our own: multinomial logistic regression and ridge.

In: rows of embeddings, their labels, a grid of penalties. Out: one fitted head per
configuration and fold, from one computation.
"""

from typing import Any

__all__ = ["design_matrix", "logistic", "temperature"]


def __getattr__(name: str) -> Any:
    """``LinearClassifier`` where heads saved by version 0.1 look for it."""
    if name == "LinearClassifier":
        from tl_pipeline.heads.linear.logistic import LinearClassifier  # noqa: PLC0415

        return LinearClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Neural heads: softmax, mlp and cosine, trained by small steps in torch.

In: rows of embeddings and their labels. Out: fitted heads that are kept as tensors.
"""

from typing import Any

__all__ = ["classifiers"]


def __getattr__(name: str) -> Any:
    """``NeuralHead`` where heads saved by version 0.1 look for it."""
    if name == "NeuralHead":
        from tl_pipeline.heads.neural.classifiers import NeuralHead  # noqa: PLC0415

        return NeuralHead
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Neural heads: softmax, mlp and cosine, trained by small steps in torch.

In: rows of embeddings and their labels. Out: fitted heads that are kept as tensors.
"""

__all__ = ["layers", "predictor"]

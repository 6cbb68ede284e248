"""Neural heads: softmax, mlp, cosine and attentive, by small steps in torch.

In: rows of embeddings and their labels. Out: fitted heads that are kept as tensors.
"""

__all__ = ["layers", "predictor"]

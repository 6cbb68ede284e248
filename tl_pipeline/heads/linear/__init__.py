"""Multinomial logistic regression by a solver of our own, and what linear heads share.

In: rows of embeddings, their labels, a grid of penalties. Out: one fitted head per
configuration and fold, from one computation.
"""

__all__ = ["design_matrix", "logistic", "temperature"]

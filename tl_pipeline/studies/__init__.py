"""Questions beside a run: which encoder suits the data, what few images are worth.

In: a dataset and encoders. Out: a ranking; embeddings and trials stay in the store.
"""

__all__ = ["few_shots", "ranking", "study", "tune_stage", "tuning"]

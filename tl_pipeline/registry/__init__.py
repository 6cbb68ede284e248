"""Registered models: versions, the champion, and predictions of new inputs.

In: model folders that a run has written. Out: versions, aliases, and ``predict``.
"""

__all__ = ["index", "mlflow_index", "prediction", "versions"]

"""Registered models in MLflow: versions, the champion, and predictions of new inputs.

In: model folders that a run has written, with its evaluations. Out: versions, aliases,
and ``predict``. ``connection`` says where the registry is; ``pyfunc`` is what MLflow
itself loads a model with.
"""

__all__ = [
    "connection",
    "index",
    "logged_run",
    "model",
    "model_folder",
    "nearest",
    "occlusion",
    "prediction",
    "rebuilding",
    "registration",
]

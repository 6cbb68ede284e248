"""``tl models`` and ``tl predict``: what is registered, and its use."""

import sys
from pathlib import Path

from tl_pipeline.cli.request import Json, StoreOption


def models(*, store: StoreOption = "tl_store", json: Json = False) -> None:
    """List the registered models, their scores, and who is champion."""
    from tl_pipeline.cli import console
    from tl_pipeline.registry import index, mlflow_index
    from tl_pipeline.store.artifacts import Store

    opened = Store.open(store)
    rows = index.models(opened)
    columns = ["name", "version", "aliases", "encoder", "head"]
    if any(row["folds_accuracy"] for row in rows):
        columns.append("folds_accuracy")
    columns += ["validation_accuracy", "test_accuracy", "folder"]
    console.show(rows, columns, as_json=json, empty="no models yet: tl run DATASET")
    if rows and not json:
        console.out.print(f"\nMLflow: {mlflow_index.database(opened)}")


def predict(
    name: str,
    files: list[Path],
    /,
    *,
    alias: str = "champion",
    store: StoreOption = "tl_store",
    json: Json = False,
) -> None:
    """Classify files with a registered model.

    Args:
        name: of the model, which is that of its dataset.
        files: each an image; or one text in UTF-8, or one vector as .npy.
        alias: which of its versions.
        store: folder or URL of all artifacts.
        json: print the predictions as JSON.
    """
    from dataclasses import asdict

    from tl_pipeline.cli import console
    from tl_pipeline.registry import index, prediction
    from tl_pipeline.store.artifacts import Store

    model = index.load_model(Store.open(store), name, alias)
    rows = [asdict(found) for found in prediction.predict(model, files)]
    columns = ["file", "label", "confidence", "labels", "accepted", "refused"]
    point = model.operating_point
    if point is None:  # of an older version
        columns = [name for name in columns if name not in ("labels", "accepted")]
    console.show(rows, columns, as_json=json)
    if point and point.shortage:
        console.err.print(point.shortage)
    if any(row["refused"] for row in rows):
        sys.exit(3)

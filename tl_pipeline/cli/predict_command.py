"""``tl predict``: what a registered model says of new inputs."""

import sys
from pathlib import Path

from tl_pipeline.cli.request import Json, RegistryOption, StoreOption, use_registry


def predict(
    name: str,
    files: list[Path],
    /,
    *,
    alias: str = "champion",
    store: StoreOption = "tl_store",
    registry: RegistryOption = None,
    json: Json = False,
) -> None:
    """Classify files with a registered model.

    Args:
        name: of the model, which is that of its dataset.
        files: each an image; or one text in UTF-8, or one vector as .npy.
        alias: which of its versions, or the number of one.
        store: folder or URL of all artifacts.
        registry: see `tl models --help`.
        json: print the predictions as JSON.
    """
    from dataclasses import asdict

    from tl_pipeline.cli import console
    from tl_pipeline.registry import index, prediction
    from tl_pipeline.store.artifacts import Store

    use_registry(registry)
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

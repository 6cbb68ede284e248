"""How MLflow loads a model folder: the ``python_function`` flavour of its ``MLmodel``.

``mlflow.pyfunc.load_model("models:/digits@champion").predict(frame)`` takes a table
with one column: files, their contents as bytes, or contents as data URLs
(``data:image/jpeg;base64,...``), as JSON sends them to ``mlflow models serve``.
"""

import base64
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd

from tl_pipeline.errors import InvalidSpec
from tl_pipeline.registry.model import open_model
from tl_pipeline.registry.prediction import Prediction, Predictor
from tl_pipeline.store.artifacts import Store


class Classifier:
    """A model as MLflow calls it; its networks are loaded once."""

    def __init__(self, folder: Path) -> None:
        self._predictor = Predictor(open_model(folder, _store_around(folder)))

    def predict(self, inputs: pd.DataFrame, params: Any = None) -> pd.DataFrame:  # noqa: ARG002
        """One row for each of ``inputs``, with what ``tl predict`` says of it.

        A file that is not there, or no image, has no label and a reason in ``refused``.

        Raises:
            InvalidSpec: a value is neither a file nor bytes; the message names its row.
        """
        given = [_input(value, row) for row, value in inputs.iloc[:, 0].items()]
        rows = [asdict(found) for found in self._predictor.predict(given)]
        columns = [field.name for field in fields(Prediction) if field.name != "file"]
        # As objects, so that what is missing stays None and becomes null in JSON.
        return pd.DataFrame(rows, inputs.index, columns, dtype=object)


def _load_pyfunc(data_path: str) -> Classifier:
    """Called by MLflow with the folder of the model."""
    return Classifier(Path(data_path))


def _store_around(folder: Path) -> Store | None:
    """The store in which ``folder`` lies, whose weights it uses; None elsewhere."""
    roots = (root for root in folder.parents if (root / "store.json").exists())
    root = next(roots, None)
    return Store(root) if root else None


def _input(value: Any, row: Any) -> Path | bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str) and value.startswith("data:"):
        head, _, body = value.partition(",")
        if head.endswith(";base64"):
            with suppress(ValueError):
                return base64.b64decode(body, validate=True)
    elif isinstance(value, Path) or (isinstance(value, str) and value):
        return Path(value)
    raise InvalidSpec(
        f"row {row}: {str(value)[:80]!r} is no input: give one column of file names, "
        "of bytes, or of data URLs such as data:image/jpeg;base64,..."
    )

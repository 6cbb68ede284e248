"""Heads as version 0.1 kept them: scikit-learn's objects in a skops file.

A skops file holds no code: it is loaded against an allow-list of our own types, which
hold numbers and other such types. Only numbers are taken from what is loaded, so that
a file that another release of scikit-learn wrote mostly still serves.
"""

import io
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import sklearn
import skops.io
from sklearn.exceptions import InconsistentVersionWarning

from tl_pipeline.errors import StoreError, UnsafeModelFile

_T = TypeVar("_T")
_HEADS = "tl_pipeline.heads"
# (module, class) in the files -> in this version.
OLDER_TYPES = {
    (f"{_HEADS}.classical", "NaiveBayes"): ("classical", "NaiveBayes"),
    (f"{_HEADS}.cosine", "CentroidHead"): ("cosine", "CentroidHead"),
    (f"{_HEADS}.cosine", "NeighbourHead"): ("cosine", "NeighbourHead"),
    (f"{_HEADS}.discriminant", "DiscriminantHead"): (
        "discriminant",
        "DiscriminantHead",
    ),
    (f"{_HEADS}.linear", "LinearClassifier"): ("linear.logistic", "LogisticHead"),
    (f"{_HEADS}.margins", "MarginHead"): ("calibrated_svm", "CalibratedSVM"),
    (f"{_HEADS}.neural", "NeuralHead"): ("neural.classifiers", "NeuralHead"),
    (f"{_HEADS}.preparation", "Components"): ("preparation", "Components"),
    (f"{_HEADS}.ridge", "RidgeHead"): ("ridge", "RidgeHead"),
    (f"{_HEADS}.support_vectors", "LinearSVMHead"): (
        "support_vectors",
        "LinearSVMHead",
    ),
}
_OLDER_ATTRIBUTES = {"sharpness_": "inverse_temperature_"}
_SCHEMA = "schema.json"


def read(file: Path, convert: Callable[[Any], _T]) -> _T:
    """What ``convert`` makes of the fitted estimator in ``file``.

    Raises:
        UnsafeModelFile: the file holds a type that no head wrote.
        StoreError: another release of scikit-learn wrote it, and this one cannot read
            it.
    """
    data, written_by = _brought_up_to_date(file)
    allowed = [f"{_HEADS}.{module}.{name}" for module, name in OLDER_TYPES.values()]
    unknown = set(skops.io.get_untrusted_types(data=data)) - set(allowed)
    if unknown:
        raise UnsafeModelFile(
            f"{file} holds types that no head writes: {', '.join(sorted(unknown))}. "
            "It is not loaded; register the model again from a trusted run"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InconsistentVersionWarning)
            return convert(skops.io.loads(data, trusted=allowed))
    except (AttributeError, ImportError, KeyError, TypeError) as error:
        if written_by in (None, sklearn.__version__):
            raise
        raise StoreError(
            f"{file} was written by scikit-learn {written_by} and cannot be read by "
            f"{sklearn.__version__} ({error}); install scikit-learn {written_by}, or "
            "train the head again"
        ) from None


def _brought_up_to_date(file: Path) -> tuple[bytes, str | None]:
    """The file with today's names, and the release of scikit-learn that wrote it."""
    made, written_by = io.BytesIO(), None
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == _SCHEMA:
                schema = json.loads(data)
                for node in _nodes(schema):
                    written_by = _rename(node) or written_by
                data = json.dumps(schema).encode()
            new.writestr(name, data)
    return made.getvalue(), written_by


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    parts = value.values() if isinstance(value, dict) else value
    for part in parts:
        if isinstance(part, dict | list):
            yield from _nodes(part)


def _rename(node: dict[str, Any]) -> str | None:
    """Give ``node`` today's names; the release of scikit-learn, if it tells."""
    kind = (str(node.get("__module__")), str(node.get("__class__")))
    if kind in OLDER_TYPES:
        module, node["__class__"] = OLDER_TYPES[kind]
        node["__module__"] = f"{_HEADS}.{module}"
    for old, new in _OLDER_ATTRIBUTES.items():
        if old in node:
            node[new] = node.pop(old)
    release = node.get("_sklearn_version")
    return json.loads(release["content"]) if release else None

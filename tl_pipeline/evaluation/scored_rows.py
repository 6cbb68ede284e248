"""What an evaluation writes of a candidate, METRICS and PREDICTIONS; and reading it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from tl_pipeline.data.splits import TEST, VALIDATION
from tl_pipeline.evaluation.averaging import Said
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.tables import METRICS, PREDICTIONS

if TYPE_CHECKING:
    from tl_pipeline.evaluation.metrics import Score
    from tl_pipeline.evaluation.operating_point import OperatingPoint


class Scored(NamedTuple):
    """What the evaluation of one head tells of it.

    A row of METRICS of its chosen configuration; how that did on validation; what it
    said of the images of each split.
    """

    evaluation: Artifact
    row: dict[str, Any]
    accuracy: float
    log_loss: float
    said: dict[str, Said]


def metric_rows(
    about: Mapping[str, Any], found: "Sequence[Score]"
) -> Iterator[dict[str, Any]]:
    """A row of METRICS for each score; ``about`` has the columns that they share."""
    for score in found:
        values = {"value": score.value, "low": score.low, "high": score.high}
        yield {**about, "metric": score.metric, **values}


def predictions(
    about: Mapping[str, str],
    image_ids: Sequence[str],
    labels: np.ndarray,
    classes: Sequence[str],
    probabilities: np.ndarray,
    point: "OperatingPoint",
) -> pa.Table:
    """The rows of PREDICTIONS of one split.

    Args:
        about: ``evaluation`` and ``split``.
        image_ids: n of them.
        labels: the true ones, (n,).
        classes: names of the columns of ``probabilities``.
        probabilities: calibrated, float32 (n, n_classes).
        point: what decides which are accepted, and which labels are in a set.
    """
    images = len(image_ids)
    sets = point.sets(probabilities)
    own = np.array(classes) == labels[:, None]
    ends = pa.array(np.arange(images + 1, dtype=np.int32) * len(classes))
    flat = pa.array(np.ascontiguousarray(probabilities).ravel())
    return pa.table(
        {
            **{name: pa.array([v] * images, pa.string()) for name, v in about.items()},
            "image_id": pa.array(image_ids, pa.string()),
            "label": labels.astype(str),
            "predicted": np.array(classes)[probabilities.argmax(axis=1)],
            "confidence": probabilities.max(axis=1),
            "probabilities": pa.ListArray.from_arrays(ends, flat),
            "accepted": point.accepted(probabilities),
            "set_size": sets.sum(axis=1),
            "in_set": (sets & own).any(axis=1),
        }
    )


def read(store: Store, evaluation: Artifact) -> Scored:
    """What ``evaluation`` wrote of the configuration that it chose."""
    folder = store.path(evaluation)
    chosen = [row for row in tables.read(METRICS, folder).to_pylist() if row["chosen"]]
    value = {r["metric"]: r["value"] for r in chosen if r["split"] == VALIDATION}
    classes = json.loads((folder / "chosen.json").read_text())["classes"]
    rows = tables.read(PREDICTIONS, folder).sort_by("image_id")
    splits = np.array(rows["split"].to_pylist())
    said = {
        split: _said(rows.filter(pa.array(splits == split)), classes)
        for split in (VALIDATION, TEST)
    }
    return Scored(evaluation, chosen[0], value["accuracy"], value["log_loss"], said)


def _said(rows: pa.Table, classes: list[str]) -> Said:
    flat = rows["probabilities"].combine_chunks().flatten().to_numpy()
    return Said(
        np.array(rows["image_id"].to_pylist()),
        np.array(rows["label"].to_pylist()),
        classes,
        flat.reshape(len(rows), len(classes)),
    )

"""What an evaluation writes of a candidate: rows of METRICS and of PREDICTIONS."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from tl_pipeline.metrics import Score
    from tl_pipeline.operating_point import OperatingPoint


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

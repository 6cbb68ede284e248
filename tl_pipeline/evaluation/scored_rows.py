"""What an evaluation writes of a candidate, and reading it.

Predictions stay columns of Arrow and numpy: there may be a million of them.
"""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tl_pipeline.data.splits import CHOOSING, TEST
from tl_pipeline.evaluation.averaging import Predictions
from tl_pipeline.score import Score
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.tables import CLASS_SCORES, METRICS, PREDICTIONS

if TYPE_CHECKING:
    from tl_pipeline.evaluation.operating_point import OperatingPoint
    from tl_pipeline.evaluation.scoring import Scored


_NO_IDS = pa.array([], pa.string())


class StoredEvaluation(NamedTuple):
    """What the evaluation of one head tells of it.

    A row of METRICS; how it did on the images by which heads are compared, which are
    called ``split``; what it predicted of them and of test.
    """

    evaluation: Artifact
    row: dict[str, Any]
    split: str
    accuracy: float
    log_loss: float
    held_out: Predictions
    test: Predictions


class Compared(NamedTuple):
    """Two classifiers on the images of a split that both scored.

    ``truth`` (n,) are the labels, those of the first, as numbers of ``names``;
    ``first`` and ``second`` (n,) what each predicts. ``units`` are equal for images of
    one group. ``image_ids`` (n,) are theirs.
    """

    truth: np.ndarray
    first: np.ndarray
    second: np.ndarray
    units: np.ndarray
    names: Sequence[str] = ()
    image_ids: pa.Array = _NO_IDS

    @property
    def right(self) -> tuple[np.ndarray, np.ndarray]:
        """Whether each is right, bool (n,)."""
        return self.first == self.truth, self.second == self.truth


def metric_rows(
    about: Mapping[str, Any], found: Mapping[str, Score]
) -> Iterator[dict[str, Any]]:
    """A row of METRICS for each score; ``about`` has the columns that they share."""
    for metric, score in found.items():
        yield {**about, "metric": metric, **score.model_dump()}


def prediction_rows(
    about: Mapping[str, str],
    image_ids: Any,
    labels: Any,
    groups: Any,
    classes: Sequence[str],
    probabilities: np.ndarray,
    point: "OperatingPoint",
) -> pa.Table:
    """The rows of PREDICTIONS of one split.

    Args:
        about: ``evaluation`` and ``split``.
        image_ids: n of them.
        labels: the true ones, (n,).
        groups: of each image, as the source names it; None where it is of none.
        classes: names of the columns of ``probabilities``.
        probabilities: calibrated, float32 (n, n_classes).
        point: what decides which are accepted, and which labels are in a set.
    """
    images = len(probabilities)
    sets, names = point.sets(probabilities), pa.array(classes, pa.string())
    labels = pa.array(labels, pa.string())
    own = pc.index_in(labels, names).fill_null(-1).to_numpy()
    in_set = sets[np.arange(images), own] & (own >= 0)
    ends = pa.array(np.arange(images + 1, dtype=np.int32) * len(classes))
    flat = pa.array(np.ascontiguousarray(probabilities).ravel())
    return pa.table(
        {
            **{name: pa.array([v] * images, pa.string()) for name, v in about.items()},
            "image_id": pa.array(image_ids, pa.string()),
            "label": labels,
            "predicted": names.take(pa.array(probabilities.argmax(axis=1))),
            "confidence": probabilities.max(axis=1),
            "probabilities": pa.ListArray.from_arrays(ends, flat),
            "accepted": point.accepted(probabilities),
            "set_size": sets.sum(axis=1),
            "in_set": in_set,
            "group": pa.array(groups, pa.string()),
        }
    )


def write(
    evaluation: str,
    about: Mapping[str, Any],
    found: "Scored",
    groups: Callable[[list[str]], list[str | None]],
    folder: Path,
) -> None:
    """METRICS, CLASS_SCORES, PREDICTIONS and the operating point, into ``folder``.

    ``about`` has the columns of METRICS that all of its rows share; ``groups`` gives
    the group of each of some images, as the source names it.
    """
    # one order for both splits: after a refit the head may know more classes
    classes = found.predictions[TEST].classes
    metrics = [
        row
        for split, scores in found.scores.items()
        for row in metric_rows(
            {
                "evaluation": evaluation,
                **about,
                "chosen": True,
                "split": split,
                "images": found.images[split],
            },
            scores,
        )
    ]
    rows = [
        prediction_rows(
            {"evaluation": evaluation, "split": split},
            said.image_ids,
            said.labels,
            groups(said.image_ids.to_pylist()),
            classes,
            said.naming(classes).probabilities,
            found.point,
        )
        for split, said in found.predictions.items()
    ]
    by_class = [
        pa.table(
            {
                "evaluation": pa.repeat(evaluation, len(rows)),
                "split": pa.repeat(split, len(rows)),
            }
            | {name: rows[name] for name in rows.column_names}
        )
        for split, rows in found.class_scores.items()
    ]
    tables.write(METRICS, tables.from_rows(METRICS, metrics), folder)
    tables.write(CLASS_SCORES, pa.concat_tables(by_class), folder)
    tables.write(PREDICTIONS, pa.concat_tables(rows), folder)
    found.point.write(folder)


def read(store: Store, evaluation: Artifact) -> StoredEvaluation:
    """What ``evaluation`` wrote of the configuration that it chose."""
    folder = store.path(evaluation)
    told = tables.read(METRICS, folder).to_pylist()
    (first, *_) = held = [row for row in told if row["split"] in CHOOSING]
    value = {row["metric"]: row["value"] for row in held}
    classes = json.loads((folder / "chosen.json").read_text())["classes"]
    columns = ("image_id", "split", "label", "probabilities")
    rows = tables.read(PREDICTIONS, folder, columns).sort_by("image_id")
    of_test = pc.equal(rows["split"], TEST)
    return StoredEvaluation(
        evaluation,
        first,
        first["split"],
        value["accuracy"],
        value["log_loss"],
        Predictions.of_table(rows.filter(pc.invert(of_test)), classes),
        Predictions.of_table(rows.filter(of_test), classes),
    )


def compared(
    store: Store, first: Artifact, second: Artifact, *, on_test: bool
) -> Compared:
    """Two evaluations on the images that both scored: of test, or held out of heads."""
    mine, theirs = (_judged(store, one, on_test=on_test) for one in (first, second))
    place = pc.index_in(mine["image_id"], value_set=theirs["image_id"].combine_chunks())
    both = pc.is_valid(place)
    mine, theirs = mine.filter(both), theirs.take(place.filter(both))
    group = pc.binary_join_element_wise("group", mine["group"], " ")
    alone = pc.binary_join_element_wise("image", mine["image_id"], " ")
    units = pc.if_else(pc.is_valid(mine["group"]), group, alone)
    coded = units.combine_chunks().dictionary_encode()
    names = (mine["label"], mine["predicted"], theirs["predicted"])
    told = pa.concat_arrays([name.combine_chunks() for name in names])
    told = told.dictionary_encode()
    truth, one, other = told.indices.to_numpy().reshape(3, -1)
    units, names = coded.indices.to_numpy(), told.dictionary.to_pylist()
    ids = mine["image_id"].combine_chunks()
    return Compared(truth, one, other, units, names, ids)


def _judged(store: Store, evaluation: Artifact, *, on_test: bool) -> pa.Table:
    columns = ("image_id", "split", "label", "predicted", "group")
    rows = tables.read(PREDICTIONS, store.path(evaluation), columns)
    of_test = pc.equal(rows["split"], TEST)
    return rows.filter(of_test if on_test else pc.invert(of_test)).sort_by("image_id")

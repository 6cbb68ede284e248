"""How the best model does on each class, beside how many images the class has."""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tl_pipeline.data.split_report import SplitReport
from tl_pipeline.data.splits import SPLITS, TEST
from tl_pipeline.evaluation import scored_rows
from tl_pipeline.evaluation.class_scores import class_scores
from tl_pipeline.evaluation.predicted_rows import PredictedRows
from tl_pipeline.report.tested import PredictedTest
from tl_pipeline.score import Score
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.tables import CLASS_SCORES

METRICS = ("recall", "precision", "f1")
_MOST = 400
_ORDER = tuple(reversed(SPLITS))


class ClassRow(NamedTuple):
    """One class: images by split (test first), and scores on test where defined.

    ``taken_for`` is the class that its test images are most often taken for, and how
    often; None where they never are.
    """

    label: str
    images: Mapping[str, int]
    scores: Mapping[str, Score]
    taken_for: tuple[str, int] | None


class ClassTable(NamedTuple):
    """The classes with the least F1 first, those without a test image last.

    ``hidden`` counts those that are left out, as they are too many.
    """

    rows: list[ClassRow]
    hidden: int


def table(
    store: Store, evaluation: str, tested: PredictedTest, split: SplitReport | None
) -> ClassTable:
    """The scores of ``evaluation`` on test; ``split`` counts the images.

    Raises:
        DamagedArtifact: a table of the evaluation cannot be read.
    """
    scores = _by_class(_scores(store, evaluation))
    images = _images(split) if split else _of_test(tested)
    taken = _taken(tested)
    rows = [
        ClassRow(
            label,
            images.get(label) or dict.fromkeys(_ORDER, 0),
            scores.get(label, {}),
            taken.get(label),
        )
        for label in sorted({*images, *scores})
    ]
    rows.sort(key=_merit)
    return ClassTable(rows[:_MOST], max(0, len(rows) - _MOST))


def _merit(row: ClassRow) -> tuple[bool, float]:
    f1 = row.scores.get("f1")
    return (f1 is None or "recall" not in row.scores, f1.value if f1 else 0.0)


def _scores(store: Store, evaluation: str) -> pa.Table:
    """The rows of CLASS_SCORES of test; computed where an older version left none."""
    artifact = Artifact("evaluations", evaluation, evaluation)
    folder = store.path(artifact)
    if (folder / CLASS_SCORES.file).exists():
        rows = tables.read(CLASS_SCORES, folder)
        return rows.filter(pc.equal(rows["split"], TEST))
    said = scored_rows.read(store, artifact).test
    units = scored_rows.compared(store, artifact, artifact, on_test=True).units
    return class_scores(
        PredictedRows(said.names(), said.classes, said.probabilities, units)
    )


def _by_class(scores: pa.Table) -> dict[str, dict[str, Score]]:
    found: dict[str, dict[str, Score]] = {}
    rows = scores.filter(pc.is_in(scores["metric"], pa.array(METRICS)))
    for row in rows.to_pylist():
        score = Score(value=row["value"], low=row["low"], high=row["high"])
        found.setdefault(row["label"], {})[row["metric"]] = score
    return found


def _images(split: SplitReport) -> dict[str, dict[str, int]]:
    """Images of each class by split, test first."""
    return {
        label: dict(zip(_ORDER, reversed(counts), strict=True))
        for label, counts in split.classes.items()
    }


def _of_test(tested: PredictedTest) -> dict[str, dict[str, int]]:
    """As ``_images`` where only test is known."""
    counts = Counter(tested.labels.tolist())
    return {label: dict.fromkeys(_ORDER, 0) | {TEST: n} for label, n in counts.items()}


def _taken(tested: PredictedTest) -> dict[str, tuple[str, int]]:
    """Label -> the most frequent wrong prediction of its images, and its number."""
    wrong = np.flatnonzero(~tested.right)
    pairs = Counter(zip(tested.labels[wrong], tested.predicted[wrong], strict=True))
    found: dict[str, tuple[str, int]] = {}
    for (label, predicted), number in sorted(
        pairs.items(), key=lambda item: (-item[1], item[0])
    ):
        found.setdefault(label, (predicted, number))
    return found

"""All metrics of the best candidate, by split."""

from collections.abc import Mapping
from typing import NamedTuple

from tl_pipeline.data.splits import CHOOSING, TEST, TRAIN
from tl_pipeline.evaluation.metrics import METRICS
from tl_pipeline.score import Score
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store

# From left to right; of those of ``CHOOSING`` an evaluation has one.
_SPLITS = (TEST, *CHOOSING, TRAIN)


class MetricRow(NamedTuple):
    """One metric: its scores by split, and in words what it is."""

    name: str
    scores: Mapping[str, Score]
    meaning: str


class ScoreTable(NamedTuple):
    """The metrics that an evaluation has; ``splits`` are those of any of them."""

    splits: list[str]
    rows: list[MetricRow]


def table(store: Store, evaluation: str) -> ScoreTable:
    """The scores of the configuration that ``evaluation``, a key, chose.

    Raises:
        DamagedArtifact: its table cannot be read.
    """
    folder = store.path(Artifact("evaluations", evaluation, evaluation))
    found: dict[str, dict[str, Score]] = {}
    for row in tables.read(tables.METRICS, folder).to_pylist():
        if row["chosen"]:
            score = Score(value=row["value"], low=row["low"], high=row["high"])
            found.setdefault(row["metric"], {})[row["split"]] = score
    rows = [
        MetricRow(name.replace("_", " "), found[name], metric.meaning)
        for name, metric in METRICS.items()
        if name in found
    ]
    splits = [s for s in _SPLITS if any(s in row.scores for row in rows)]
    return ScoreTable(splits, rows)

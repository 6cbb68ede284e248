"""The gate of a registry: whether a new model becomes champion, and why."""

import json
from typing import Any

import numpy as np

from tl_pipeline.data.splits import VALIDATION
from tl_pipeline.evaluation.comparison import paired_difference
from tl_pipeline.registry.mlflow_index import Indexed
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.tables import PREDICTIONS


def decide(
    store: Store, holder: Indexed | None, about: dict[str, Any]
) -> tuple[bool, str]:
    """Whether the model that is described by ``about`` takes over from ``holder``.

    It does when there is no champion, or when it is right at least as often on the
    validation images that both were scored on: neither learned from those.
    """
    if holder is None:
        return True, "the first model of this dataset"
    store.find("models", holder.model)
    file = store.root / "models" / holder.model / "model.json"
    if not file.exists():
        return True, f"version {holder.number}, the champion, is gone"
    mine = _validation(store, about["evaluation"])
    theirs = _validation(store, json.loads(file.read_text())["evaluation"])
    both = sorted(mine.keys() & theirs.keys())
    if not both:
        return True, f"no validation image in common with version {holder.number}"
    # Today's labels count for both: the champion may have been scored on older ones.
    first = np.array([mine[i][0] == mine[i][1] for i in both])
    second = np.array([theirs[i][0] == mine[i][1] for i in both])
    difference = paired_difference(first, second, seed=0)
    said = (
        f"{difference.value:+.2%} on {difference.rows:,} validation images in common "
        f"with version {holder.number} [{difference.low:+.2%}, {difference.high:+.2%}]"
    )
    return difference.value >= 0, said


def _validation(store: Store, evaluation: str) -> dict[str, tuple[str, str]]:
    """Image id -> (predicted, label) on validation; empty if it is gone."""
    found = store.find("evaluations", evaluation)
    if found is None:
        return {}
    rows = tables.read(PREDICTIONS, store.path(found)).to_pylist()
    return {
        row["image_id"]: (row["predicted"], row["label"])
        for row in rows
        if row["split"] == VALIDATION
    }

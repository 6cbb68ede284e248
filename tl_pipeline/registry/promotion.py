"""The gate of a registry: whether a new model becomes champion, and why."""

import json
from typing import Any

from tl_pipeline.data.splits import VALIDATION
from tl_pipeline.evaluation.intervals import paired_difference
from tl_pipeline.evaluation.scored_rows import compared
from tl_pipeline.registry.mlflow_index import Indexed
from tl_pipeline.store.artifacts import Store


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
    other = json.loads(file.read_text())["evaluation"]
    found = [store.find("evaluations", key) for key in (about["evaluation"], other)]
    mine, theirs = found
    both = compared(store, mine, theirs, VALIDATION) if mine and theirs else None
    if both is None or not len(both.units):
        return True, f"no validation image in common with version {holder.number}"
    difference = paired_difference(both.first, both.second, both.units, seed=0)
    said = (
        f"{difference.value:+.2%} on {len(both.units):,} validation images in common "
        f"with version {holder.number} [{difference.low:+.2%}, {difference.high:+.2%}]"
    )
    return difference.value >= 0, said

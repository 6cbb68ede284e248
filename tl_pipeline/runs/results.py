"""What a run's record says of its evaluations and of its split."""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from tl_pipeline.data import split_counts
from tl_pipeline.data.split_report import (
    NearDuplicateFindings,
    Shortcut,
    SplitReport,
)
from tl_pipeline.data.splits import FOLDS, VALIDATION
from tl_pipeline.encoders import labels
from tl_pipeline.evaluation.choice import UNKNOWN, Cost
from tl_pipeline.runs import records, shortcuts
from tl_pipeline.runs.controls import Controls
from tl_pipeline.runs.records import Result, RunRecord
from tl_pipeline.score import Score
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.tables import DUPLICATES, MANIFEST, METRICS


def results(
    store: Store,
    evaluations: Sequence[Artifact],
    best: str,
    controls: Mapping[str, Controls],
    costs: Mapping[str, Cost],
) -> list[Result]:
    """All results: the best, the candidates and the controls, the better first.

    ``best`` is the key of the chosen evaluation, ``controls`` are those of ``pair``;
    ``costs`` are by key of evaluation.
    """
    order = {"best": 0, "candidate": 1, "control": 2}
    found = [
        _result(store, evaluation, best, controls, costs) for evaluation in evaluations
    ]
    return sorted(told_apart(found), key=lambda r: (order[r.role], -r.held_out.value))


def told_apart(found: Sequence[Result]) -> list[Result]:
    """``found`` with labels that differ where encoders do; see ``labels.unique``.

    Those of averaged heads stay, which name several encoders or count them.
    """
    keys: dict[str, dict[str, str]] = {}
    for result in found:
        if not result.members:
            names = keys.setdefault(result.encoder, {})
            names[result.encoder_key] = result.encoder
    return [
        result
        if result.members
        else result.model_copy(
            update={"encoder": labels.unique(keys[result.encoder])[result.encoder_key]}
        )
        for result in found
    ]


def split_report(store: Store, manifest: Artifact, dataset: str) -> SplitReport:
    """How ``manifest`` is split, and what changed since the last run on ``dataset``.

    Call it before ``records.write``. If the last run's manifest is gone, it is as if
    there had been no run.
    """
    last = records.latest(store, dataset)
    before = store.find("manifests", last.manifest) if last else None

    def images(of: Artifact) -> pa.Table:
        return tables.read(MANIFEST, store.path(of), split_counts.COLUMNS)

    return split_counts.describe(
        images(manifest),
        tables.read(DUPLICATES, store.path(manifest)),
        images(before) if before else None,
    ).model_copy(
        update={
            "near_duplicates": near_duplicates(store, manifest),
            "shortcut": _shortcut(store, manifest, last),
        }
    )


def _shortcut(
    store: Store, manifest: Artifact, last: RunRecord | None
) -> Shortcut | None:
    """What files tell of their labels; as the last run found it, if that knew them."""
    known = last.split_report if last and last.manifest == manifest.key else None
    if known and known.shortcut:
        return known.shortcut
    folder = store.path(manifest)
    if tables.read(MANIFEST, folder, ("width",))["width"].null_count:
        return None  # texts, or vectors
    return shortcuts.look(tables.read(MANIFEST, folder, shortcuts.COLUMNS))


def near_duplicates(store: Store, manifest: Artifact) -> NearDuplicateFindings | None:
    """What audit found in ``manifest``; None where nobody looked."""
    found = store.provenance(manifest).get("near_duplicates")
    return NearDuplicateFindings.model_validate(found) if found else None


def _result(
    store: Store,
    evaluation: Artifact,
    best: str,
    controls: Mapping[str, Controls],
    costs: Mapping[str, Cost],
) -> Result:
    provenance = store.provenance(evaluation)
    metrics = tables.read(METRICS, store.path(evaluation)).to_pylist()
    chosen = {
        row["split"]: row
        for row in metrics
        if row["chosen"] and row["metric"] == "accuracy"
    }
    role = "control" if provenance["params"]["control"] else "candidate"
    cost = costs.get(evaluation.key, UNKNOWN)
    paired = controls.get(evaluation.key, Controls())
    return Result(
        evaluation=evaluation.key,
        encoder=chosen["test"]["encoder"],
        encoder_key=chosen["test"]["encoder_key"],
        head=chosen["test"]["head"],
        role="best" if evaluation.key == best else role,
        untrained=paired.untrained,
        by_image=paired.by_image,
        folds=_score(chosen[FOLDS]) if FOLDS in chosen else None,
        validation=_score(chosen[VALIDATION]) if VALIDATION in chosen else None,
        test=_score(chosen["test"]),
        test_images=chosen["test"]["images"],
        milliseconds=cost.milliseconds,
        bytes=cost.bytes,
        members=provenance.get("members", []),
    )


def _score(row: Mapping[str, float]) -> Score:
    return Score(value=row["value"], low=row["low"], high=row["high"])

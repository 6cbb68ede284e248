"""A run of the pipeline as MLflow is to show it, read from its evaluations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from tl_pipeline.config.specs import SearchSpec
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.keys import digest
from tl_pipeline.store.tables import METRICS


@dataclass(frozen=True)
class Candidate:
    """The chosen configuration of one head on one encoder.

    ``role`` is best, candidate or control. ``metrics`` are by split and metric:
    ``test_accuracy``.
    """

    evaluation: str
    encoder: str
    head: str
    role: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class LoggedRun:
    """A run with its candidates; ``images`` counts those of its manifest by split.

    ``evaluations`` stands for those of all candidates: a run is logged once for them.
    """

    dataset: str
    manifest: str
    images: Mapping[str, int]
    candidates: tuple[Candidate, ...]
    params: Mapping[str, str]
    started: datetime
    evaluations: str


def read(
    store: Store,
    dataset: str,
    manifest: str,
    images: Mapping[str, int],
    evaluations: Sequence[str],
    best: str,
    params: Mapping[str, str],
    started: datetime,
) -> LoggedRun | None:
    """The run with these keys; None if one of its evaluations is gone."""
    found = [store.find("evaluations", key) for key in evaluations]
    candidates = [candidate(store, one, best) for one in found if one]
    if len(candidates) < len(found):
        return None
    return LoggedRun(
        dataset=dataset,
        manifest=manifest,
        images=images,
        candidates=tuple(candidates),
        params=params,
        started=started,
        evaluations=fingerprint(evaluations),
    )


def candidate(store: Store, evaluation: Artifact, best: str) -> Candidate:
    """What the chosen configuration of ``evaluation`` is, and how good."""
    rows = tables.read(METRICS, store.path(evaluation)).to_pylist()
    chosen = [row for row in rows if row["chosen"]]
    control = store.provenance(evaluation)["params"]["control"]
    role = "control" if control else "candidate"
    return Candidate(
        evaluation=evaluation.key,
        encoder=chosen[0]["encoder"],
        head=chosen[0]["head"],
        role="best" if evaluation.key == best else role,
        metrics={f"{row['split']}_{row['metric']}": row["value"] for row in chosen},
    )


def fingerprint(evaluations: Sequence[str]) -> str:
    """Stands for the evaluations with these keys, in any order."""
    return digest(sorted(evaluations))


def params(
    seed: int, search: SearchSpec, calibration: str, error: float
) -> dict[str, str]:
    """What a run was asked for."""
    return {
        "seed": str(seed),
        "search": search.short(),
        "calibration": calibration,
        "error": str(error),
    }

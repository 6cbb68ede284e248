"""The record of every finished run: which artifacts it used, and what it found."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from tl_pipeline.config.specs import RunSpec
from tl_pipeline.data import split_counts
from tl_pipeline.data.split_report import Leakage, NearDuplicateFindings, SplitReport
from tl_pipeline.data.splits import FOLDS
from tl_pipeline.encoders import concat
from tl_pipeline.evaluation.comparison import paired_difference
from tl_pipeline.evaluation.decisions import Decisions
from tl_pipeline.runs.planning import ONE_BY_ONE, Step
from tl_pipeline.score import Score
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.files import write_atomically
from tl_pipeline.store.keys import keys_in
from tl_pipeline.store.tables import DUPLICATES, MANIFEST, METRICS, PREDICTIONS


class ResultMember(BaseModel):
    """One of several heads that are averaged, and how often it counts."""

    evaluation: str
    encoder: str
    head: str
    times: int


class Result(BaseModel):
    """The chosen configuration of one head on one encoder, scored by accuracy.

    ``members`` are the heads whose probabilities it averages, if it does. ``folds`` is
    the score on training images that folds left out, if cross-validation chose.
    """

    evaluation: str
    encoder: str
    head: str
    role: str
    folds: Score | None = None
    validation: Score
    test: Score
    test_images: int
    members: list[ResultMember] = []


class JointEncoder(BaseModel):
    """An encoder made of several; ``members`` are their keys."""

    key: str
    label: str
    members: list[str]


class Registered(BaseModel):
    """The model that the run's best result stands for."""

    name: str
    version: int
    model: str
    champion: bool
    reason: str


class RunRecord(BaseModel):
    """One run of the pipeline, as ``runs/<dataset>/<run_id>.json`` keeps it.

    Records of older versions have no ``split_report`` and no ``decisions``. ``joints``
    are the encoders that have no embeddings of their own in the store. ``chosen`` tells
    in words by what the best was chosen; in older records it is None.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str
    dataset: str
    started: datetime
    finished: datetime
    spec: RunSpec
    steps: list[Step]
    manifest: str
    images: int
    quarantined: int
    duplicates: int
    split_report: SplitReport | None = None
    results: list[Result]
    gain: Score | None
    decisions: Decisions | None = None
    registered: Registered
    joints: list[JointEncoder] = []
    chosen: str | None = None

    @property
    def best(self) -> Result:
        """The candidate that was chosen: see ``choice.best``."""
        return next(r for r in self.results if r.role == "best")


def new_run_id() -> str:
    """Sorts by time, to the millisecond; two runs of one still differ."""
    now = datetime.now(UTC)
    milliseconds = now.microsecond // 1000
    return f"{now:%Y%m%dT%H%M%S}{milliseconds:03d}-{uuid.uuid4().hex[:6]}"


def write(store: Store, record: RunRecord) -> Path:
    """Publish ``record``; from then on it is what the next run compares with.

    In an object store everything that it names is there before it is. A collection that
    did not see the record may remove some of it meanwhile, so it is looked at again.
    """
    file = store.root / "runs" / record.dataset / f"{record.run_id}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    text = record.model_dump_json(indent=1)
    store.mirror.settle()
    store.keep(keys_in(text))
    with store.mirror.sending(file):
        write_atomically(file, text)
    store.keep(keys_in(text))
    return file


def latest(store: Store, dataset: str) -> RunRecord | None:
    """The last finished run on ``dataset``, if there was one."""
    folder = store.root / "runs" / dataset
    there = store.mirror.listing(folder)
    store.mirror.fetch(folder / name for name in sorted(there)[-1:])
    files = sorted(folder.glob("*.json"))
    return RunRecord.model_validate_json(files[-1].read_text()) if files else None


def every(store: Store) -> list[RunRecord]:
    """All finished runs on all datasets, oldest first."""
    store.mirror.fetch_folder(store.root / "runs")
    files = sorted((store.root / "runs").glob("*/*.json"), key=lambda file: file.name)
    return [RunRecord.model_validate_json(file.read_text()) for file in files]


def latest_of_each(records: Iterable[RunRecord]) -> dict[str, RunRecord]:
    """The last of ``records``, which are oldest first, of every dataset."""
    return {record.dataset: record for record in records}


def keys_used(record: RunRecord | None) -> dict[tuple[str, str], Mapping[str, str]]:
    """(stage, subject) -> keys of ``record``: see ``planning.Context.previous``."""
    steps = record.steps if record else []
    return {(step.stage, step.subject): step.keys for step in steps}


def near_duplicates(store: Store, manifest: Artifact) -> NearDuplicateFindings | None:
    """What audit found in ``manifest``; None where nobody looked."""
    found = store.provenance(manifest).get("near_duplicates")
    return NearDuplicateFindings.model_validate(found) if found else None


def leakage(found: Sequence[Result]) -> Leakage | None:
    """What the control that was split image by image says, beside the same head.

    ``found`` has the best first; None without such a control.
    """

    def family(result: Result) -> str:
        return result.head.partition("(")[0]

    controls = {(r.encoder, family(r)): r for r in found if r.role == "control"}
    for result in found:
        control = controls.get((f"{result.encoder} ({ONE_BY_ONE})", family(result)))
        if control:
            return Leakage(
                head=result.head,
                encoder=result.encoder,
                by_image=control.validation,
                by_group=result.validation,
                test=result.test,
            )
    return None


def splits(store: Store, manifest: Artifact, dataset: str) -> SplitReport:
    """How ``manifest`` is split, and what changed since the last run on ``dataset``.

    Call it before ``write``. If the last run's manifest is gone, it is as if there had
    been no run.
    """
    last = latest(store, dataset)
    before = store.find("manifests", last.manifest) if last else None

    def images(of: Artifact) -> pa.Table:
        return tables.read(MANIFEST, store.path(of), split_counts.COLUMNS)

    return split_counts.describe(
        images(manifest),
        tables.read(DUPLICATES, store.path(manifest)),
        images(before) if before else None,
    ).model_copy(update={"near_duplicates": near_duplicates(store, manifest)})


def results(
    store: Store, evaluations: Sequence[Artifact], best: str, seed: int
) -> tuple[list[Result], Score | None]:
    """All results, best first, and the gain by transfer of the best one.

    The gain is its test accuracy minus that of the untrained twin (same network and
    layer, random weights, same head; of averaged heads: the twins' heads averaged the
    same way), with a paired interval; None without a twin.
    """
    found = [_result(store, evaluation, best) for evaluation in evaluations]
    order = {"best": 0, "candidate": 1, "control": 2}
    found.sort(key=lambda r: (order[r.role], -r.validation.value))
    by_key = {evaluation.key: evaluation for evaluation in evaluations}
    twin = _twin(store, by_key, best)
    if twin is None:
        return found, None
    mine, theirs = _right(store, by_key[best], twin)
    difference = paired_difference(mine, theirs, seed)
    return found, Score(
        value=difference.value, low=difference.low, high=difference.high
    )


def _result(store: Store, evaluation: Artifact, best: str) -> Result:
    provenance = store.provenance(evaluation)
    metrics = tables.read(METRICS, store.path(evaluation)).to_pylist()
    chosen = {
        row["split"]: row
        for row in metrics
        if row["chosen"] and row["metric"] == "accuracy"
    }
    role = "control" if provenance["params"]["control"] else "candidate"
    return Result(
        evaluation=evaluation.key,
        encoder=chosen["test"]["encoder"],
        head=chosen["test"]["head"],
        role="best" if evaluation.key == best else role,
        folds=_score(chosen[FOLDS]) if FOLDS in chosen else None,
        validation=_score(chosen["validation"]),
        test=_score(chosen["test"]),
        test_images=chosen["test"]["images"],
        members=provenance.get("members", []),
    )


def _score(row: Mapping[str, float]) -> Score:
    return Score(value=row["value"], low=row["low"], high=row["high"])


def _twin(store: Store, evaluations: dict[str, Artifact], best: str) -> Artifact | None:
    about = {
        key: store.provenance(evaluation)["params"]
        for key, evaluation in evaluations.items()
    }
    for key, other in about.items():
        if key != best and _untrained(other, about[best]):
            return evaluations[key]
    return None


def _untrained(other: Mapping[str, Any], mine: Mapping[str, Any]) -> bool:
    """Whether the evaluation with the parameters ``other`` is of the untrained twin."""
    if other["family"] != mine["family"]:
        return False
    if "encoder" not in mine:  # averaged heads, of which there is one control
        return other["control"]
    labels = concat.labels(other["encoder"])
    names, own = (
        [label.partition(" ")[0] for label in concat.labels(about["encoder"])]
        for about in (other, mine)
    )
    return names == own and all(" random:" in label for label in labels)


def _right(store: Store, *evaluations: Artifact) -> list[np.ndarray]:
    """Whether each test image that all scored, in the order of ids, is right."""
    found = []
    for evaluation in evaluations:
        rows = tables.read(PREDICTIONS, store.path(evaluation)).to_pandas()
        rows = rows[rows["split"] == "test"].set_index("image_id").sort_index()
        found.append(rows["label"] == rows["predicted"])
    both = found[0].index
    for other in found[1:]:
        both = both.intersection(other.index)
    return [right.loc[both].to_numpy() for right in found]

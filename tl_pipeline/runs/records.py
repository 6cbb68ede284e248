"""The record of every finished run: which artifacts it used, and what it found."""

import json
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tl_pipeline import progress
from tl_pipeline.config.specs import RunSpec
from tl_pipeline.data.split_report import SplitReport
from tl_pipeline.evaluation.choice import Comparison
from tl_pipeline.evaluation.decisions import Decisions
from tl_pipeline.evaluation.drift import Drift
from tl_pipeline.runs.finetunings import FinetuningResult
from tl_pipeline.runs.planning import Step
from tl_pipeline.score import Score
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.checks import read_json
from tl_pipeline.store.files import write_atomically

RecordT = TypeVar("RecordT", bound="Record")


class ResultMember(BaseModel):
    """One of several heads that are averaged, and how often it counts."""

    evaluation: str
    encoder: str
    head: str
    times: int


class Result(BaseModel):
    """The chosen configuration of one head on one encoder, scored by accuracy.

    ``members`` are the heads whose probabilities it averages, if it does. ``folds`` is
    the score on images that folds left out, if cross-validation chose, ``validation``
    that on validation images, if they did; older records may have both. ``untrained``
    and ``by_image`` are the keys of the evaluations of its controls: see
    ``controls.Controls``. Older records have neither them nor ``encoder_key``.
    ``milliseconds`` is what its encoders take for an image on the machine that embedded
    it last, ``bytes`` what they store of it; None where nothing was measured.
    """

    evaluation: str
    encoder: str
    encoder_key: str = ""
    head: str
    role: str
    untrained: str | None = None
    by_image: str | None = None
    folds: Score | None = None
    validation: Score | None = None
    test: Score
    test_images: int
    milliseconds: float | None = None
    bytes: int | None = None
    members: list[ResultMember] = []

    @property
    def held_out(self) -> Score:
        """The score by which it was compared with others."""
        found = self.folds or self.validation
        assert found  # noqa: S101 - every result has one
        return found


class JointEncoder(BaseModel):
    """An encoder made of several; ``members`` are their keys."""

    key: str
    label: str
    members: list[str]


class Registered(BaseModel):
    """What the registry says of the model that the run's best result stands for.

    It was ``promoted`` if this run made it champion. It is not ``comparable`` where the
    champion stayed as nothing could be compared.
    """

    name: str
    version: int
    model: str
    champion: bool
    promoted: bool = False
    reason: str
    comparable: bool = True


class TunedEncoder(BaseModel):
    """An encoder that a sample judged; ``behind`` is None for the best of them.

    ``seconds_per_image`` is None where it was never measured.
    """

    key: str
    encoder: str
    probe: Score
    behind: Score | None
    seconds_per_image: float | None


class Tuning(BaseModel):
    """The encoder that was chosen for a run, and what it was compared with.

    ``question`` says in a digest between what was chosen. ``spec`` is how the chosen
    one is written, ``key`` its key. ``sampled`` of ``trained`` training images judged.
    ``dropped`` were behind on a part of them, ``unaffordable`` did not fit the budget.
    """

    question: str
    spec: str
    key: str
    chosen: datetime
    trained: int
    sampled: int
    candidates: list[TunedEncoder]
    dropped: list[str]
    unaffordable: list[str]

    @property
    def label(self) -> str:
        """The name of the chosen encoder."""
        return next(one.encoder for one in self.candidates if one.key == self.key)


class Record(BaseModel):
    """What the record of a run and that of a batch have in common.

    ``folder`` is the folder of the store with all records of a kind. ``source`` is the
    local path that the dataset was read from, None in older records.
    """

    model_config = ConfigDict(frozen=True)

    folder: ClassVar[str]

    run_id: str
    dataset: str
    started: datetime
    finished: datetime
    steps: list[Step]
    manifest: str
    images: int
    quarantined: int
    duplicates: int
    source: str | None = None


class BatchRecord(Record):
    """One batch of predictions, as ``batches/<dataset>/<run_id>.json`` keeps it.

    ``version`` of the model ``name``, whose key is ``model``, predicted ``new`` of the
    ``images``, and all others before. ``predictions`` has the keys of all predictions
    of images of this dataset that count, the oldest first, by the key of the model.
    ``drift`` tells how the new images differ from those of the model's test; it is
    empty where they are too few.
    """

    folder: ClassVar[str] = "batches"

    name: str
    version: int
    model: str
    new: int
    predictions: dict[str, list[str]]
    drift: list[Drift] = []


class RunRecord(Record):
    """One run of the pipeline, as ``runs/<dataset>/<run_id>.json`` keeps it.

    Records of older versions have no ``split_report`` and no ``decisions``. ``joints``
    are the encoders that have no embeddings of their own in the store. ``chosen`` tells
    in words by what the best was chosen; ``comparisons`` are of all other candidates
    with the one that held-out images rank highest. Older records have neither. With
    ``tuning`` the backbones of ``spec`` are what it chose. ``tested`` names each
    candidate that this run or one before it scored on test images of the dataset; of
    runs before this was kept, only their last counts.
    """

    folder: ClassVar[str] = "runs"

    spec: RunSpec
    split_report: SplitReport | None = None
    results: list[Result]
    finetunings: list[FinetuningResult] = []
    gain: Score | None
    decisions: Decisions | None = None
    registered: Registered
    joints: list[JointEncoder] = []
    chosen: str | None = None
    comparisons: list[Comparison] = []
    tuning: Tuning | None = None
    tested: list[str] = []

    @property
    def best(self) -> Result:
        """The candidate that was chosen: see ``choice.chosen``."""
        return next(r for r in self.results if r.role == "best")


def new_run_id() -> str:
    """Sorts by time, to the millisecond; two runs of one still differ."""
    now = datetime.now(UTC)
    milliseconds = now.microsecond // 1000
    return f"{now:%Y%m%dT%H%M%S}{milliseconds:03d}-{uuid.uuid4().hex[:6]}"


def write(store: Store, record: Record) -> Path:
    """Publish ``record``; from then on it is what the next run compares with.

    In an object store everything that it names is there before it is.
    """
    file = store.root / record.folder / record.dataset / f"{record.run_id}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    text = record.model_dump_json(indent=1)
    store.mirror.settle()
    with store.mirror.sending(file):
        write_atomically(file, text)
    return file


def note_refused(store: Store, dataset: str, manifest: str) -> None:
    """Note the manifest of a run that was refused, and so leaves no record.

    Its quarantine can be read until a later run is finished or refused.
    """
    folder = store.root / "refused" / dataset
    store.mirror.remove_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{new_run_id()}.json"
    with store.mirror.sending(file):
        write_atomically(file, json.dumps({"manifest": manifest}))


def last_manifests(store: Store, finished: Iterable[Record]) -> dict[str, str]:
    """Dataset -> key of the manifest of its last run, finished or refused.

    ``finished`` has the last record of each dataset.
    """
    store.mirror.fetch_folder(store.root / "refused")
    last = {record.dataset: (record.run_id, record.manifest) for record in finished}
    for file in sorted((store.root / "refused").glob("*/[!.]*.json")):
        name, about = file.parent.name, read_json(file)
        later = name not in last or file.stem > last[name][0]
        if about and later and store.find("manifests", about["manifest"]):
            last[name] = (file.stem, about["manifest"])
    return {name: manifest for name, (_, manifest) in last.items()}


def latest(store: Store, dataset: str) -> RunRecord | None:
    """The last finished run on ``dataset`` with a readable record, if there is one."""
    return _latest(store, dataset, RunRecord)


def latest_batch(store: Store, dataset: str) -> BatchRecord | None:
    """The last batch of ``dataset`` with a readable record, if there is one."""
    return _latest(store, dataset, BatchRecord)


def latest_batches(store: Store) -> dict[str, BatchRecord]:
    """The last batch of each dataset that has one."""
    batches = store.root / BatchRecord.folder
    store.mirror.fetch_folder(batches)
    found = {f.name: latest_batch(store, f.name) for f in sorted(batches.glob("*/"))}
    return {name: record for name, record in found.items() if record}


def _latest(store: Store, dataset: str, kind: type[RecordT]) -> RecordT | None:
    folder = store.root / kind.folder / dataset
    there = store.mirror.listing(folder)
    store.mirror.fetch(folder / name for name in sorted(there)[-1:])
    for file in sorted(folder.glob("*.json"), reverse=True):
        if record := _read(file, kind):
            return record
    return None


def last_tuning(store: Store, dataset: str, question: str) -> Tuning | None:
    """What the last run on ``dataset`` chose that had this ``question``."""
    folder = store.root / "runs" / dataset
    store.mirror.fetch_folder(folder)
    for file in sorted(folder.glob("*.json"), reverse=True):
        record = _read(file, RunRecord)
        if record and record.tuning and record.tuning.question == question:
            return record.tuning
    return None


def every(store: Store) -> list[RunRecord]:
    """All finished runs on all datasets, oldest first.

    A record that cannot be read is skipped, and that is said in one line.
    """
    return _every(store, RunRecord)


def every_batch(store: Store) -> list[BatchRecord]:
    """The same of all finished batches."""
    return _every(store, BatchRecord)


def _every(store: Store, kind: type[RecordT]) -> list[RecordT]:
    folder = store.root / kind.folder
    store.mirror.fetch_folder(folder)
    files = sorted(folder.glob("*/*.json"), key=lambda file: file.name)
    return [record for file in files if (record := _read(file, kind))]


def _read(file: Path, kind: type[RecordT]) -> RecordT | None:
    """The record in ``file``; None if it is damaged or of a newer version."""
    try:
        return kind.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None  # collected meanwhile
    except ValidationError as errors:
        first = errors.errors()[0]
        where = ".".join(map(str, first["loc"]))
        why = f"{where}: {first['msg']}" if where else first["msg"]
        progress.notice(f"skipped the run record {file}, which cannot be read: {why}")
        return None


def latest_of_each(records: Iterable[RunRecord]) -> dict[str, RunRecord]:
    """The last of ``records``, which are oldest first, of every dataset."""
    return {record.dataset: record for record in records}


def tested(last: RunRecord | None, found: Iterable[Result]) -> list[str]:
    """Every candidate that was scored on test images until now, each once.

    Args:
        last: the record of the run before, with what it and those before it scored.
        found: what this run scored.
    """
    before = last.tested if last else []
    results = [*(last.results if last else []), *found]
    names = (
        f"{result.head} on {result.encoder}"
        for result in results
        if result.role != "control"
    )
    return [*dict.fromkeys([*before, *names])]


def keys_used(record: Record | None) -> dict[tuple[str, str], Mapping[str, str]]:
    """(stage, subject) -> keys of ``record``: see ``planning.Workspace``."""
    steps = record.steps if record else []
    return {(step.stage, step.subject): step.keys for step in steps}

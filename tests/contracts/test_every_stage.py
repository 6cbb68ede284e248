"""What every stage promises, on a real run over a small folder."""

import importlib
import os
import pkgutil
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tl_pipeline.config.specs import RunSpec
from tl_pipeline.config.split_specs import NearDuplicatesSpec
from tl_pipeline.encoders import encoder
from tl_pipeline.pipeline import stages, wiring
from tl_pipeline.pipeline.stage import Stage
from tl_pipeline.pipeline.wiring import Work
from tl_pipeline.runs.planning import LOST, ONE_BY_ONE, Outcome, Step
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.tables import (
    DUPLICATES,
    HELD_OUT,
    MANIFEST,
    METRICS,
    PREDICTIONS,
    QUARANTINE,
    SEARCH,
)

STAGES = {
    name: importlib.import_module(f"{stages.__name__}.{name}")
    for _, name, _ in pkgutil.iter_modules(stages.__path__)
}
every_stage = pytest.mark.parametrize("stage", list(STAGES))
# The others are of a batch: tests/pipeline/test_batch.py, test_drift.py.
OF_A_RUN = [n for n in STAGES if n not in {"predict", "reference", "compare"}]
every_stage_of_a_run = pytest.mark.parametrize("stage", OF_A_RUN)


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "compare"])
def test_a_stage_that_writes_has_a_version(stage: str):
    """The vectors of one encoder are versioned with it: its key names their folder."""
    module = encoder if stage == "embed" else STAGES[stage]
    assert isinstance(module.VERSION, int)
    assert module.VERSION >= 1


@every_stage
def test_a_stage_is_a_frozen_value_that_plans_and_runs(stage: str):
    found = getattr(STAGES[stage], stage.capitalize())
    assert found.__dataclass_params__.frozen
    assert found.__doc__
    assert {"title", "plan", "run"} <= set(dir(found))


@every_stage
def test_a_stage_says_what_it_reads_and_writes(stage: str):
    said = STAGES[stage].__doc__ or ""
    assert said.lower().startswith(f"{stage}: ")
    assert "Reads " in said
    assert "Writes " in said or "Adds " in said


@dataclass(frozen=True)
class Ran:
    """A finished run: the folder of its images, its store and its record."""

    photos: Path
    root: Path
    record: RunRecord


def work(photos: Path, store: Store) -> Work:
    spec = RunSpec.model_validate(
        {
            "dataset": str(photos),
            "backbones": ["lenet5"],
            "heads": ["logistic:C=0.01/0.1", "nearest_centroid:whiten=false"],
            "finetune": ["blocks=1,epochs=1,refit=false"],
            "search": "cross_validation:folds=3",
            "ensemble": "greedy",
        }
    )
    prepared = wiring.prepare(spec, store)
    # That every stage has something to do.
    near = NearDuplicatesSpec(action="keep_together")
    dataset = prepared.dataset.model_copy(update={"near_duplicates": near})
    return replace(prepared, dataset=dataset)


@pytest.fixture(scope="session")
def photos(
    tmp_path_factory: pytest.TempPathFactory, crops: Callable[[str, int], Image.Image]
) -> Path:
    """The images of ``folder``, old enough for a memo to trust them, and one broken."""
    root = tmp_path_factory.mktemp("stages") / "photos"
    for label in ("china", "flower"):
        (root / label).mkdir(parents=True)
        for number in range(30):
            crops(label, number).save(root / label / f"{number:03d}.jpg", quality=90)
    (root / "china" / "broken.jpg").write_bytes(b"no image")
    for file in root.rglob("*.jpg"):
        os.utime(file, (1_600_000_000, 1_600_000_000))
    return root


@pytest.fixture(scope="session")
def ran(photos: Path) -> Ran:
    store = Store.open(photos.parent / "store")
    return Ran(photos, store.root, wiring.run(work(photos, store)))


@pytest.fixture
def copied(ran: Ran, tmp_path: Path) -> Store:
    """A copy of the store after the run, to be damaged."""
    shutil.copytree(ran.root, tmp_path / "store")
    return Store.open(tmp_path / "store")


def listing(root: Path) -> dict[str, tuple[int, int]]:
    """Size and time of modification of every file below ``root``.

    The time of a folder says when a run last used it.
    """
    found = ((path, path.stat()) for path in sorted(root.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(root)): (stat.st_size, stat.st_mtime_ns)
        for path, stat in found
    }


def test_a_first_run_carries_out_every_stage(ran: Ran):
    assert {step.stage for step in ran.record.steps} == set(OF_A_RUN)
    assert not any(step.cached for step in ran.record.steps)
    assert (ran.record.images, ran.record.quarantined) == (60, 1)


@every_stage_of_a_run
def test_after_a_run_a_stage_is_planned_as_cached(ran: Ran, stage: str):
    steps = wiring.plan(work(ran.photos, Store.open(ran.root)))
    mine = [step for step in steps if step.stage == stage]
    assert mine
    assert all(step.cached for step in mine)
    assert [s.keys for s in mine] == [
        s.keys for s in ran.record.steps if s.stage == stage
    ]


def test_plan_foretells_the_steps_of_a_run(ran: Ran, tmp_path: Path):
    """But the control by image finds its trials made: no groups divide these folds."""

    def facts(steps: list[Step]) -> list[tuple[Any, ...]]:
        return [
            (
                s.stage,
                s.subject,
                s.cached,
                s.units if ONE_BY_ONE not in s.subject else 0,
            )
            for s in steps
        ]

    steps = wiring.plan(work(ran.photos, Store.open(tmp_path / "new")))
    assert facts(steps) == facts(ran.record.steps)


def test_a_second_run_computes_nothing(ran: Ran, copied: Store):
    kinds = ("manifests", "embeddings", "heads", "evaluations", "models")
    before = {kind: listing(copied.root / kind) for kind in kinds}
    record = wiring.run(work(ran.photos, copied))
    assert all(step.cached for step in record.steps)
    assert record.results == ran.record.results
    assert {kind: listing(copied.root / kind) for kind in kinds} == before


@pytest.mark.parametrize("state", ["absent", "created", "run"])
def test_plan_writes_nothing(ran: Ran, copied: Store, tmp_path: Path, state: str):
    store = copied if state == "run" else Store.open(tmp_path / "un-run")
    if state == "created":
        store.create()
    prepared = work(ran.photos, store)
    # prepare may remember what it learned of weights; plan itself may nothing
    before = listing(tmp_path)
    assert wiring.plan(prepared)
    assert listing(tmp_path) == before
    assert store.root.exists() == (state != "absent")


def artifacts_of(record: RunRecord, stage: str, kind: str = "") -> Iterator[str]:
    for step in record.steps:
        if step.stage == stage:
            label = {"heads": "fitted", "searches": "search"}.get(kind)
            yield from [step.keys[label]] if label else step.keys.values()


def contents(store: Store, kind: str, key: str) -> dict[str, Any]:
    """Tables and texts of an artifact, without what tells when it was made."""
    folder, read = store.root / kind / key, {}
    for table in (MANIFEST, QUARANTINE, DUPLICATES, SEARCH, METRICS, PREDICTIONS):
        if (folder / table.file).exists():
            names = [n for n in table.schema.names if n != "first_seen"]
            read[table.file] = tables.read(table, folder, names)
    for file in folder.glob("*.json"):
        if file.name != "provenance.json":
            # a model names weights of the store by the place where it was then
            text = file.read_text()
            read[file.name] = re.sub(r'"/[^"]*/weights/', '"weights/', text)
    return read


KINDS = [
    ("ingest", "manifests"),
    ("train", "searches"),
    ("train", "heads"),
    ("evaluate", "evaluations"),
    ("average", "evaluations"),
    ("register", "models"),
]


@pytest.mark.parametrize(("stage", "kind"), KINDS)
def test_a_lost_artifact_makes_exactly_its_stage_run_again(
    ran: Ran, copied: Store, stage: str, kind: str
):
    key = next(artifacts_of(ran.record, stage, kind))
    whole = contents(copied, kind, key)
    assert whole
    shutil.rmtree(copied.root / kind / key)
    others = {folder: listing(folder) for folder in (copied.root / kind).iterdir()}

    prepared = work(ran.photos, copied)
    planned = [step for step in wiring.plan(prepared) if not step.cached]
    assert planned[0].stage == stage
    assert LOST in planned[0].reason
    # what follows lost evaluations cannot be known before they are there
    # the control by image has the same head
    rest = {"evaluations": ["register"], "heads": ["train"]}.get(kind, [])
    assert [step.stage for step in planned[1:]] == rest

    record = wiring.run(prepared)
    (step,) = [step for step in record.steps if not step.cached]
    assert step.stage == stage
    assert LOST in step.reason
    assert key in step.keys.values()
    assert contents(copied, kind, key) == whole
    assert {folder: listing(folder) for folder in others} == others
    assert record.results == ran.record.results
    assert record.registered.version == ran.record.registered.version
    assert all(step.cached for step in wiring.plan(work(ran.photos, copied)))


@pytest.mark.parametrize(
    ("stage", "kind", "name"),
    [
        ("ingest", "manifests", MANIFEST.file),
        ("ingest", "manifests", QUARANTINE.file),
        ("train", "searches", HELD_OUT.file),
        ("train", "heads", "head.safetensors"),
        ("evaluate", "evaluations", METRICS.file),
        ("average", "evaluations", PREDICTIONS.file),
        ("register", "models", "model.json"),
    ],
)
def test_an_artifact_with_one_short_file_is_made_again(
    ran: Ran, copied: Store, stage: str, kind: str, name: str
):
    """Existence is not completeness; and plan must not stumble over what is damaged."""
    key = next(artifacts_of(ran.record, stage, kind))
    whole = contents(copied, kind, key)
    file = copied.root / kind / key / name
    file.write_bytes(file.read_bytes()[:-1])
    planned = [s for s in wiring.plan(work(ran.photos, copied)) if not s.cached]
    assert planned[0].stage == stage
    record = wiring.run(work(ran.photos, copied))
    (step,) = [step for step in record.steps if not step.cached]
    assert step.stage == stage
    assert LOST in step.reason
    assert contents(copied, kind, key) == whole


def test_a_lost_part_costs_only_its_images(ran: Ran, copied: Store):
    key = next(artifacts_of(ran.record, "embed"))
    (part,) = (copied.root / "embeddings" / f"encoder={key}").glob("part-*.parquet")
    part.unlink()
    record = wiring.run(work(ran.photos, copied))
    (step,) = [step for step in record.steps if not step.cached]
    assert (step.stage, step.units) == ("embed", 60)
    assert "60" in step.reason
    assert "gone or damaged" in step.reason
    assert record.results == ran.record.results


@every_stage_of_a_run
def test_a_stage_asked_alone_answers_as_in_the_run(ran: Ran, stage: str):
    """A stage is a value with its inputs: no flow is needed."""
    prepared = work(ran.photos, Store.open(ran.root))
    seen: list[Outcome[Any]] = []

    def perform(asked: Stage[Any]) -> Any:
        outcome = asked.plan()
        if type(asked).__module__ == STAGES[stage].__name__:
            seen.append(outcome)
            again, planned = asked.run(), outcome
            assert again.step.cached if stage != "embed" else again.steps[0].cached
            assert [s.keys for s in again.steps] == [s.keys for s in planned.steps]
        return outcome.output

    wiring.wire(prepared, perform)
    assert seen

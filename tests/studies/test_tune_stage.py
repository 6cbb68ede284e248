"""Tune as a stage of a run: what is chosen, and when it is kept."""

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.studies.test_rank import of, ranked
from tl_pipeline import query
from tl_pipeline.config import catalog
from tl_pipeline.config.encoder_specs import ConcatSpec, EncoderSpec
from tl_pipeline.config.specs import HeadSpec, RunSpec, TuneSpec
from tl_pipeline.errors import CatalogError, InvalidSpec, TooManyRefused
from tl_pipeline.pipeline import wiring
from tl_pipeline.pipeline.stage import Stage
from tl_pipeline.pipeline.stages import ingest
from tl_pipeline.pipeline.stages.ingest import Ingest
from tl_pipeline.pipeline.work import Work
from tl_pipeline.runs.planning import Outcome
from tl_pipeline.runs.records import RunRecord, TunedEncoder, Tuning
from tl_pipeline.store.artifacts import Store
from tl_pipeline.studies import ranking, tune_stage
from tl_pipeline.studies.ranking import Ranking
from tl_pipeline.studies.tune_stage import Tune
from tl_pipeline.studies.tuning import Candidate, Grid, Tuned

NETWORK = "squeezenet1_0:weights=random:0,side=48,precision=fp32"
HOW = "side=32/48,pool=gap,fit=crop"


def spec_of(folder: Path, **changes: Any) -> RunSpec:
    given = {
        "dataset": str(folder),
        "backbones": (EncoderSpec.parse(NETWORK),),
        "heads": (HeadSpec.parse("lda:shrinkage=0.3"),),
        "controls": False,
        "tune": TuneSpec.parse(HOW),
    }
    return RunSpec(**{**given, **changes})


def work_of(
    store: Store, spec: RunSpec, execute: wiring.Execute = wiring.directly
) -> Work:
    prepared = wiring.prepare(spec, store)
    return tune_stage.tuned(prepared, execute, catalog_file=None, download=True)


def looking(stage: Stage[Any]) -> Outcome[Any]:
    return stage.plan()


def run(store: Store, spec: RunSpec) -> RunRecord:
    return wiring.run(work_of(store, spec))


@pytest.mark.parametrize("planning", [False, True])
def test_the_source_is_scanned_once(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch, planning: bool
):
    scans: list[str] = []
    plain = ingest.look

    def counted(source: Any, dataset: Any, *given: Any, **named: Any) -> Any:
        scans.append(dataset.name)
        return plain(source, dataset, *given, **named)

    monkeypatch.setattr(ingest, "look", counted)
    if planning:
        with store.overlay() as overlay:
            steps = wiring.plan(work_of(overlay, spec_of(folder), looking))
    else:
        steps = run(store, spec_of(folder)).steps
    assert len(scans) == 1
    assert [step.stage for step in steps].count("ingest") == 1


def test_the_quarantine_of_a_refused_run_can_be_read(folder: Path, store: Store):
    for file in sorted((folder / "china").iterdir())[:20]:
        file.write_bytes(b"no image")
    with pytest.raises(TooManyRefused):
        run(store, spec_of(folder))
    rows = query.ask(store, "SELECT count(*) AS n FROM quarantine").to_pylist()
    assert rows == [{"n": 20}]


def test_a_run_goes_on_with_what_is_chosen_and_the_next_one_keeps_it(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
):
    with store.overlay() as overlay:
        planned = work_of(overlay, spec_of(folder), looking)
    ingest, step = planned.before
    assert (ingest.stage, ingest.cached) == ("ingest", False)
    assert (step.cached, step.units, planned.tuning) == (False, 2, None)
    assert "2 candidates in 2 passes over " in step.reason
    assert not list(store.root.glob("embeddings/*"))

    first = run(store, spec_of(folder))
    tuning = first.tuning
    assert tuning
    assert [s.short() for s in first.spec.backbones] == [tuning.spec]
    assert {one.key for one in tuning.candidates} >= {tuning.key}
    assert first.best.encoder_key == tuning.key
    assert [(step.stage, step.cached) for step in first.steps[:3]] == [
        ("ingest", False),
        ("tune", False),
        ("embed", False),
    ]

    def never(*_: Any) -> Ranking:
        raise AssertionError("nothing is to be ranked")

    monkeypatch.setattr(ranking, "rank", never)
    _, step = work_of(store, spec_of(folder), looking).before
    assert step.cached
    assert step.reason.startswith(f"{tuning.label} is kept, chosen on ")
    second = run(store, spec_of(folder))
    assert second.tuning == tuning
    assert all(step.cached for step in second.steps)


def test_another_question_is_asked_anew(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
):
    asked = tune_of(folder, store)
    tuning = chosen("incumbent", trained=100, question=asked._question)
    found = {asked._question: tuning}
    monkeypatch.setattr(
        tune_stage.records, "last_tuning", lambda *given: found.get(given[2])
    )
    assert asked._last == tuning
    other = TuneSpec.parse("side=32/48,pool=gap,images=7")
    assert dataclasses.replace(asked, how=other)._last is None


def chosen(key: str, trained: int, question: str = "") -> Tuning:
    return Tuning(
        question=question,
        spec=NETWORK,
        key=key,
        chosen=datetime(2026, 1, 2, tzinfo=UTC),
        trained=trained,
        sampled=trained,
        candidates=[],
        dropped=[],
        unaffordable=[],
    )


def tune_with(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch, last: Tuning | None
) -> Tune:
    monkeypatch.setattr(Tune, "_last", last)
    return tune_of(folder, store)


def tune_of(folder: Path, store: Store) -> Tune:
    work = wiring.prepare(spec_of(folder), store)
    manifest = Ingest(work.at, work.dataset).run().output
    return Tune(work, TuneSpec.parse(HOW), manifest)


@pytest.mark.parametrize(
    ("trained", "kept"),
    [(100, True), (124, True), (125, False), (81, True), (80, False)],
)
def test_it_is_kept_until_there_are_a_quarter_more_or_fewer_images(
    folder: Path,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    trained: int,
    kept: bool,
):
    last = chosen("key", trained=100)
    last = last.model_copy(
        update={"candidates": [TunedEncoder.model_validate(candidate("key"))]}
    )
    tune = tune_with(folder, store, monkeypatch, last)
    sample = ranking.Sample([], [ranking.Drawable("a", "b")] * trained, [], 1)
    looked = tune._look(sample)
    assert looked.step.cached == kept
    if not kept:
        assert looked.step.reason == f"training images: 100 -> {trained}"


def candidate(key: str) -> dict[str, Any]:
    probe = {"value": 0.9, "low": 0.8, "high": 0.95}
    return {
        "key": key,
        "encoder": key,
        "probe": probe,
        "behind": None,
        "seconds_per_image": 0.01,
    }


BEST = ranked("best", 0.95, None, 0.030)
CHEAP = ranked("cheap", 0.94, (-0.01, -0.04, 0.003), 0.010)
MIDDLE = ranked("middle", 0.94, (-0.01, -0.04, 0.003), 0.020)
WORSE = ranked("worse", 0.90, (-0.05, -0.07, -0.02), 0.001)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "cheap"),  # of a tie the cheaper
        ("middle", "middle"),  # a tie, so that it stays
        ("best", "best"),
        ("worse", "cheap"),  # the interval of the difference leaves 0 out
        ("gone", "cheap"),
    ],
)
def test_it_gives_way_only_to_one_that_is_better_by_more_than_chance(
    folder: Path,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    before: str | None,
    after: str,
):
    last = chosen(before, trained=100) if before else None
    tune = tune_with(folder, store, monkeypatch, last)
    rows = (BEST, CHEAP, MIDDLE, WORSE)
    encoder = tune._asked[0][1]
    spec = EncoderSpec.parse(NETWORK)
    grid = Grid({row.key: Candidate(spec, encoder) for row in rows}, {})
    found = tune._chosen(grid, Tuned(of(*rows), ["dropped"], ["dear"]))
    assert found.key == after
    assert found.trained == 2000
    assert (found.dropped, found.unaffordable) == (["dropped"], ["dear"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"backbones": (ConcatSpec.parse(f"{NETWORK},lenet5"),)},
            "tune chooses one encoder, and a concatenation is several",
        ),
    ],
)
def test_a_run_that_cannot_be_tuned_is_refused(
    folder: Path, store: Store, changes: dict[str, Sequence[Any]], said: str
):
    with pytest.raises(InvalidSpec, match=said):
        work_of(store, spec_of(folder, **changes))
    assert not list(store.root.glob("embeddings/*"))


def test_a_split_that_would_hang_on_the_choice_is_refused(
    folder: Path, tmp_path: Path, store: Store
):
    entry = tmp_path / "data_catalog.yaml"
    entry.write_text(
        "version: 1\ndatasets:\n"
        f"  near: {{type: image_folder, path: {folder}, "
        "near_duplicates: {action: keep_together}}\n"
    )
    work = wiring.prepare(spec_of(folder, dataset="near"), store, catalog_file=entry)
    with pytest.raises(InvalidSpec, match="Name the one that compares them"):
        tune_stage.check(work)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("true", TuneSpec()),
        ("false", None),
        ("side=96/128,minutes=5.0", TuneSpec(side=(96, 128), minutes=5)),
        (
            "{pool: [gap, grid2], images: 500}",
            TuneSpec(pool=("gap", "grid2"), images=500),
        ),
    ],
)
def test_a_file_of_a_run_says_how_to_tune(
    tmp_path: Path, text: str, spec: TuneSpec | None
):
    file = tmp_path / "run.yaml"
    file.write_text(f"dataset: digits\ntune: {text}\n")
    assert catalog.load_run(file).tune == spec
    if spec:
        assert TuneSpec.parse(spec.short()) == spec


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("photos", "write true, or what differs: side="),
        ("{side: [7]}", "7 is no side from 8 to 2048"),
        ("minutes=0", "0 is no budget"),
        ("pool=grd2", "Did you mean 'grid2'"),
    ],
)
def test_a_wrong_one_is_one_line_of_the_file(tmp_path: Path, text: str, said: str):
    file = tmp_path / "run.yaml"
    file.write_text(f"dataset: digits\ntune: {text}\n")
    with pytest.raises(CatalogError, match=said) as fault:
        catalog.load_run(file)
    assert str(fault.value).startswith(f"{file}:2: tune")
    assert "\n" not in str(fault.value)

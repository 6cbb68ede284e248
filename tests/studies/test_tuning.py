"""Which side, fit and pooling suit a dataset: grid, rounds, and what is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tl_pipeline.cli import rank_command
from tl_pipeline.config import catalog
from tl_pipeline.config.encoder_specs import EncoderSpec
from tl_pipeline.config.specs import HeadSpec, RunSpec, TuneSpec
from tl_pipeline.embedding import precision
from tl_pipeline.encoders.encoder import Encoder, sharing
from tl_pipeline.errors import DatasetError, InvalidSpec, TransferLearningError
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.pipeline import speeds, wiring, work
from tl_pipeline.pipeline.stages import embed
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.studies import ranking, study, tuning
from tl_pipeline.studies.ranking import Ranking, Sample
from tl_pipeline.studies.study import Study
from tl_pipeline.studies.tuning import Grid

SMALL = "squeezenet1_0:weights=random:0,side=64,precision=fp32"


def prepared(folder: Path, store: Store, *texts: str) -> Study:
    specs = list(map(EncoderSpec.parse, texts))
    return study.prepare(
        str(folder), specs, store, catalog_file=None, seed=0, verify=False
    )


@pytest.fixture
def grid(folder: Path, store: Store) -> Callable[[str, str], Grid]:
    """The grid of an encoder, tuned as a text says; images are cropped."""

    def of(text: str, how: str) -> Grid:
        asked = prepared(folder, store, text)
        spec = EncoderSpec.parse(text)
        return tuning.grid(
            [spec], asked.singles, TuneSpec.parse(f"fit=crop,{how}"), asked
        )

    return of


def sides_and_pools(grid: Grid) -> set[tuple[int | None, str | None]]:
    return {(one.spec.side, one.spec.pool) for one in grid.candidates.values()}


def test_a_grid_has_each_side_and_pool_once_and_says_what_does_not_fit(
    grid: Callable[[str, str], Grid],
):
    found = grid(SMALL, "side=32/64,pool=gap/grid3")
    # gap at 64 is the spec itself
    assert sides_and_pools(found) == {(64, None), (32, "gap"), (64, "grid3")}
    ((why, texts),) = found.refused.items()
    assert texts == [
        "squeezenet1_0:pool=grid3,weights=random:0,side=32,fit=crop,precision=fp32"
    ]
    assert "grid3" in why


@pytest.mark.parametrize(
    ("spec", "how", "fits"),
    [
        (SMALL, "", {None, "squash"}),
        (f"{SMALL},fit=pad", "", {"pad"}),
        (SMALL, "fit=crop/pad", {None, "pad"}),  # None is the spec itself
    ],
)
def test_an_image_is_cropped_or_shown_whole_unless_the_encoder_says_how(
    folder: Path, store: Store, spec: str, how: str, fits: set[str | None]
):
    asked = prepared(folder, store, spec)
    tune = TuneSpec.parse(f"side=64,pool=gap,{how}".rstrip(","))
    found = tuning.grid([EncoderSpec.parse(spec)], asked.singles, tune, asked)
    assert {one.spec.fit for one in found.candidates.values()} == fits
    assert len(found.candidates) == len(fits)


def test_all_of_a_grid_compute_as_the_encoder_itself(
    grid: Callable[[str, str], Grid], monkeypatch: pytest.MonkeyPatch
):
    """To find a precision a network is loaded twice: once is enough for a grid."""
    asked: list[str] = []
    monkeypatch.setattr(
        precision, "choose", lambda encoder, _: asked.append(encoder.label) or encoder
    )
    found = grid(SMALL.replace("fp32", "auto"), "side=32/64,pool=gap/avg+max")
    assert len(asked) == 1
    assert len(found.candidates) == 4
    assert {one.encoder.precision for one in found.candidates.values()} == {"fp32"}


def test_without_sides_those_up_to_the_networks_own_are_tried(
    grid: Callable[[str, str], Grid],
):
    found = grid("squeezenet1_0:weights=random:0,side=128,precision=fp32", "pool=gap")
    assert sides_and_pools(found) == {(128, None), (64, "gap"), (96, "gap")}


def test_a_layer_without_places_has_sides_alone(grid: Callable[[str, str], Grid]):
    found = grid("resnet18:weights=random:0,side=64,precision=fp32", "side=32/64")
    assert sides_and_pools(found) == {(64, None), (32, None)}
    assert sum(map(len, found.refused.values())) == 6
    assert all("no pool at all" in why for why in found.refused)


def test_half_of_many_go_on_from_a_quarter_of_the_sample_to_all_of_it(
    folder: Path,
    store: Store,
    grid: Callable[[str, str], Grid],
    monkeypatch: pytest.MonkeyPatch,
):
    rounds: list[tuple[list[str], int]] = []
    plain = ranking.rank

    def counted(asked: Study, encoders: list[Encoder], sample: Sample) -> Ranking:
        rounds.append(([encoder.key for encoder in encoders], len(sample.drawn)))
        return plain(asked, encoders, sample)

    monkeypatch.setattr(ranking, "rank", counted)
    asked = prepared(folder, store, SMALL)
    encoders = grid(SMALL, "side=32/64,pool=gap/grid2/avg+max").encoders
    found = tuning.tune(asked, encoders, ranking.draw(asked.ingested(), 40))
    (first, few), (last, all_of_them) = rounds
    # 32 px leave too few places for 2 x 2 cells
    assert (len(first), few, len(last), all_of_them) == (5, 10, 3, 40)
    assert set(last) < set(first)
    assert len(found.dropped) == 2
    assert {row.key for row in found.ranking.rows} == set(last)
    assert found.ranking.pick.key in last
    stays = next(key for key in first if key not in last)
    again = tuning.tune(
        asked, encoders, ranking.draw(asked.ingested(), 40), stays=stays
    )
    assert {row.key for row in again.ranking.rows} == {*last, stays}


def test_few_are_compared_at_once(folder: Path, store: Store):
    asked = prepared(folder, store, SMALL)
    found = tuning.tune(asked, asked.singles, ranking.draw(asked.ingested(), 40))
    assert found.dropped == []
    assert found.ranking.sampled == 40


def timed(store: Store, grid: Grid, each: dict[int, float]) -> None:
    """Let the store remember what an image costs at each side, in seconds."""
    for one in grid.candidates.values():
        assert isinstance(one.encoder.preprocess, Preprocess)
        seconds = each[one.encoder.preprocess.crop]
        place = EmbeddingFolder(store, one.encoder.key)
        place.about.mkdir(parents=True)
        speeds.remember_speed(place, speeds.Speed(1 / seconds, 8))


def test_what_does_not_fit_into_the_minutes_is_left_out_and_named(
    folder: Path,
    store: Store,
    grid: Callable[[str, str], Grid],
    capsys: pytest.CaptureFixture[str],
):
    """40 images: 12 s and 28 s at the sides that fit, 60 s at the one that does not."""
    asked = prepared(folder, store, SMALL)
    found = grid(SMALL, "side=32/48/64,pool=gap/avg+max")
    timed(store, found, {32: 0.3, 48: 0.7, 64: 1.5})
    sample = ranking.draw(asked.ingested(), 40)
    tuned = tuning.tune(asked, found.encoders, sample, minutes=1.0)
    large = [e.label for e in found.encoders if e.preprocess.crop == 64]
    assert sorted(tuned.unaffordable) == sorted(large)
    assert len(large) == 2
    kept = {row.encoder for row in tuned.ranking.rows}
    assert len(kept) == 4
    assert kept.isdisjoint(tuned.unaffordable)
    told = "tune: 4 candidates, at most 2 passes over 40 images, about 0.7 min"
    assert told in capsys.readouterr().err


def test_what_judging_takes_counts_too(
    folder: Path,
    store: Store,
    grid: Callable[[str, str], Grid],
    monkeypatch: pytest.MonkeyPatch,
):
    """Embedding takes 4 s a side; judging 1 s a value of the 512, and of the 1,024."""
    asked = prepared(folder, store, SMALL)
    found = grid(SMALL, "side=32/64,pool=gap/avg+max")
    timed(store, found, {32: 0.1, 64: 0.1})
    monkeypatch.setattr(
        ranking, "judging_seconds", lambda widths, _: [1.0 * width for width in widths]
    )
    sample = ranking.draw(asked.ingested(), 40)
    passes = sharing(found.encoders)
    seconds = tuning._estimated(asked, passes, sample, sample.part(10))
    assert list(seconds.values()) == pytest.approx([4 + 512 + 1024] * 2)
    assert tuning.known_seconds(asked, found.encoders, sample) == pytest.approx(3080)
    tuned = tuning.tune(asked, found.encoders, sample, minutes=2000 / 60)
    assert len(tuned.unaffordable) == len(tuned.ranking.rows) == 2


def test_of_many_candidates_half_are_judged_on_the_whole_sample(
    folder: Path,
    store: Store,
    grid: Callable[[str, str], Grid],
    monkeypatch: pytest.MonkeyPatch,
):
    asked = prepared(folder, store, SMALL)
    found = grid(SMALL, "side=32/48/64,pool=gap/avg+max")
    monkeypatch.setattr(
        ranking, "judging_seconds", lambda widths, rows: [1.0 * rows for _ in widths]
    )
    sample = ranking.draw(asked.ingested(), 40)
    passes = sharing(found.encoders)
    seconds = tuning._judging(asked, passes, sample, sample.part(10))
    assert seconds == {encoder.key: 10 + 40 / 2 for encoder in found.encoders}


def test_a_budget_that_fits_nothing_says_what_the_cheapest_takes(
    folder: Path, store: Store, grid: Callable[[str, str], Grid]
):
    asked = prepared(folder, store, SMALL)
    found = grid(SMALL, "side=32/64,pool=gap")
    timed(store, found, {32: 3.0, 64: 9.0})
    sample = ranking.draw(asked.ingested(), 40)
    said = r"minutes=0.5: not one candidate fits .* cheapest takes about 2 min"
    with pytest.raises(InvalidSpec, match=said):
        tuning.tune(asked, found.encoders, sample, minutes=0.5)
    assert not EmbeddingFolder(store, found.encoders[0].key).embedded()


def test_a_network_that_was_never_timed_is_timed_at_its_smallest_side(
    folder: Path,
    store: Store,
    grid: Callable[[str, str], Grid],
    monkeypatch: pytest.MonkeyPatch,
):
    """The others take as much a pixel: 64 px four times as long as 32."""
    asked = prepared(folder, store, SMALL)
    found = grid(SMALL, "side=32/64,pool=gap/avg+max")
    sample = ranking.draw(asked.ingested(), 40)
    calls: list[int] = []

    def filled(_: Store, __: object, together: list[Encoder], some: list) -> None:
        calls.append(len(some))
        place = EmbeddingFolder(store, together[0].key)
        place.about.mkdir(parents=True)
        speeds.remember_speed(place, speeds.Speed(10.0, 8))

    monkeypatch.setattr(embed, "fill", filled)
    passes = sharing(found.encoders)
    seconds = tuning._estimated(asked, passes, sample, sample.part(10))
    assert calls == [10]
    assert sorted(seconds.values()) == pytest.approx([4.0, 16.0], rel=0.01)


def test_the_choice_is_printed_and_written_as_a_run(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    rank_command.tune(
        str(folder),
        backbone=(SMALL,),
        side="32/64",
        pool="gap",
        images=30,
        write=Path("tuned.yaml"),
        store=str(tmp_path / "store"),
    )
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "tl run --config tuned.yaml"
    (chosen,) = catalog.load_run(Path("tuned.yaml")).backbones
    assert isinstance(chosen, EncoderSpec)
    smaller = "squeezenet1_0:pool=gap,weights=random:0,side=32,precision=fp32"
    assert chosen.short() in {SMALL, smaller}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"side": "7"}, "side: 7 is no side from 8 to 2048 pixels"),
        ({"side": "big"}, "side: big is no side"),
        ({"minutes": 0.0}, "minutes: 0 is no budget: give more than 0"),
        ({"minutes": -1.0}, "minutes: -1 is no budget"),
        ({"pool": "grd2"}, "Did you mean 'grid2'"),
        ({"images": 0}, "images: Input should be greater than or equal to 1"),
        ({"backbone": ()}, "name the encoders to rank"),
        ({"backbone": ("squeezenet9",)}, "Did you mean 'squeezenet1_"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_computed(
    folder: Path, tmp_path: Path, wrong: dict[str, Any], said: str
):
    root = tmp_path / "store"
    given = {"backbone": (SMALL,), "store": str(root), **wrong}
    with pytest.raises(TransferLearningError, match=said):
        rank_command.tune(str(folder), **given)
    assert not root.exists()


def test_one_class_is_told(folder: Path, store: Store):
    for file in (folder / "china").iterdir():
        file.unlink()
    with pytest.raises(DatasetError, match="all 30 images are of one class, 'flower'"):
        prepared(folder, store, SMALL).ingested()


def test_a_sample_of_one_image_a_class_says_to_give_more(folder: Path, store: Store):
    asked = prepared(folder, store, SMALL)
    sample = ranking.draw(asked.ingested(), 2)
    with pytest.raises(InvalidSpec, match="Give more --images"):
        tuning.tune(asked, asked.singles, sample)


def test_twenty_images_are_tuned(folder: Path, store: Store):
    for kind in folder.iterdir():
        for file in sorted(kind.iterdir())[10:]:
            file.unlink()
    asked = prepared(folder, store, SMALL)
    sample = ranking.draw(asked.ingested(), 2000)
    found = tuning.tune(asked, asked.singles, sample)
    assert found.ranking.sampled == len(sample.trained) < 20


def test_what_is_no_image_has_no_side(folder: Path, store: Store):
    asked = prepared(folder, store, SMALL)
    (vector,) = work.resolve([EncoderSpec.parse("features")], store)
    assert isinstance(vector, Encoder)
    with pytest.raises(InvalidSpec, match="there is no side to tune"):
        tuning.grid([EncoderSpec.parse("features")], [vector], TuneSpec(), asked)


def test_a_run_says_once_that_its_images_are_small(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
):
    for number in range(24):
        place = tmp_path / "tiny" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).integers(0, 255, (40, 30, 3), np.uint8)
        Image.fromarray(values).save(place / f"{number}.png")
    spec = RunSpec(
        dataset=str(tmp_path / "tiny"),
        backbones=(
            EncoderSpec.parse("squeezenet1_0:weights=random:0,side=128,precision=fp32"),
        ),
        heads=(HeadSpec.parse("lda:shrinkage=0.3"),),
        controls=False,
    )
    told = "images are 30 px, and squeezenet1_0/fire9"
    wiring.run(wiring.prepare(spec, store))
    assert capsys.readouterr().err.count(told) == 1
    wiring.run(wiring.prepare(spec, store))
    assert told not in capsys.readouterr().err


def test_a_dataset_that_says_how_its_files_are_read_can_be_tuned(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """It changes the keys of its encoders."""
    entry = tmp_path / "data_catalog.yaml"
    entry.write_text(
        "version: 1\ndatasets:\n"
        f"  scans: {{type: image_folder, path: {folder}, page: 1}}\n"
    )
    rank_command.tune(
        "scans",
        backbone=("squeezenet1_0:weights=random:0,side=32,precision=fp32",),
        side="32",
        pool="gap",
        images=20,
        store=str(tmp_path / "store"),
        catalog=entry,
    )
    told = capsys.readouterr().out.splitlines()[-1]
    spec = "squeezenet1_0:weights=random:0,side=32,precision=fp32"
    assert told == f"tl run scans --backbone {spec}"

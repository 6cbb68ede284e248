"""Which side and pooling suit a dataset: the grid, the rounds, and what is written."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tl_pipeline.cli import rank_command
from tl_pipeline.config import catalog
from tl_pipeline.config.encoder_specs import EncoderSpec
from tl_pipeline.config.specs import HeadSpec, RunSpec
from tl_pipeline.encoders import concat
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.errors import InvalidSpec, TransferLearningError
from tl_pipeline.pipeline import wiring
from tl_pipeline.store.artifacts import Store
from tl_pipeline.studies import ranking, study, tuning
from tl_pipeline.studies.ranking import Ranking
from tl_pipeline.studies.study import Study

SMALL = "squeezenet1_0:weights=random:0,side=64"


def sides_and_pools(grid: tuning.Grid) -> set[tuple[int | None, str | None]]:
    return {(spec.side, spec.pool) for spec in grid.specs}


def test_a_grid_has_each_side_and_pool_once_and_says_what_does_not_fit(store: Store):
    spec = EncoderSpec.parse(SMALL)
    grid = tuning.grid([spec], [32, 64], ["gap", "grid3"], store)
    # gap at 64 is the spec itself
    assert sides_and_pools(grid) == {(64, None), (32, "gap"), (64, "grid3")}
    ((why, texts),) = grid.refused.items()
    assert texts == ["squeezenet1_0:pool=grid3,weights=random:0,side=32"]
    assert "grid3" in why


def test_without_sides_those_up_to_the_networks_own_are_tried(store: Store):
    spec = EncoderSpec.parse("squeezenet1_0:weights=random:0,side=128")
    grid = tuning.grid([spec], [], ["gap"], store)
    assert sides_and_pools(grid) == {(128, None), (64, "gap"), (96, "gap")}


def test_a_layer_without_places_has_sides_alone(store: Store):
    spec = EncoderSpec.parse("resnet18:weights=random:0,side=64")
    grid = tuning.grid([spec], [32, 64], [], store)
    assert sides_and_pools(grid) == {(64, None), (32, None)}
    assert sum(map(len, grid.refused.values())) == 6
    assert all("no pool at all" in why for why in grid.refused)


def prepared(folder: Path, store: Store, specs: list[EncoderSpec]) -> Study:
    return study.prepare(
        str(folder), specs, store, catalog_file=None, seed=0, verify=False
    )


def test_half_of_many_go_on_from_a_quarter_of_the_sample_to_all_of_it(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
):
    rounds: list[tuple[list[str], int]] = []
    plain = ranking.rank

    def counted(asked: Study, encoders: list[Encoder], images: int) -> Ranking:
        rounds.append(([encoder.key for encoder in encoders], images))
        return plain(asked, encoders, images)

    monkeypatch.setattr(ranking, "rank", counted)
    grid = tuning.grid(
        [EncoderSpec.parse(SMALL)], [32, 64], ["gap", "grid2", "avg+max"], store
    )
    asked = prepared(folder, store, grid.specs)
    encoders = concat.unique_members(asked.encoders)
    found = tuning.tune(asked, encoders, 40)
    (first, few), (last, all_of_them) = rounds
    # 32 px leave too few places for 2 x 2 cells
    assert (len(first), few, len(last), all_of_them) == (5, 10, 3, 40)
    assert set(last) < set(first)
    assert len(found.dropped) == 2
    assert {row.key for row in found.ranking.rows} == set(last)
    assert found.ranking.pick.key in last


def test_few_are_compared_at_once(folder: Path, store: Store):
    spec = EncoderSpec.parse(SMALL)
    asked = prepared(folder, store, [spec])
    found = tuning.tune(asked, concat.unique_members(asked.encoders), 40)
    assert found.dropped == []
    assert found.ranking.sampled == 40


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
    assert chosen.short() in {SMALL, "squeezenet1_0:pool=gap,weights=random:0,side=32"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"side": "7"}, "--side 7 is no side from 8 to 2048 pixels"),
        ({"side": "big"}, "--side big is no side"),
        ({"pool": "grd2"}, "Did you mean 'grid2'"),
        ({"images": 0}, "--images must be at least 1"),
        ({"backbone": ()}, "name the encoders to rank"),
        ({"backbone": ("squeezenet9",)}, "Did you mean 'squeezenet1_"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_computed(
    folder: Path, tmp_path: Path, wrong: dict[str, str], said: str
):
    root = tmp_path / "store"
    given = {"backbone": (SMALL,), "store": str(root), **wrong}
    with pytest.raises(TransferLearningError, match=said):
        rank_command.tune(str(folder), **given)
    assert not root.exists()


def test_one_class_is_told(folder: Path, store: Store):
    for file in (folder / "china").iterdir():
        file.unlink()
    asked = prepared(folder, store, [EncoderSpec.parse(SMALL)])
    with pytest.raises(TransferLearningError, match="class"):
        tuning.tune(asked, concat.unique_members(asked.encoders), 40)


def test_what_is_no_image_has_no_side(store: Store):
    spec = EncoderSpec.parse("features")
    with pytest.raises(InvalidSpec, match="there is no side to tune"):
        tuning.grid([spec], [], [], store)


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
        backbones=(EncoderSpec.parse("squeezenet1_0:weights=random:0,side=128"),),
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
        backbone=("squeezenet1_0:weights=random:0,side=32",),
        side="32",
        pool="gap",
        images=20,
        store=str(tmp_path / "store"),
        catalog=entry,
    )
    told = capsys.readouterr().out.splitlines()[-1]
    assert told == "tl run scans --backbone squeezenet1_0:weights=random:0,side=32"

"""``tl rank`` end to end: order, cost, what is embedded, what is refused."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import Tl, in_this_process
from tests.conftest import REPOSITORY
from tl_pipeline.cli import rank_command
from tl_pipeline.config import catalog
from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.config.specs import EncoderSpec, HeadSpec, RunSpec
from tl_pipeline.encoders import concat
from tl_pipeline.encoders.concat import AnyEncoder
from tl_pipeline.errors import DatasetError, InvalidSpec
from tl_pipeline.pipeline import speeds, wiring, work
from tl_pipeline.pipeline.stages import embed
from tl_pipeline.progress import duration
from tl_pipeline.runs.planning import Workspace
from tl_pipeline.score import Score
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.studies import ranking
from tl_pipeline.studies.ranking import Cost, Ranked, Ranking
from tl_pipeline.studies.study import Study

LETTERS, TWIN = (
    EncoderSpec.parse("lenet5"),
    EncoderSpec.parse("lenet5:weights=random:0"),
)
DIGITS = REPOSITORY / "data_catalog.yaml"


@pytest.fixture
def tl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tl:
    """``tl`` with the catalogue of this repository."""
    return in_this_process(tmp_path, monkeypatch, TL_CATALOG=str(DIGITS))


def rank(store: Store, dataset: str, images: int, *wishes: EncoderSpec) -> Ranking:
    named = Path(dataset).exists()
    entry = catalog.find(dataset, None if named else DIGITS)
    encoders = work.resolve(wishes or (LETTERS, TWIN), store)
    return judged(study(store, entry), encoders, images)


def judged(asked: Study, encoders: Sequence[AnyEncoder], images: int) -> Ranking:
    sample = ranking.draw(asked.ingested(), images)
    return ranking.rank(asked, concat.unique_members(encoders), sample)


def study(store: Store, entry: DatasetSpec) -> Study:
    return Study(Workspace(store), entry, [], seed=0)


def parts(store: Store) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in store.root.glob("embeddings/*/part-*")}


def test_digits_rank_letters_first_and_a_second_call_embeds_nothing(
    tl: Tl, tmp_path: Path
):
    """The table for people and the document for scripts, from one store."""
    request = ("rank", "digits", "--images", 600, "--backbone", TWIN.short())
    request += ("--backbone", "lenet5")
    first = tl(*request, "--json")
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)
    best, second = found["rows"]
    assert (best["encoder"], second["encoder"]) == (
        "lenet5/c5 LETTERS",
        "lenet5/c5 random:0",
    )
    assert best["probe"]["low"] < best["probe"]["value"] < best["probe"]["high"]
    assert best["probe"]["value"] > 0.9
    assert second["behind"]["high"] < 0
    assert (best["tied"], second["tied"]) == (True, False)
    assert (best["published"], second["published"]) == ("89.9 top-1 letters", "")
    assert (found["images"], found["sampled"], found["probed"]) == (1797, 600, 600)
    for row in found["rows"]:
        cost = row["cost"]
        assert not cost["remembered"]
        assert (cost["images"], cost["missing"]) == (1797, 1197)
        assert row["full_pass_seconds"] == pytest.approx(
            1797 * cost["seconds_per_image"]
        )
        assert row["bytes_per_image"] == 4 * row["width"] == 480
    kept = parts(Store.open(tmp_path / "tl_store"))
    again = tl(*request)
    assert again.returncode == 0, again.stderr
    assert parts(Store.open(tmp_path / "tl_store")) == kept
    lines = again.stdout.splitlines()
    assert lines[0].split()[:3] == ["rank", "encoder", "published"]
    assert lines[1].count("(remembered)") == lines[2].count("(remembered)") == 1
    assert "600 of 1,079 training images sampled" in again.stdout
    assert found["finetuning"]["validation"] == 359
    assert found["finetuning"]["frozen"] == best["probe"]["value"]
    assert lines[-1].startswith(
        "lenet5: 1,079 images of 10 classes to learn from; the frozen "
        f"network is right in {100 * best['probe']['value']:.1f} % in the probe of 600,"
    )
    assert "lenet5 is the best, " in again.stdout
    assert "a full pass over 1,797 images costs " in again.stdout


def test_only_training_images_are_looked_at_and_a_run_finds_them_embedded(
    store: Store, folder: Path
):
    found = rank(store, str(folder), 20)
    manifest = next(store.root.glob("manifests/*"))
    rows = tables.read(tables.MANIFEST, manifest).to_pylist()
    split = {row["image_id"]: row["split"] for row in rows}
    for row in found.rows:
        ids = EmbeddingFolder(store, row.key).embedded()
        assert Counter(split[image_id] for image_id in ids) == {"train": 20}
    spec = RunSpec(
        dataset=str(folder),
        backbones=(LETTERS,),
        heads=(HeadSpec(name="logistic", params={"C": 1.0}),),
    )
    record = wiring.run(wiring.prepare(spec, store))
    embeds = [step for step in record.steps if step.stage == "embed"]
    assert [step.units for step in embeds] == [40, 40]


def test_a_larger_sample_embeds_only_what_it_adds(store: Store, folder: Path):
    small, large = (rank(store, str(folder), n, LETTERS) for n in (12, 20))
    assert small.rows[0].cost.missing - large.rows[0].cost.missing == 8
    assert {work.resolve([LETTERS], store)[0].key} == {large.rows[0].key}


def test_an_encoder_named_twice_is_ranked_once(store: Store, folder: Path):
    found = rank(store, str(folder), 12, LETTERS, EncoderSpec.parse("lenet5:layer=c5"))
    assert len(found.rows) == 1
    assert found.rows[0].behind is None


def test_whole_groups_are_judged_at_a_time(store: Store, folder: Path, tmp_path: Path):
    table = tmp_path / "listed.csv"
    lines = [
        f"{file},{file.parent.name},{file.parent.name}{int(file.stem) // 3}"
        for file in sorted(folder.rglob("*.jpg"))
    ]
    table.write_text("\n".join(["file,species,session", *lines]))
    entry = tmp_path / "grouped.yaml"
    entry.write_text(
        "version: 1\ndatasets:\n  listed: {type: table, path: listed.csv, "
        "image_column: file, label_column: species, group_column: session}\n"
    )
    listed = study(store, catalog.find("listed", entry))
    found = judged(listed, work.resolve([LETTERS], store), 30)
    assert found.grouped
    assert found.probed == found.sampled == 30


def test_an_image_that_cannot_be_decoded_is_left_out_for_all(
    store: Store, folder: Path
):
    for file in sorted((folder / "china").iterdir())[:8]:
        file.write_bytes(file.read_bytes()[:-900])
    entry = catalog.find(str(folder)).model_copy(update={"max_quarantined": 0.5})
    encoders = work.resolve([LETTERS, TWIN], store)
    found = judged(study(store, entry), encoders, 100)
    refused = [len(EmbeddingFolder(store, row.key).refused()) for row in found.rows]
    assert found.probed == found.sampled - refused[0]
    assert refused[0] == refused[1] > 0


def test_too_few_images_to_judge_say_what_to_change(store: Store, folder: Path):
    with pytest.raises(InvalidSpec, match="Give more --images"):
        rank(store, str(folder), 2)
    for file in sorted((folder / "china").iterdir())[4:]:
        file.unlink()
    manifest = study(store, catalog.find(str(folder))).ingested()
    rows = manifest.table.to_pylist()
    trained = [r for r in rows if (r["split"], r["label"]) == ("train", "china")]
    for row in trained[1:]:
        (folder / "china" / Path(row["uri"]).name).unlink()
    with pytest.raises(DatasetError, match="Add images"):
        rank(store, str(folder), 100)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["digits"], "name the encoders to rank: --backbone NAME"),
        (["digits", "--backbone", "lenet6"], "Did you mean 'lenet5'?"),
        (["digits", "--backbone", "lenet5", "--images", "0"], "at least 1, not 0"),
        (["digts", "--backbone", "lenet5"], "Did you mean 'digits'?"),
        (["digits", "--backbone", "lenet5:weights=no.pth"], "no.pth does not exist"),
        (
            ["digits", "--backbone", "lenet5", "--backbone", "vgg16:layer=fc9"],
            "Known: ",
        ),
    ],
)
def test_wrong_request_is_one_message_and_exit_2_before_anything_is_computed(
    tl: Tl, tmp_path: Path, arguments: list[str], said: str
):
    done = tl("rank", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "tl_store").exists()


def test_weights_of_another_network_are_refused_before_anything_is_computed(
    tl: Tl, tmp_path: Path
):
    file = tmp_path / "letters.safetensors"
    weights = REPOSITORY / "tl_pipeline" / "weights" / "lenet5-letters.safetensors"
    shutil.copyfile(weights, file)
    wrong = f"resnet18:weights={file}"
    done = tl("rank", "digits", "--backbone", "lenet5", "--backbone", wrong)
    assert (done.returncode, done.stdout) == (2, "")
    assert "does not hold weights of resnet18" in done.stderr
    assert not (tmp_path / "tl_store").exists()


def test_pools_of_one_network_share_a_pass_and_cost_what_one_costs_alone(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    calls: list[int] = []
    plain = embed.fill

    def counted(*given: Any) -> dict[str, embed.EmbedResult]:
        calls.append(len(given[2]))
        done = plain(*given)
        fast = speeds.Speed(50.0, 8)
        return {key: one._replace(speed=fast) for key, one in done.items()}

    monkeypatch.setattr(embed, "fill", counted)
    network = "squeezenet1_0:weights=random:0,precision=fp32"
    wishes = [f"{network},side=64,pool={pool}" for pool in ("gap", "grid2", "avg+max")]
    wishes.append(f"{network},side=32,pool=gap")
    found = rank(store, str(folder), 12, *map(EncoderSpec.parse, wishes))
    assert sorted(calls) == [1, 3]
    assert {row.cost.seconds_per_image for row in found.rows} == {0.02}


def test_what_is_remembered_of_a_shared_pass_is_the_speed_of_one_alone(
    store: Store, folder: Path
):
    """Else a plan for the winner would promise a third of what it takes."""
    entry = catalog.find(str(folder))
    pools = ("gap", "grid2", "avg+max")
    network = "squeezenet1_0:weights=random:0,precision=fp32,side=64"
    wishes = [EncoderSpec.parse(f"{network},pool={pool}") for pool in pools]
    encoders = work.resolve(wishes, store)
    every = embed.pairs(study(store, entry).ingested().images)
    done = embed.fill(store, entry, encoders, every[:20])
    elapsed = sum(one.timings.elapsed for one in done.values())
    for encoder in encoders:
        speed = speeds.known_speed(EmbeddingFolder(store, encoder.key))
        assert speed
        assert speed.images_per_second == pytest.approx(20 / elapsed, rel=0.01)
    manifest = study(store, entry).ingested()
    planned = embed.Embed(Workspace(store), entry, manifest, tuple(encoders)).plan()
    seconds = sum(step.estimated_seconds or 0 for step in planned.steps)
    assert seconds == pytest.approx((len(every) - 20) * elapsed / 20, rel=0.01)


def test_the_speed_is_measured_warm_and_few_images_do_not_replace_it(
    store: Store, folder: Path
):
    """A first pace of few images is better than none; a known one stays."""
    entry = catalog.find(str(folder))
    (encoder,) = work.resolve([LETTERS], store)
    every = embed.pairs(study(store, entry).ingested().images)
    place = EmbeddingFolder(store, encoder.key)
    assert speeds.known_speed(place) is None
    first = embed.fill(store, entry, [encoder], every[:10])[encoder.key]
    assert first.speed is not None
    assert speeds.known_speed(place) == pytest.approx(first.speed, abs=0.01)
    second = embed.fill(store, entry, [encoder], every[:20])[encoder.key]
    assert (second.images, second.speed) == (10, None)
    assert speeds.known_speed(place) == pytest.approx(first.speed, abs=0.01)


def test_the_time_before_the_first_batch_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
):
    """128 images in the 2 s after the first batch, whatever that took."""
    from tl_pipeline.embedding import result
    from tl_pipeline.store.timings import Clock

    clock = iter([100.0, 101.0, 102.0])
    monkeypatch.setattr(result.time, "perf_counter", lambda: next(clock))
    spent = Clock()
    spent.add("forward", 3.0, "one")
    spent.add("forward", 1.0, "other")
    pace = result.Pace(spent)
    assert pace.seconds_per_image(["one", "other"]) == {}
    for images in (32, 64, 64):
        pace.add(images)
    each = 2.0 / 128
    assert pace.seconds_per_image(["one", "other"]) == {
        "one": each * 0.75,
        "other": each * 0.25,
    }


def ranked(name: str, value: float, behind: tuple | None, seconds: float | None):
    return Ranked(
        encoder=name,
        key=name,
        width=10,
        bytes_per_image=40,
        probe=Score(value=value, low=value - 0.02, high=value + 0.02),
        behind=Score(value=behind[0], low=behind[1], high=behind[2])
        if behind
        else None,
        cost=Cost(seconds, remembered=False, images=3212, missing=0),
    )


def of(*rows: Ranked) -> Ranking:
    return Ranking("birds", 3212, 2000, 500, 500, 3, 400, grouped=False, rows=rows)


BEST = ranked("best", 0.95, None, 0.030)
CLOSE = ranked("close", 0.94, (-0.01, -0.04, 0.003), 0.010)
TIED = ranked("tied", 0.90, (-0.05, -0.12, 0.003), 0.001)
FAR = ranked("far", 0.80, (-0.15, -0.2, -0.1), 0.001)


@pytest.mark.parametrize(
    ("rows", "pick", "said"),
    [
        (
            [BEST, CLOSE, TIED, FAR],
            "close",
            (
                "close is the cheapest of 2 within one standard error of the best: "
                "-1.0 [-4.0, +0.3] points to best; a full pass over 3,212 images costs "
                "32 s instead of 1 min 36 s"
            ),
        ),
        (
            [BEST, FAR],
            "best",
            (
                "best is the best, 15.0 points before far; a full pass over 3,212 "
                "images costs 1 min 36 s"
            ),
        ),
        (
            # nobody waits for either
            [ranked("fast", 0.95, None, 0.009), replace(CLOSE, cost=FAR.cost)],
            "fast",
            (
                "fast is the best of 2 that cannot be told apart; a full pass over "
                "3,212 images costs 29 s"
            ),
        ),
        (
            [BEST, ranked("as dear", 0.94, (-0.01, -0.04, 0.003), 0.029)],
            "best",
            (
                "best is the best of 2 that cannot be told apart; a full pass "
                "over 3,212 images costs 1 min 36 s"
            ),
        ),
        (
            [ranked("alone", 0.9, None, None)],
            "alone",
            "alone stands alone; a full pass over 3,212 images costs an unknown time",
        ),
        (
            [ranked("unknown", 0.95, None, None), CLOSE],
            "close",
            "costs 32 s instead of an unknown time",
        ),
    ],
)
def test_the_conclusion_names_the_cheapest_that_is_not_worse(rows, pick, said: str):
    found = of(*rows)
    assert found.pick.encoder == pick
    assert said in rank_command._conclusion(found)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.42, "0.4 s"),
        (9.96, "10 s"),
        (52.4, "52 s"),
        (59.7, "1 min 00 s"),
        (100, "1 min 40 s"),
        (3599.6, "1 h 00 min"),
        (11100, "3 h 05 min"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float, said: str):
    assert duration(seconds) == said

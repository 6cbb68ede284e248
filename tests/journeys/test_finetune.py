"""Fine-tuning as people type it: cached, and judged by images that it never saw."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from tests.command_line import Tl, in_this_process
from tests.conftest import REPOSITORY
from tests.exhaustive import more
from tl_pipeline.embedding.devices import CPU
from tl_pipeline.finetuning import pixels, processes
from tl_pipeline.pipeline import teachers
from tl_pipeline.runs import records
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.keys import digest
from tl_pipeline.store.tables import MANIFEST, SEEN

TUNED = "all,epochs=3,learning_rate=0.002,batch_size=16"
# Of two candidates the frozen one has a head that knows nothing.
KNOWS_NOTHING = (
    *("--finetune", TUNED, "--head", "logistic:C=1e-12"),
    *("--no-controls", "--runner", "direct"),
)
ENTRY = """
version: 1
datasets:
  scenes: {type: image_folder, path: photos, near_duplicates: ignore}
"""
HEAD = ("--no-controls", "--head", "logistic:C=0.01")
MORE = (*HEAD, "--runner", "direct")


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, crops: Callable[[str, int], Image.Image]
) -> Path:
    """A folder with photos, and a store with one fine-tuned network."""
    place = tmp_path_factory.mktemp("finetune")
    (place / "data_catalog.yaml").write_text(ENTRY)
    for label in ("china", "flower"):
        (place / "photos" / label).mkdir(parents=True)
        for number in range(40):
            crops(label, number).save(place / "photos" / label / f"{number:03d}.jpg")
    with pytest.MonkeyPatch.context() as monkeypatch:
        tl = in_this_process(place, monkeypatch)
        done = tl("run", "scenes", "--finetune", TUNED, *MORE)
        assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return shutil.copytree(made, tmp_path / "copy")


@pytest.fixture
def tl(place: Path, monkeypatch: pytest.MonkeyPatch) -> Tl:
    return in_this_process(place, monkeypatch)


def last(place: Path) -> RunRecord:
    """The record of the last run."""
    found = records.latest(Store.open(place / "tl_store"), "scenes")
    assert found
    return found


def ran(record: RunRecord) -> list[tuple[str, str]]:
    """The stages that were not cached."""
    return [(step.stage, step.subject) for step in record.steps if not step.cached]


def test_its_heads_are_candidates_beside_the_frozen_ones(made: Path):
    """Its own head and the heads of the run, judged on the same validation images."""
    record = last(made)
    found = [(result.encoder, result.head) for result in record.results]
    assert sorted(found) == [
        ("lenet5/c5 LETTERS", "logistic(C=0.01)"),
        (f"lenet5/c5 finetuned {TUNED}", "logistic(C=0.01)"),
        (f"lenet5/c5 finetuned {TUNED}", "softmax(finetuned=true)"),
    ]
    assert record.split_report is not None
    assert record.chosen is not None
    validation = record.split_report.splits["validation"].images
    assert record.chosen.endswith(f"of {validation} images")


def test_console_and_report_say_the_same_of_what_it_brought(tl: Tl, place: Path):
    """And the plan says before what is to be expected, and the time."""
    done = tl("run", "scenes", "--finetune", TUNED, *MORE)
    assert done.returncode == 0, done.stderr
    (found,) = last(place).finetunings
    assert found.sentence in done.stdout
    (report,) = (place / "tl_store").glob("reports/scenes/latest.html")
    assert found.sentence[1:] in report.read_text()
    assert report.read_text().count('<path class="line') == 4
    planned = tl("plan", "scenes", "--finetune", f"{TUNED},epochs=4", *HEAD).stdout
    assert found.expected is not None
    assert planned.splitlines()[-2] == found.expected.sentence
    assert planned.splitlines()[-1].startswith("fine-tuning takes about ")


def test_a_second_run_does_nothing(tl: Tl, place: Path):
    """Not even an epoch; the photos of the copy are new files, so they are read."""
    assert tl("run", "scenes", "--finetune", TUNED, *MORE).returncode == 0
    assert ran(last(place)) == [("ingest", "scenes")]


def test_another_learning_rate_reruns_what_hangs_on_it(tl: Tl, place: Path):
    """Nothing before, and the plan says so with its reason."""
    changed = f"{TUNED},learning_rate=0.0005"
    before = last(place)
    said = tl("plan", "scenes", "--finetune", changed, *HEAD, "--json").stdout
    planned = json.loads(said)
    due = [step["stage"] for step in planned if not step["cached"]]
    assert due[:3] == ["ingest", "finetune", "finetune"]
    assert tl("run", "scenes", "--finetune", changed, *MORE).returncode == 0
    stages = [stage for stage, _ in ran(last(place))]
    assert stages[:5] == ["ingest", "finetune", "finetune", "embed", "embed"]
    frozen = [
        s for s in last(place).steps if s.subject == "logistic on lenet5/c5 LETTERS"
    ]
    assert [step.cached for step in frozen] == [True, True]
    keys = {step.keys["finetuned"] for step in before.steps if step.stage == "finetune"}
    assert len(keys) == 2


def test_it_judges_by_images_that_it_never_saw(made: Path):
    """Of the two networks the one that judges saw train alone, the other both."""
    store, record = Store.open(made / "tl_store"), last(made)
    manifest = next(s.keys["manifest"] for s in record.steps if s.stage == "ingest")
    rows = tables.read(MANIFEST, store.path(Artifact("manifests", manifest, "")))
    split = dict(tables.values(rows, "image_id", "split"))
    seen = []
    for step in record.steps:
        if step.stage == "finetune":
            key = step.keys["finetuned"]
            folder = store.path(Artifact("finetuned", key, key))
            ids = tables.read(SEEN, folder)["image_id"].to_pylist()
            seen.append({split[one] for one in ids})
    assert seen == [{"train"}, {"train", "validation"}]


def test_weights_that_have_seen_the_images_are_refused(tl: Tl, place: Path):
    """As a file like any other they would flatter heads on folds."""
    store = place / "tl_store"
    about = [
        json.loads(f.read_text()) for f in store.glob("finetuned/*/finetuned.json")
    ]
    weights = place / "tuned.safetensors"
    shutil.copyfile(store / "weights" / about[0]["sha256"], weights)
    done = tl("run", "scenes", "--backbone", f"lenet5:weights={weights}", *MORE)
    assert done.returncode == 2
    assert "of the images that would score heads on it" in done.stderr
    assert "(--finetune)" in done.stderr


def test_a_tuned_network_that_is_better_by_a_standard_error_is_registered(
    tl: Tl, place: Path
):
    """12 against 9 of 15 images: a tie, but not as close as that."""
    assert tl("run", "scenes", *KNOWS_NOTHING).returncode == 0
    record = last(place)
    assert record.best.head == "softmax(finetuned=true)"
    frozen = next(r for r in record.results if r.encoder == "lenet5/c5 LETTERS")
    (found,) = [c for c in record.comparisons if c.evaluation == frozen.evaluation]
    assert found.tied
    assert found.difference.value == pytest.approx(-3 / 15)
    assert 0.1 < found.difference.standard_error < 0.2


def test_prediction_says_what_evaluation_said(tl: Tl, place: Path):
    """The registered model holds its weights; nothing else of the store is needed."""
    asked = (*KNOWS_NOTHING, "--search", "validation", "--choose", "best")
    assert tl("run", "scenes", *asked).returncode == 0
    record = last(place)
    assert record.best.head == "softmax(finetuned=true)"
    sql = (
        "SELECT i.uri, predicted, confidence FROM predictions "
        "JOIN images AS i USING (image_id) "
        f"WHERE evaluation = '{record.best.evaluation}' AND i.split = 'test'"
    )
    found = json.loads(tl("sql", sql, "--json").stdout)
    assert found
    version = record.registered.version
    promoted = tl("models", "promote", "scenes", version, "--reason", "to be asked")
    assert promoted.returncode == 0, promoted.stderr
    shutil.rmtree(place / "tl_store" / "finetuned")
    files = [str(place / "photos" / row["uri"]) for row in found]
    said = json.loads(tl("predict", "scenes", *files, "--json").stdout)
    told = {row["file"]: (row["label"], row["confidence"]) for row in said}
    assert len(told) == len(found)
    for file, row in zip(files, found, strict=True):
        label, confidence = told[file]
        assert label == row["predicted"]
        assert confidence == pytest.approx(row["confidence"], abs=1e-5)


def test_a_model_that_was_fine_tuned_teaches_another_network(tl: Tl, place: Path):
    """Who judges is taught by the network that saw train alone; the other by the model.

    The plan knows both keys before.
    """
    asked = (*KNOWS_NOTHING, "--search", "validation", "--choose", "best")
    assert tl("run", "scenes", *asked).returncode == 0
    before = last(place)
    assert before.best.head == "softmax(finetuned=true)"
    version = before.registered.version
    how = f"all,epochs=1,distil_from=model:scenes@{version}"
    typed = ("scenes", "--backbone", "lenet5:layer=f6", "--finetune", how)
    said = json.loads(tl("plan", *typed, *HEAD, "--json").stdout)
    planned = [s["keys"]["finetuned"] for s in said if s["stage"] == "finetune"]
    assert tl("run", *typed, *MORE).returncode == 0
    record, store = last(place), Store.open(place / "tl_store")
    steps = [step for step in record.steps if step.stage == "finetune"]
    assert [step.keys["finetuned"] for step in steps] == planned
    assert f"; taught by model:scenes@{version}; " in steps[0].reason
    embedded = [step for step in record.steps if step.stage == "embed"]
    assert [s.units for s in embedded if TUNED in s.subject] == [0, 0]

    tuned = [s.keys["finetuned"] for s in before.steps if s.stage == "finetune"]
    key = next(s.keys["model"] for s in before.steps if s.stage == "register")
    model = json.loads((store.root / "models" / key / "model.json").read_text())
    search = next(
        step.keys["search"]
        for step in before.steps
        if step.stage == "adopt" and step.keys["fitted"] == model["head"]
    )
    judged = provenance(store, "searches", search)["inputs"]["encoder"]
    assert [
        provenance(store, "finetuned", key)["inputs"]["teacher"] for key in planned
    ] == [
        digest([teachers.VERSION, judged, [("finetuned", tuned[0])]]),
        digest([teachers.VERSION, model["encoder_key"], [("heads", model["head"])]]),
    ]


def test_a_backbone_teaches_by_its_best_head(tl: Tl, place: Path):
    """Fitted anew on what each student learns from; it is no student itself."""
    how = "head,epochs=1,distil_from=lenet5:layer=f6"
    typed = ("--backbone", "lenet5", "--backbone", "lenet5:layer=f6", "--finetune", how)
    assert tl("run", "scenes", *typed, *MORE).returncode == 0
    record, store = last(place), Store.open(place / "tl_store")
    steps = [step for step in record.steps if step.stage == "finetune"]
    assert {step.subject.partition(",")[0] for step in steps} == {"lenet5/c5 LETTERS"}
    (search,) = (
        step.keys["search"]
        for step in record.steps
        if step.subject == "logistic on lenet5/f6 LETTERS" and step.stage == "train"
    )
    teacher = provenance(store, "searches", search)["inputs"]["encoder"]
    rows = [
        provenance(store, "finetuned", step.keys["finetuned"])["inputs"]
        for step in steps
    ]
    expected = digest([teachers.VERSION, teacher, [("searches", search)]])
    assert [one["teacher"] for one in rows] == [expected] * 2
    fitted = [
        json.loads(file.read_text())["inputs"]
        for file in (store.root / "heads").glob("*/provenance.json")
    ]
    learned = {one["training rows"] for one in fitted if one["encoder"] == teacher}
    assert learned == {one["training rows"] for one in rows}
    assert tl("run", "scenes", *typed, *MORE).returncode == 0
    assert not [s for s in last(place).steps if not s.cached and s.stage == "finetune"]


@pytest.mark.parametrize("how", ["blocks=1,augment=none", *more("all,wise=true")])
def test_several_devices_train_together(
    tl: Tl, place: Path, monkeypatch: pytest.MonkeyPatch, how: str
):
    """In a process each; what comes of it is what one gives."""
    how = f"{how},epochs=2,precision=fp32,refit=false"
    typed = ("run", "scenes", "--finetune", how, *MORE)
    shutil.copytree(place / "tl_store", place / "other")
    assert tl(*typed, "--store", place / "other").returncode == 0
    monkeypatch.setattr(processes, "devices", lambda: [CPU, CPU])
    assert tl(*typed).returncode == 0
    one, two = (tuned_weights(place / name) for name in ("other", "tl_store"))
    assert one.keys() == two.keys()
    for name, values in one.items():
        assert two[name] == pytest.approx(values, abs=1e-5), name
    assert not list((place / "tl_store" / ".building").iterdir())


def tuned_weights(root: Path) -> dict[str, np.ndarray]:
    """Those of the network that was fine-tuned last in the store ``root``."""
    abouts = sorted(root.glob("finetuned/*/finetuned.json"), key=os.path.getmtime)
    sha256 = json.loads(abouts[-1].read_text())["sha256"]
    return load_file(root / "weights" / sha256)


def provenance(store: Store, kind: str, key: str) -> dict[str, Any]:
    return store.provenance(Artifact(kind, key, key))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--finetune all,distil_from=resnet18", "unknown teacher (distil_from)"),
        ("--finetune all,distil_from=model:dogs@2", "unknown model 'dogs'"),
        ("--finetune all,distil_from=model:scenes@9", "version of model 'scenes' '9'"),
        (
            "--finetune all,distil_from=lenet5",
            "none learns from itself; name a student",
        ),
        ("--finetune all,wise=true,distil_from=lenet5", "give wise or distil_from"),
    ],
)
def test_a_teacher_that_cannot_be(tl: Tl, words: str, said: str):
    """One message, exit code 2, before anything is made."""
    done = tl("run", "scenes", *words.split(), *MORE)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr


def test_a_teacher_of_other_classes(tl: Tl, place: Path):
    """It is said once the images are listed, and nothing is embedded."""
    (place / "photos" / "flower").rename(place / "photos" / "tree")
    how = "all,distil_from=model:scenes@champion"
    done = tl("plan", "scenes", "--finetune", how, *HEAD)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "it knows china, flower, and not tree of scenes" in done.stderr


@pytest.mark.parametrize("teacher", ["", ",distil_from=lenet5:layer=f6"])
def test_labels_without_a_meaning_stay_at_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: str
):
    """A network learns them by heart; validation, which it never saw, tells.

    A teacher that had seen validation would tell the student.
    """
    chance = np.random.default_rng(0)
    for number in range(120):
        label = tmp_path / "photos" / "ab"[number % 2]
        label.mkdir(parents=True, exist_ok=True)
        pixels = chance.integers(0, 256, (32, 32), np.uint8)
        Image.fromarray(pixels).save(label / f"{number:03d}.png")
    (tmp_path / "data_catalog.yaml").write_text(ENTRY)
    tl = in_this_process(tmp_path, monkeypatch)
    how = "all,epochs=12,batch_size=8,lr=0.003,augment=none,warmup=0,refit=false"
    more = ("--backbone", "lenet5:layer=f6") if teacher else ()
    typed = ("--backbone", "lenet5", *more, "--finetune", how + teacher)
    done = tl("run", "scenes", *typed, *MORE)
    assert done.returncode == 0, done.stderr
    record = last(tmp_path)
    own = next(r for r in record.results if r.head == "softmax(finetuned=true)")
    assert own.validation is not None
    assert 0.2 < own.validation.value < 0.8
    curve = json.loads(
        tl(
            "sql",
            "SELECT accuracy FROM training_curves WHERE split = 'train' ORDER BY epoch",
            "--json",
        ).stdout
    )
    assert len(curve) == 12
    assert curve[-1]["accuracy"] > 0.9


def test_frozen_blocks_see_each_image_once(
    tl: Tl, place: Path, monkeypatch: pytest.MonkeyPatch
):
    """Both trainings of a run share what they give; nothing of it is left."""
    decoded: list[str] = []
    found = pixels.decoded

    def counted(images: Sequence[tuple[str, str]], **how: Any) -> np.ndarray:
        decoded.extend(one for one, _ in images)
        return found(images, **how)

    monkeypatch.setattr(pixels, "decoded", counted)
    how = "blocks=1,epochs=2,augment=none"
    assert tl("run", "scenes", "--finetune", how, *MORE).returncode == 0
    record = last(place)
    tuned = [step for step in record.steps if step.stage == "finetune"]
    assert len(tuned) == 2
    for step in tuned:
        assert "; not augmented; frozen blocks computed once; " in step.reason
    assert record.split_report is not None
    splits = record.split_report.splits
    images = splits["train"].images + splits["validation"].images
    assert (len(decoded), len(set(decoded))) == (images, images)
    assert not list((place / "tl_store" / ".building").iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--finetune", "blocks=99"], "lenet5 has 3 blocks up to c5"),
        (["--finetune", "all,lr=0"], "learning_rate: Input should be greater than 0"),
        (
            ["--concat", "lenet5,lenet5:layer=f6", "--finetune", "all"],
            "name each as a --backbone of its own",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(
    tl: Tl, place: Path, words: list[str], said: str
):
    """One message, exit code 2."""
    before = sorted((place / "tl_store").glob("finetuned/*"))
    done = tl("run", "scenes", *words, *MORE)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr
    assert sorted((place / "tl_store").glob("finetuned/*")) == before


def written(store: Path) -> set[int]:
    """When the checkpoints in ``store`` were."""
    files = store.glob(".building/finetune-*/[ct]*.pt")
    return {file.stat().st_mtime_ns for file in files}


@pytest.mark.exhaustive  # broken off at an epoch: test_training.py
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("kills", "how"),
    [
        (1, "all,epochs=6,batch_size=16"),
        *more(
            (10, "all,epochs=100,batch_size=16,ema=0.9"),
            (10, "blocks=1,epochs=100,batch_size=16,augment=none"),
        ),
    ],
)
def test_killed_it_goes_on_to_the_same_weights(
    tl: Tl, place: Path, kills: int, how: str
):
    """SIGKILL in random epochs and at random moments of them; bit by bit the same."""
    store = place / "tl_store"
    typed = ["run", "scenes", "--finetune", f"{how},refit=false", *MORE]
    other = shutil.copytree(store, place / "other")
    chance = random.Random(0)

    assert tl(*typed, "--store", other).returncode == 0
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-m", "tl_pipeline.cli", *typed],
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.DEVNULL,
        )
        epochs, before = chance.randint(1, 6) if kills > 1 else 1, written(store)
        while epochs:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.005)
            if (now := written(store)) != before:
                epochs, before = epochs - 1, now
        time.sleep(chance.uniform(0, 0.02) if kills > 1 else 0)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert tl(*typed).returncode == 0
    assert not list(store.glob(".building/finetune-*"))
    assert not list(store.glob(".building/inputs-*"))

    def weights(folder: Path) -> set[str]:
        files = folder.glob("finetuned/*/finetuned.json")
        return {json.loads(file.read_text())["sha256"] for file in files}

    assert weights(store) == weights(other)
    assert len(weights(store)) == 3


@pytest.mark.parametrize(
    ("labels", "how", "said"),
    [
        ({"china": 20}, "all", "a classifier needs two"),
        ({"china": 1, "flower": 1}, "all", "every split needs images. Add images"),
        (
            {"china": 20, "flower": 20},
            "all,optimiser=sgd,lr=10,warmup=0,epochs=4,weight_decay=10",
            "training diverged in epoch",
        ),
    ],
)
def test_what_cannot_be_learned_leaves_nothing_half_made(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    crops: Callable[[str, int], Image.Image],
    labels: dict[str, int],
    how: str,
    said: str,
):
    """One message, exit code 2; no network, no model."""
    for label, number in labels.items():
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for at in range(number):
            crops(label, at).save(folder / f"{at}.jpg")
    (tmp_path / "data_catalog.yaml").write_text(ENTRY)
    done = in_this_process(tmp_path, monkeypatch)(
        "run", "scenes", "--finetune", how, *MORE
    )
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert "Traceback" not in done.stderr
    for kind in ("finetuned", "models"):
        assert not list((tmp_path / "tl_store").glob(f"{kind}/*"))

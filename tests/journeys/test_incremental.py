"""What reruns when something changes, and that the plan said so beforehand."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tl_pipeline.config.specs import EncoderSpec, HeadSpec, RunSpec
from tl_pipeline.encoders import backbones
from tl_pipeline.pipeline import wiring
from tl_pipeline.runs.planning import Step
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.store.artifacts import Store

LOGISTIC = HeadSpec(name="logistic", params={"C": [0.01, 0.1]})
WEIGHTS = "letters.safetensors"
MLP = HeadSpec(name="mlp", params={"max_epochs": 5, "hidden": 16})


class Project:
    """A folder of images, a weights file, a store; runs with and without changes."""

    def __init__(self, images: Path, weights: Path, store: Path) -> None:
        self.images, self.weights = images, weights
        self.store = Store.open(store)
        self.heads: tuple[HeadSpec, ...] = (LOGISTIC,)
        self.part_rows = 16
        self.controls = True

    def work(self) -> wiring.Work:
        spec = RunSpec(
            dataset=str(self.images),
            backbones=(EncoderSpec(backbone="lenet5", weights=str(self.weights)),),
            heads=self.heads,
            part_rows=self.part_rows,
            controls=self.controls,
        )
        return wiring.prepare(spec, self.store)

    def run(self) -> RunRecord:
        """Run, after checking that the plan foretells each step and its reason."""
        planned = wiring.plan(self.work())
        record = wiring.run(self.work())
        assert [(s.stage, s.subject) for s in planned] == [
            (s.stage, s.subject) for s in record.steps
        ]
        for before, after in zip(planned, record.steps, strict=True):
            if before.stage == "register":  # what will be best is not known before
                assert after.cached or not before.cached
                continue
            assert before.cached == after.cached
            # what is found among the images is known only when they were compared
            ends = {"audit": ":", "train": "; chose"}.get(after.stage, "\0")
            found = after.reason.partition(ends)[0]
            assert before.reason == (after.reason if after.cached else found)
        return record


def ran(steps: Iterable[Step]) -> list[str]:
    """``stage subject`` of the steps that were not cached."""
    return [f"{step.stage} {step.subject}" for step in steps if not step.cached]


def step(record: RunRecord, stage: str, subject: str = "") -> Step:
    return next(s for s in record.steps if s.stage == stage and subject in s.subject)


@pytest.fixture
def fresh(folder: Path, tmp_path: Path) -> Project:
    """A project that was never run."""
    return made(folder, tmp_path)


@pytest.fixture(scope="module")
def ready(
    tmp_path_factory: pytest.TempPathFactory, sixty_photos: Path
) -> tuple[Path, Path]:
    """The place of a project and a copy of it, from after its first run."""
    place, kept = (tmp_path_factory.mktemp("project") / name for name in ("it", "kept"))
    images = shutil.copytree(sixty_photos, place / "photos")
    made(images, place).run()
    shutil.copytree(place, kept)
    return place, kept


@pytest.fixture
def project(ready: tuple[Path, Path]) -> Project:
    """A project as its first run left it."""
    place, kept = ready
    shutil.rmtree(place)
    shutil.copytree(kept, place)
    return Project(place / "photos", place / WEIGHTS, place / "store")


def made(images: Path, place: Path) -> Project:
    weights = place / WEIGHTS
    lenet = backbones.find_backbone("lenet5")
    shutil.copyfile(backbones.named_weights(lenet, "LETTERS").file, weights)
    return Project(images, weights, place / "store")


def test_nothing_changed_runs_nothing(fresh: Project):
    fresh.run()
    assert ran(fresh.run().steps) == []


def test_three_images_added_embeds_exactly_three(
    project: Project, crops: Callable[[str, int], Image.Image]
):
    for number in (100, 101, 102):
        crops("china", number).save(project.images / "china" / f"{number}.png")
    record = project.run()
    embeds = [s for s in record.steps if s.stage == "embed"]
    assert [s.units for s in embeds] == [3, 3]  # the encoder and its untrained twin
    assert embeds[0].reason == "3 of 63 images are new"
    assert step(record, "ingest").reason == "3 added"


def test_image_moved_to_another_class_embeds_nothing_and_retrains(project: Project):
    project.controls = False
    moved = learned_from(project)
    moved.rename(project.images / "china" / "moved.jpg")
    record = project.run()
    assert {line.split()[0] for line in ran(record.steps)} == {
        "ingest",
        "audit",
        "train",
        "evaluate",
        "register",
    }
    assert step(record, "ingest").reason == "1 relabelled"
    assert "training rows changed" in step(record, "train").reason


def test_renamed_file_changes_the_manifest_only(project: Project):
    old = project.images / "china" / "000.jpg"
    old.rename(old.with_name("renamed.jpg"))
    record = project.run()
    assert ran(record.steps) == ["ingest photos", "audit photos"]
    assert step(record, "ingest").reason == "1 moved"


def test_added_head_alone_is_trained(project: Project):
    project.heads = (LOGISTIC, MLP)
    record = project.run()
    trained = [line for line in ran(record.steps) if line.startswith("train")]
    assert [line.split()[1] for line in trained] == ["mlp", "mlp"]
    assert "embed" not in " ".join(ran(record.steps))


def test_wider_grid_trains_only_what_is_new(project: Project):
    project.controls = False
    project.heads = (HeadSpec(name="logistic", params={"C": [0.01, 0.1, 1.0]}),)
    record = project.run()
    assert step(record, "train", "logistic").units == 1
    assert step(record, "train", "logistic").reason.startswith(
        "52 images, 1 of 3 configurations to be tried: "
        "head.C: [0.01, 0.1] -> [0.01, 0.1, 1.0]; chose logistic(C="
    )


def test_changed_parameter_is_named_with_both_values(project: Project):
    project.controls = False
    project.heads = (HeadSpec(name="logistic", params={"C": 0.1}),)
    project.run()
    project.heads = (HeadSpec(name="logistic", params={"C": 1.0}),)
    record = project.run()
    said = step(record, "train", "logistic").reason
    assert said == "52 images: head.C: 0.1 -> 1.0"


def test_deleted_part_file_embeds_only_its_images_again(project: Project):
    before = project.run()
    encoder = step(before, "embed").keys["encoder"]
    part = next(embedding_folder(project, encoder).glob("part-*"))
    rows = pq.read_metadata(part).num_rows
    table = embeddings(project, encoder)
    part.unlink()
    record = project.run()
    assert step(record, "embed").units == rows < 60
    assert "gone or damaged" in step(record, "embed").reason
    assert ran(record.steps) == [f"embed {step(before, 'embed').subject}"]
    assert embeddings(project, encoder).equals(table)


def test_one_byte_of_the_weights_changes_that_encoder_and_only_that(project: Project):
    data = bytearray(project.weights.read_bytes())
    data[-1] ^= 1
    project.weights.write_bytes(data)
    record = project.run()
    assert step(record, "embed", "letters").units == 60
    assert "weights.sha256" in step(record, "embed", "letters").reason
    assert step(record, "embed", "random:0").cached
    assert step(record, "ingest").cached


def test_new_test_image_trains_nothing(
    project: Project, crops: Callable[[str, int], Image.Image], tmp_path: Path
):
    """Only evaluation looks at test images."""
    for split, numbers in (("train", range(20)), ("test", range(20, 30))):
        for label in ("china", "flower"):
            place = tmp_path / "declared" / split / label
            place.mkdir(parents=True)
            for number in numbers:
                source = project.images / label / f"{number:03d}.jpg"
                shutil.copyfile(source, place / source.name)
    project.images, project.controls = tmp_path / "declared", False
    project.run()
    crops("china", 200).save(project.images / "test" / "china" / "new.png")
    stages = {line.split()[0] for line in ran(project.run().steps)}
    assert stages == {"ingest", "embed", "audit", "evaluate", "register"}


def test_plan_leaves_no_trace(fresh: Project):
    wiring.plan(fresh.work())
    assert not fresh.store.root.exists()


def test_killed_in_the_middle_of_embed_loses_nothing(project: Project, tmp_path: Path):
    """Whole parts are kept; the tables are those of a run that nobody disturbed."""
    broken = Project(project.images, project.weights, tmp_path / "broken")
    parts = broken.store.root / "embeddings"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *map(str, vars_of(broken))]
    )
    until = time.monotonic() + 120
    while len(list(parts.glob("*/part-*"))) < 2 and time.monotonic() < until:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {part: part.stat().st_mtime_ns for part in parts.glob("*/part-*")}
    assert kept
    record = wiring.run(broken.work())
    encoder = step(record, "embed", "letters").keys["encoder"]
    its = [part for part in kept if part.parent.name == f"encoder={encoder}"]
    assert step(record, "embed", "letters").units == 60 - 16 * len(its)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert not list(parts.glob("*/.writing-*"))
    assert embeddings(broken, encoder).equals(embeddings(project, encoder))
    for result in record.results:
        for name in ("predictions.parquet", "metrics.parquet"):
            place = Path("evaluations") / result.evaluation / name
            theirs = pq.read_table(project.store.root / place)
            assert pq.read_table(broken.store.root / place).equals(theirs)


# Runs the pipeline in another process, at a pace that lets it be killed between parts.
SLOWLY = """
import sys, time
from pathlib import Path
from tl_pipeline.store import embeddings
from tests.journeys.test_incremental import Project
add = embeddings.EmbeddingFolder.add
def slow_add(self, ids, vectors):
    add(self, ids, vectors)
    time.sleep(0.5)
embeddings.EmbeddingFolder.add = slow_add
from tl_pipeline.pipeline import wiring as pipeline
pipeline.run(Project(*map(Path, sys.argv[1:])).work())
"""


def vars_of(project: Project) -> tuple[Path, Path, Path]:
    return project.images, project.weights, project.store.root


def embedding_folder(project: Project, encoder: str) -> Path:
    return project.store.root / "embeddings" / f"encoder={encoder}"


def embeddings(project: Project, encoder: str) -> pa.Table:
    parts = sorted(embedding_folder(project, encoder).glob("part-*"))
    return ds.dataset(parts).to_table().sort_by("image_id").combine_chunks()


def learned_from(project: Project) -> Path:
    """A file of the class flower that is in the training split."""
    manifest = next(project.store.root.glob("manifests/*/manifest.parquet"))
    rows = pq.read_table(manifest).to_pylist()
    return next(
        Path(row["uri"])
        for row in rows
        if row["label"] == "flower" and row["split"] == "train"
    )

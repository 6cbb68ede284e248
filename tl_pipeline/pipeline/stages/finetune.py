"""Finetune: an encoder, its images and a linear head -> another encoder and its head.

Reads the manifest, the images, and the embeddings of the frozen encoder, on which the
linear head is fitted that training begins with. Writes ``finetuned/<key>/``:
``finetuned.json`` (what the encoder is, how the training went), CURVE, SEEN, and the
head that was trained with the network; the weights go to ``weights/<sha256>``, where
models find them. The encoder is one like any other, but for one thing: it has seen the
labels of the images that it learned from, so heads on it are scored on others.

Each epoch leaves a checkpoint below ``.building``; a run that is broken off goes on.
There lies, too, what the network is given for each image: pixels, or what its frozen
blocks give for them where images are not augmented. Both trainings of a run read it.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.config.finetune_specs import FinetuneSpec
from tl_pipeline.data.splits import TRAIN
from tl_pipeline.encoders.encoder import Encoder, Weights
from tl_pipeline.pipeline import finetuned, speeds
from tl_pipeline.pipeline.finetuned import ABOUT, HEAD
from tl_pipeline.pipeline.manifest import Manifest
from tl_pipeline.pipeline.stage import Unit
from tl_pipeline.pipeline.teachers import Teacher
from tl_pipeline.pipeline.training_inputs import TrainingInputs
from tl_pipeline.progress import duration, notice, track
from tl_pipeline.runs.finetunings import UNKNOWN, Expectation
from tl_pipeline.runs.planning import LOST, Outcome
from tl_pipeline.store import tables, weights
from tl_pipeline.store.artifacts import Artifact
from tl_pipeline.store.files import file_sha256
from tl_pipeline.store.keys import KeyDocument, key_document
from tl_pipeline.store.tables import CURVE, SEEN

if TYPE_CHECKING:
    from tl_pipeline.finetuning.network import LinearHead
    from tl_pipeline.finetuning.training import Point, Trained

# Bump when the same inputs must give other weights.
VERSION = 1


def epoch_line(curve: "Sequence[Point]", epochs: int) -> str:
    """What the last epoch of ``curve`` gave, and how long the rest of ``epochs`` takes.

    ``epoch 2 of 8: train loss 0.412, right in 91.0 %; 12 s an epoch, 1 min 12 s left``
    """
    last = curve[-1].epoch
    scores = "; ".join(
        f"{p.split} loss {p.loss:.3f}, right in {100 * p.accuracy:.1f} %"
        for p in curve
        if p.epoch == last
    )
    each = sum(point.seconds for point in curve) / last
    line = f"epoch {last} of {epochs}: {scores}; {duration(each)} an epoch"
    return (
        line if last == epochs else f"{line}, {duration(each * (epochs - last))} left"
    )


class Finetuned(NamedTuple):
    """A fine-tuned encoder and the artifact that tells how it was made.

    While it is planned its weights have no file, and a hash that no file will have.
    """

    encoder: Encoder
    artifact: Artifact


@dataclass(frozen=True)
class Finetune(Unit[Finetuned]):
    """``encoder``, fine-tuned on the images of ``splits`` as ``how`` says.

    ``embeddings`` are those of ``encoder``, and what is ``expected`` of it is known
    where heads on them are scored. With a ``teacher`` it learns from that, too.

    Raises:
        DatasetError: fewer than two classes; an image that was embedded is gone.
        InvalidSpec: the training diverged, or the network has fewer blocks.
        WeightsError: see ``loading.load``.
    """

    stage: ClassVar[str] = "finetune"
    kind: ClassVar[str] = finetuned.KIND
    label: ClassVar[str] = "finetuned"

    dataset: DatasetSpec
    manifest: Manifest
    embeddings: Artifact
    encoder: Encoder
    how: FinetuneSpec
    seed: int
    splits: tuple[str, ...] = (TRAIN,)
    expected: Expectation | None = None
    teacher: Teacher | None = None

    @property
    def subject(self) -> str:
        splits = " and ".join(self.splits)
        return f"{self.encoder.label}, {self.how.short()}, on {splits}"

    def depends_on(self) -> KeyDocument:
        params = self.how.model_dump(exclude={"refit", "side", "distil_from"})
        rows = self._inputs.rows
        inputs = {"encoder": self.encoder.key, "training rows": rows.fingerprint}
        if rows.groups_fingerprint:
            inputs["groups"] = rows.groups_fingerprint
        if self.teacher:
            inputs["teacher"] = self.teacher.key
        mirror = self.dataset.mirror and self.how.augment != "none"
        params |= {"seed": self.seed, "mirror": mirror}
        if self.how.wise:
            params["mix"] = "by calibrated loss"
        return key_document("finetune", VERSION, params, inputs)

    def found(self, made: Artifact) -> str:
        return f"fine-tuned already: {self._message(made)}"

    def missing(self) -> str:
        learned = f"{self.how.epochs} epochs of {len(self._inputs.rows):,} images"
        speed = self._speed
        basis = speed.basis if speed else "speed unknown, the first epoch will say"
        return f"{learned}, {basis}: {super().missing()}"

    def told(self, reason: str, made: Artifact) -> str:
        return f"{reason}; {self._message(made)}"

    def units(self, made: Artifact | None) -> int:
        """See ``Unit``: epochs."""
        return 0 if made else self.how.epochs

    def look(self) -> Outcome[Finetuned]:
        """See ``Unit``; it is not there either where the weights are lost."""
        looked = super().look()
        step, encoder = looked.step, looked.output.encoder
        if step.cached and weights.find(self.at.store, encoder.weights.sha256):
            return looked
        if step.cached:
            step = replace(step, cached=False, reason=LOST, units=self.units(None))
        if self.splits == (TRAIN,):  # what comes of both is the same
            step = replace(step, note=self._note)
        if speed := self._speed:
            seconds = step.units * len(self._inputs.rows) / speed.images_per_second
            step = replace(step, estimated_seconds=seconds)
        return Outcome(self.output(None), (step,))

    def run(self) -> Outcome[Finetuned]:
        """See ``Unit``; one process at a time trains one network."""
        name = f"finetune-{self.key}"
        with self.at.store.lock(name, f"another run that fine-tunes {self.subject}"):
            outcome = super().run()
            shutil.rmtree(self._scratch, ignore_errors=True)
        if not outcome.step.cached and not (self.how.refit and self.splits == (TRAIN,)):
            folder = self._inputs.folder
            with self.at.store.lock(folder.name):
                shutil.rmtree(folder, ignore_errors=True)
        return outcome

    def output(self, made: Artifact | None) -> Finetuned:
        sha256, file = 2 * self.key, None
        if made:
            sha256 = finetuned.about(self.at.store, made)["sha256"]
            file = weights.find(self.at.store, sha256)
        name = f"finetuned {self.how.short()}"
        if self.how.refit and self.splits == (TRAIN,):  # it only judges
            name += " on train"
        named = Weights(name=name, sha256=sha256, file=file)
        encoder = self.encoder.model_copy(update={"weights": named})
        return Finetuned(encoder, Artifact(self.kind, self.key, self.key))

    def write(self, folder: Path) -> str:
        """Train, and keep what was learned."""
        # torch is imported only when there is something to learn
        from tl_pipeline.finetuning import processes, training  # noqa: PLC0415

        if self.expected and self.splits == (TRAIN,):
            notice(self.expected.sentence)
        self._scratch.mkdir(parents=True, exist_ok=True)
        prepared = self._inputs.prepare()
        name = "tail.pt" if prepared.divided else "checkpoint.pt"
        options = training.Options(
            self.how, prepared.mirror, self.seed, self._scratch / name, prepared.held
        )
        total = self.how.epochs * len(self._inputs.rows)
        with track(self.title, total) as progress:
            trained = processes.train(
                prepared.network,
                prepared.inputs,
                options,
                progress.advance,
                lambda curve: notice(epoch_line(curve, self.how.epochs)),
            )
        model = prepared.network
        self._keep(folder, model.weights(), model.linear(), trained, prepared.message)
        return self.key

    def _keep(
        self,
        folder: Path,
        state: "Mapping[str, Any]",
        head: "LinearHead",
        trained: "Trained",
        message: str,
    ) -> None:
        from safetensors.numpy import save_file as save_arrays  # noqa: PLC0415
        from safetensors.torch import save_file  # noqa: PLC0415

        file = self._scratch / "weights.safetensors"
        save_file(dict(state), file)
        sha256 = file_sha256(file)
        weights.keep(self.at.store, sha256, file)
        learned = {n: np.ascontiguousarray(v) for n, v in vars(head).items()}
        save_arrays(learned, folder / HEAD)
        curve = [
            {"finetuned": self.key, "encoder": self.encoder.label, **vars(point)}
            for point in trained.curve
        ]
        tables.write(CURVE, tables.from_rows(CURVE, curve), folder)
        seen = self.teacher.learned if self.teacher else ()
        seen = sorted({*self._inputs.rows.ids, *seen})
        tables.write(SEEN, pa.table({"image_id": seen}), folder)
        about = {
            "sha256": sha256,
            "classes": self._inputs.classes,
            "mirroring": message,
            "mix": trained.mix,
            "images_per_second": round(trained.images_per_second, 1),
        }
        (folder / ABOUT).write_text(json.dumps(about, indent=1, ensure_ascii=False))

    def _message(self, made: Artifact) -> str:
        about = finetuned.about(self.at.store, made)
        message = about["mirroring"]
        if about["mix"] is not None:
            message += f"; {100 * about['mix']:.0f} % of the trained weights"
        return f"{message}; {about['images_per_second']:,.0f} images/s"

    @property
    def _scratch(self) -> Path:
        """What is needed only while it is trained; the next run goes on from it."""
        return self.at.store.root / ".building" / f"finetune-{self.key}"

    @property
    def _note(self) -> str:
        return self.expected.sentence if self.expected else UNKNOWN

    @cached_property
    def _speed(self) -> speeds.TrainingSpeed | None:
        return speeds.of_training(self.at.store, self.encoder, self.how)

    @cached_property
    def _inputs(self) -> TrainingInputs:
        return TrainingInputs(
            self.at.store,
            self.dataset,
            self.manifest,
            self.embeddings,
            self.encoder,
            self.how,
            self.seed,
            self.splits,
            self.teacher,
            self.title,
        )

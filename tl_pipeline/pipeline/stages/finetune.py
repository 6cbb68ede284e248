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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.config.finetune_specs import FinetuneSpec
from tl_pipeline.config.specs import HeadConfig
from tl_pipeline.data.reading import ImageRef
from tl_pipeline.data.splits import TRAIN, VALIDATION
from tl_pipeline.encoders import concat
from tl_pipeline.encoders.concat import AnyEncoder
from tl_pipeline.encoders.encoder import Encoder, Weights
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.pipeline import fits, speeds
from tl_pipeline.pipeline.manifest import EncodedImages, Manifest, Rows
from tl_pipeline.pipeline.stage import Unit
from tl_pipeline.progress import duration, notice, track
from tl_pipeline.runs.finetunings import UNKNOWN, Expectation
from tl_pipeline.runs.planning import LOST, Outcome
from tl_pipeline.sources import open_source
from tl_pipeline.store import tables, weights
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.files import file_sha256
from tl_pipeline.store.keys import KeyDocument, digest, key_document
from tl_pipeline.store.tables import CURVE, SEEN

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tl_pipeline.finetuning.network import LinearHead
    from tl_pipeline.finetuning.training import Images, Point, Trained

# Bump when the same inputs must give other weights.
VERSION = 1
ABOUT, HEAD = "finetuned.json", "head.safetensors"
# The head that training begins with. A weaker penalty fits embeddings better and is a
# worse beginning: sure of its training images, it leaves the network little to learn.
_FIRST = HeadConfig(name="logistic", params={"C": 0.01})
# Of the images to learn from, so many parts, one of which chooses the mix of ``wise``.
_PARTS = 10
# What is said where blocks are frozen and images are not augmented.
_ONCE = "frozen blocks computed once"
_EACH = "frozen blocks computed in each epoch: {} cannot be cut after them"


def check_unseen(store: Store, encoder: AnyEncoder, scored: Iterable[str]) -> None:
    """Refuse to score heads on images whose labels their network has seen.

    Weights of this store may be named by their file, like any others. ``scored`` are
    the ids of the images that score heads on ``encoder``.

    Raises:
        InvalidSpec: ``encoder`` was fine-tuned on some of them.
    """
    hashes = {member.weights.sha256 for member in concat.members_of(encoder)}
    for file in sorted((store.root / Finetune.kind).glob(f"[!.]*/{ABOUT}")):
        if json.loads(file.read_text())["sha256"] not in hashes:
            continue
        seen = set(tables.read(SEEN, file.parent)["image_id"].to_pylist())
        if found := seen.intersection(scored):
            raise InvalidSpec(
                f"{encoder.label} was fine-tuned on {len(found):,} of the images that "
                "would score heads on it, so their scores would flatter. Fine-tune it "
                "in the run (--finetune), which keeps them apart, or choose heads by "
                "images that it has not seen (--search validation)"
            )


def epoch_line(curve: "Sequence[Point]", epochs: int) -> str:
    """What the last epoch of ``curve`` gave, and how long the rest of ``epochs`` takes.

    ``epoch 2 of 8: train loss 0.412, right in 91.0 %; 12 s an epoch, 1 min 12 s left``
    """
    last = curve[-1].epoch
    said = "; ".join(
        f"{p.split} loss {p.loss:.3f}, right in {100 * p.accuracy:.1f} %"
        for p in curve
        if p.epoch == last
    )
    each = sum(point.seconds for point in curve) / last
    line = f"epoch {last} of {epochs}: {said}; {duration(each)} an epoch"
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
    """``encoder``, fine-tuned on the images of the splits ``sides`` as ``how`` says.

    ``embeddings`` are those of ``encoder``, and what is ``expected`` of it is known
    where heads on them are scored.

    Raises:
        DatasetError: fewer than two classes; an image that was embedded is gone.
        InvalidSpec: the training diverged, or the network has fewer blocks.
        WeightsError: see ``loading.load``.
    """

    stage: ClassVar[str] = "finetune"
    kind: ClassVar[str] = "finetuned"
    label: ClassVar[str] = "finetuned"

    dataset: DatasetSpec
    manifest: Manifest
    embeddings: Artifact
    encoder: Encoder
    how: FinetuneSpec
    seed: int
    sides: tuple[str, ...] = (TRAIN,)
    expected: Expectation | None = None

    @property
    def subject(self) -> str:
        sides = " and ".join(self.sides)
        return f"{self.encoder.label}, {self.how.short()}, on {sides}"

    def depends_on(self) -> KeyDocument:
        params = self.how.model_dump(exclude={"refit", "side"})
        rows = self._rows
        inputs = {"encoder": self.encoder.key, "training rows": rows.fingerprint}
        if rows.groups_fingerprint:
            inputs["groups"] = rows.groups_fingerprint
        mirror = self.dataset.mirror and self.how.augment != "none"
        params |= {"seed": self.seed, "mirror": mirror}
        if self.how.wise:
            params["mix"] = "by calibrated loss"
        return key_document("finetune", VERSION, params, inputs)

    def found(self, made: Artifact) -> str:
        return f"fine-tuned already: {self._told(made)}"

    def missing(self) -> str:
        learned = f"{self.how.epochs} epochs of {len(self._rows):,} images"
        speed = self._speed
        basis = speed.basis if speed else "speed unknown, the first epoch will say"
        return f"{learned}, {basis}: {super().missing()}"

    def told(self, reason: str, made: Artifact) -> str:
        return f"{reason}; {self._told(made)}"

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
        if self.sides == (TRAIN,):  # what comes of both is the same
            step = replace(step, note=self._note)
        if speed := self._speed:
            seconds = step.units * len(self._rows) / speed.images_per_second
            step = replace(step, estimated_seconds=seconds)
        return Outcome(self.output(None), (step,))

    def run(self) -> Outcome[Finetuned]:
        """See ``Unit``; one process at a time trains one network."""
        name = f"finetune-{self.key}"
        with self.at.store.lock(name, f"another run that fine-tunes {self.subject}"):
            outcome = super().run()
            shutil.rmtree(self._scratch, ignore_errors=True)
        if not outcome.step.cached and not (self.how.refit and self.sides == (TRAIN,)):
            with self.at.store.lock(self._inputs.name):
                shutil.rmtree(self._inputs, ignore_errors=True)
        return outcome

    def output(self, made: Artifact | None) -> Finetuned:
        sha256, file = 2 * self.key, None
        if made:
            sha256 = self._about(made)["sha256"]
            file = weights.find(self.at.store, sha256)
        name = f"finetuned {self.how.short()}"
        if self.how.refit and self.sides == (TRAIN,):  # it only judges
            name += " on train"
        named = Weights(name=name, sha256=sha256, file=file)
        encoder = self.encoder.model_copy(update={"weights": named})
        return Finetuned(encoder, Artifact(self.kind, self.key, self.key))

    def write(self, folder: Path) -> str:
        """Train, and keep what was learned."""
        # torch and scikit-learn are imported only when there is something to learn
        from tl_pipeline.finetuning import network, training  # noqa: PLC0415

        fits.check(self._rows, self.manifest.dataset)
        if self.expected and self.sides == (TRAIN,):
            notice(self.expected.sentence)
        self._scratch.mkdir(parents=True, exist_ok=True)
        classes = sorted(self._rows.classes)
        held = self._held_out(classes)
        head = self._first_head(len(classes), held)
        model = network.Classifier(self.encoder, head, self.how)
        prefix, frozen = None, None
        if model.frozen and not self.how.augmented:
            prefix = model.divided()
            frozen = _ONCE if prefix else _EACH.format(self.encoder.backbone)
        images, watched = self._images(prefix, classes)
        mirror, why = self._mirror(images)
        total = self.how.epochs * len(self._rows)
        with track(self.title, total) as progress:
            trained = training.train(
                model,
                self.how,
                images.part(~held),
                {"validation": watched} if watched else {},
                mirror=mirror,
                seed=self.seed,
                checkpoint=self._scratch / ("tail.pt" if prefix else "checkpoint.pt"),
                done=progress.advance,
                told=lambda curve: notice(epoch_line(curve, self.how.epochs)),
                held=images.part(held) if held.any() else None,
            )
        said = "; ".join(filter(None, (why, frozen)))
        self._keep(folder, model.weights(), model.linear(), classes, trained, said)
        return self.key

    def _keep(
        self,
        folder: Path,
        state: "Mapping[str, Any]",
        head: "LinearHead",
        classes: list[str],
        trained: "Trained",
        said: str,
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
        tables.write(SEEN, pa.table({"image_id": self._rows.ids}), folder)
        about = {
            "sha256": sha256,
            "classes": classes,
            "mirroring": said,
            "mix": trained.mix,
            "images_per_second": round(trained.images_per_second, 1),
        }
        (folder / ABOUT).write_text(json.dumps(about, indent=1, ensure_ascii=False))

    def _told(self, made: Artifact) -> str:
        about = self._about(made)
        said = about["mirroring"]
        if about["mix"] is not None:
            said += f"; {about['mix']:.0%} of the trained weights".replace("%", " %")
        return f"{said}; {about['images_per_second']:,.0f} images/s"

    def _about(self, made: Artifact) -> dict[str, Any]:
        return json.loads((self.at.store.path(made) / ABOUT).read_text())

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
    def _encoded(self) -> EncodedImages:
        return self.manifest.encoded(self.embeddings)

    @cached_property
    def _rows(self) -> Rows:
        return self._encoded.learned(*self.sides)

    @cached_property
    def _watched(self) -> Rows:
        """The validation images."""
        return self._encoded.held_out(VALIDATION)

    @cached_property
    def _inputs(self) -> Path:
        """What both trainings of a run are given, of train and validation."""
        learned = self._encoded.learned(TRAIN).fingerprint
        of = (self.encoder.key, self.how.blocks, self.how.augmented, self.how.precision)
        found = digest({"of": of, "rows": (learned, self._watched.fingerprint)})
        return self.at.store.root / ".building" / f"inputs-{found}"

    def _images(
        self, prefix: "nn.Module | None", classes: list[str]
    ) -> "tuple[Images, Images | None]":
        """The images to learn from, and the validation images that are only watched."""
        from tl_pipeline.finetuning.training import Images  # noqa: PLC0415

        ids = sorted({*self._encoded.learned(TRAIN).ids, *self._watched.ids})
        uris = dict(tables.values(self.manifest.images, "image_id", "uri"))
        self._inputs.mkdir(parents=True, exist_ok=True)
        with self.at.store.lock(self._inputs.name, "another run that reads its images"):
            values = self._values([(one, uris[one]) for one in ids], prefix)
        number = {name: at for at, name in enumerate(classes)}

        def images(rows: Rows) -> Images:
            targets = np.array([number[label] for label in rows.labels.tolist()])
            at = np.searchsorted(ids, rows.ids)
            return Images(values, targets, at, self._weights(rows, targets))

        watched = None
        if VALIDATION not in self.sides:
            named = zip(self._watched.ids, self._watched.labels.tolist(), strict=True)
            if known := [one for one, label in named if label in number]:
                watched = images(self._watched.part(known))
        return images(self._rows), watched

    def _values(
        self, references: Sequence[ImageRef], prefix: "nn.Module | None"
    ) -> "torch.Tensor":
        """The pixels of images, or what ``prefix`` gives for them."""
        import torch  # noqa: PLC0415 - where there is something to learn

        from tl_pipeline.encoders.networks import input_shape  # noqa: PLC0415
        from tl_pipeline.finetuning import activations, pixels, training  # noqa: PLC0415
        from tl_pipeline.inputs.images import Preprocess  # noqa: PLC0415

        how, read = self.encoder.preprocess, open_source(self.dataset).read
        assert isinstance(how, Preprocess)  # noqa: S101 - checked by prepare
        if prefix is None:
            file = self._inputs / "pixels.npy"
            return torch.from_numpy(pixels.kept(file, references, read, how))
        with track(f"{self.title}: frozen blocks", len(references)) as progress:
            return activations.kept(
                self._inputs,
                references,
                partial(pixels.decoded, read=read, how=how),
                input_shape(how),
                prefix,
                training.precision(self.how),
                progress.advance,
            )

    def _weights(self, rows: Rows, targets: np.ndarray) -> np.ndarray | None:
        """How much the loss of each image counts, with mean 1; None if all the same."""
        from tl_pipeline.heads.estimators import balanced  # noqa: PLC0415 - sklearn

        given = np.ones(len(targets)) if rows.weights is None else rows.weights
        found = balanced(targets, given, self.how.class_weight)
        return None if (found == found[0]).all() else found / found.mean()

    def _held_out(self, classes: list[str]) -> np.ndarray:
        """Which images choose the mix of ``wise`` and teach nothing: bool (n,)."""
        from tl_pipeline.heads.folds import stratified_group_folds  # noqa: PLC0415

        if not self.how.wise:
            return np.zeros(len(self._rows), bool)
        targets = np.searchsorted(classes, self._rows.labels)
        groups = self._rows.groups if self._rows.grouped else None
        part = stratified_group_folds(targets, _PARTS, self.seed, groups)
        return part == 0

    def _first_head(self, classes: int, held: np.ndarray) -> "LinearHead":
        """What training begins with: fitted on embeddings of all but ``held``."""
        from tl_pipeline.finetuning.network import LinearHead  # noqa: PLC0415
        from tl_pipeline.heads import fitted  # noqa: PLC0415
        from tl_pipeline.heads.predictors import Linear  # noqa: PLC0415

        store, rows = self.at.store, self._rows
        if held.any():
            rows = rows.part(np.array(rows.ids)[~held])
        (made,) = fits.make(store, self.embeddings, rows, [_FIRST], self.seed)
        found = fitted.load(store.path(made)).predictor
        assert isinstance(found, Linear)  # noqa: S101 - logistic regression is
        coef, bias = found.coef, found.intercept
        if classes == 2:  # one row, positive for the second
            coef, bias = (np.concatenate([-v, v]) / 2 for v in (coef, bias))
        if self.how.start == "random":
            chance = np.random.default_rng(self.seed)
            coef, bias = chance.normal(0, 0.01, coef.shape), np.zeros_like(bias)
        parts = (coef, bias, found.mean, found.scale)
        return LinearHead(*(part.astype(np.float32) for part in parts))

    def _mirror(self, images: "Images") -> tuple[bool, str]:
        """Whether images are mirrored, and why, in words."""
        if self.how.augment == "none":
            return False, "not augmented"
        if self.dataset.mirror is not None:
            said = "mirrored" if self.dataset.mirror else "not mirrored"
            return self.dataset.mirror, f"{said}, as the catalogue says"
        from tl_pipeline.embedding.devices import devices  # noqa: PLC0415 - torch
        from tl_pipeline.embedding.forward import BATCH, Forward  # noqa: PLC0415
        from tl_pipeline.finetuning import mirroring  # noqa: PLC0415

        forward = Forward([self.encoder], devices()[0])
        size = BATCH[forward.device.type]

        def embed_mirrored(rows: np.ndarray) -> np.ndarray:
            turned = images.take(rows).numpy()[..., ::-1].transpose(0, 2, 3, 1)
            batch = np.ascontiguousarray(turned).transpose(0, 3, 1, 2)
            parts = range(0, len(rows), size)
            return np.concatenate([forward(batch[at : at + size])[0] for at in parts])

        found = concat.load(self.at.store, self.embeddings, self._rows.ids)
        groups = self._rows.groups if self._rows.grouped else None
        measured = mirroring.measure(
            found.vectors, images.targets, groups, embed_mirrored, self.seed
        )
        if measured is None:
            return False, "not mirrored: too few images to tell whether they may be"
        said = "mirrored" if measured.harmless else "not mirrored"
        return measured.harmless, (
            f"{said}: a linear head is right in {100 * measured.plain:.1f} % of "
            f"images, in {100 * measured.mirrored:.1f} % of them mirrored"
        )

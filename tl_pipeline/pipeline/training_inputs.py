"""What a network is fine-tuned from: its images, the head it begins with, a teacher.

Pixels, or what frozen blocks give for them, lie below ``.building`` in files that are
mapped, and that both trainings of a run read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.config.finetune_specs import FinetuneSpec
from tl_pipeline.config.specs import HeadConfig
from tl_pipeline.data.reading import ImageRef
from tl_pipeline.data.splits import TRAIN, VALIDATION
from tl_pipeline.encoders import concat
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.pipeline import fits
from tl_pipeline.pipeline.manifest import EncodedImages, Manifest, Rows
from tl_pipeline.pipeline.teachers import Teacher
from tl_pipeline.progress import track
from tl_pipeline.sources import open_source
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.keys import digest

if TYPE_CHECKING:
    import torch

    from tl_pipeline.finetuning.images import Images
    from tl_pipeline.finetuning.network import Classifier, LinearHead
    from tl_pipeline.finetuning.processes import Inputs

# The head that training begins with. A weaker penalty fits embeddings better and is a
# worse beginning: sure of its training images, it leaves the network little to learn.
_FIRST = HeadConfig(name="logistic", params={"C": 0.01})
# Of the images to learn from, so many parts, one of which chooses the mix of ``wise``.
_PARTS = 10
# What is said where blocks are frozen and images are not augmented.
_ONCE = "frozen blocks computed once"
_EACH = "frozen blocks computed in each epoch: {} cannot be cut after them"


class Prepared(NamedTuple):
    """All that a training takes.

    ``held`` choose the mix of ``wise``. ``message`` tells whether images are mirrored,
    and why, and how frozen blocks are computed; ``divided`` whether they are taken off.
    """

    network: "Classifier"
    inputs: "Inputs"
    held: "Images | None"
    mirror: bool
    message: str
    divided: bool


@dataclass(frozen=True)
class TrainingInputs:
    """What ``encoder`` is fine-tuned from, on images of ``splits``.

    ``embeddings`` are those of ``encoder``; ``title`` is shown while it is prepared.
    """

    store: Store
    dataset: DatasetSpec
    manifest: Manifest
    embeddings: Artifact
    encoder: Encoder
    how: FinetuneSpec
    seed: int
    splits: tuple[str, ...]
    teacher: Teacher | None
    title: str

    @cached_property
    def rows(self) -> Rows:
        """The images to learn from."""
        return self._encoded.learned(*self.splits)

    @cached_property
    def classes(self) -> list[str]:
        """Their labels, sorted."""
        return sorted(self.rows.classes)

    @cached_property
    def folder(self) -> Path:
        """Where the files lie that both trainings of a run read."""
        learned = self._encoded.learned(TRAIN).fingerprint
        of = (self.encoder.key, self.how.blocks, self.how.augmented, self.how.precision)
        found = digest({"of": of, "rows": (learned, self._validation.fingerprint)})
        return self.store.root / ".building" / f"inputs-{found}"

    def prepare(self) -> Prepared:
        """Read the images, fit the first head, ask the teacher.

        Raises:
            DatasetError: fewer than two classes; an image that was embedded is gone.
            MachineError: the disk has no room for what images give.
            WeightsError: see ``loading.load``.
        """
        # torch is imported only when there is something to learn
        from tl_pipeline.finetuning.network import Classifier, classifier  # noqa: PLC0415
        from tl_pipeline.finetuning.processes import Inputs  # noqa: PLC0415

        fits.check(self.rows, self.manifest.dataset)
        held = self._held_out()
        head = self._first_head(held)
        network = Classifier(self.encoder, head, self.how)
        once = bool(network.frozen) and not self.how.augmented
        opened = self._values(network, once=once)
        divided = network.is_divided
        images, validation = self._images(opened())
        mirror, message = self._mirror(images)
        if once:
            frozen = _ONCE if divided else _EACH.format(self.encoder.backbone)
            message = f"{message}; {frozen}"
        if self.teacher:
            message = f"{message}; taught by {self.teacher.label}"
        build = partial(classifier, self.encoder, head, self.how, divided=divided)
        inputs = Inputs(build, opened, images.part(~held), validation)
        part = images.part(held) if held.any() else None
        return Prepared(network, inputs, part, mirror, message, divided)

    @cached_property
    def _encoded(self) -> EncodedImages:
        return self.manifest.encoded(self.embeddings)

    @cached_property
    def _validation(self) -> Rows:
        """The validation images."""
        return self._encoded.held_out(VALIDATION)

    @cached_property
    def _ids(self) -> list[str]:
        """Whose values lie in the files, in their order."""
        return sorted({*self._encoded.learned(TRAIN).ids, *self._validation.ids})

    def _images(self, values: "torch.Tensor") -> "tuple[Images, Images | None]":
        """The images to learn from, and those of validation where they only score."""
        images = self._of(values, self.rows)
        if self.teacher:
            found = self.teacher.probabilities(
                self.store, self.rows, self.classes, self.seed
            )
            images = replace(images, teacher=found)
        if VALIDATION in self.splits:
            return images, None
        named = zip(self._validation.ids, self._validation.labels.tolist(), strict=True)
        known = [one for one, label in named if label in self.rows.classes]
        rows = self._validation.part(known)
        return images, self._of(values, rows) if known else None

    def _of(self, values: "torch.Tensor", rows: Rows) -> "Images":
        from tl_pipeline.finetuning.images import Images  # noqa: PLC0415 - torch

        targets = np.searchsorted(self.classes, rows.labels)
        at = np.searchsorted(self._ids, rows.ids)
        return Images(values, targets, at, self._weights(rows, targets))

    def _values(
        self, network: "Classifier", *, once: bool
    ) -> "Callable[[], torch.Tensor]":
        """Opens the pixels of images; or what frozen blocks give, computed ``once``.

        ``network`` is divided then, if it can be.
        """
        from tl_pipeline.encoders.networks import input_shape  # noqa: PLC0415 - torch
        from tl_pipeline.finetuning import activations, computing, pixels  # noqa: PLC0415
        from tl_pipeline.finetuning.images import of_pixels  # noqa: PLC0415
        from tl_pipeline.inputs.images import Preprocess  # noqa: PLC0415

        uris = dict(tables.values(self.manifest.images, "image_id", "uri"))
        references: Sequence[ImageRef] = [(one, uris[one]) for one in self._ids]
        how, read = self.encoder.preprocess, open_source(self.dataset).read
        assert isinstance(how, Preprocess)  # noqa: S101 - checked by prepare
        prefix = network.divided() if once else None
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.store.lock(self.folder.name, "another run that reads its images"):
            if prefix is None:
                file = self.folder / "pixels.npy"
                pixels.keep(file, references, read, how)
                return partial(of_pixels, file)
            title = f"{self.title}: frozen blocks"
            with track(title, len(references)) as progress:
                return activations.keep(
                    self.folder,
                    references,
                    partial(pixels.decoded, read=read, how=how),
                    input_shape(how),
                    prefix,
                    computing.precision(self.how),
                    progress.advance,
                ).opened

    def _weights(self, rows: Rows, targets: np.ndarray) -> np.ndarray | None:
        """How much the loss of each image counts, with mean 1; None if all the same."""
        from tl_pipeline.heads.estimators import balanced  # noqa: PLC0415 - sklearn

        given = np.ones(len(targets)) if rows.weights is None else rows.weights
        found = balanced(targets, given, self.how.class_weight)
        return None if (found == found[0]).all() else found / found.mean()

    def _held_out(self) -> np.ndarray:
        """Which images choose the mix of ``wise`` and teach nothing: bool (n,)."""
        from tl_pipeline.heads.folds import stratified_group_folds  # noqa: PLC0415

        if not self.how.wise:
            return np.zeros(len(self.rows), bool)
        targets = np.searchsorted(self.classes, self.rows.labels)
        groups = self.rows.groups if self.rows.grouped else None
        part = stratified_group_folds(targets, _PARTS, self.seed, groups)
        return part == 0

    def _first_head(self, held: np.ndarray) -> "LinearHead":
        """What training begins with: fitted on embeddings of all but ``held``."""
        from tl_pipeline.finetuning.network import LinearHead  # noqa: PLC0415
        from tl_pipeline.heads import fitted  # noqa: PLC0415
        from tl_pipeline.heads.predictors import Linear  # noqa: PLC0415

        rows = self.rows
        if held.any():
            rows = rows.part(np.array(rows.ids)[~held])
        (made,) = fits.make(self.store, self.embeddings, rows, [_FIRST], self.seed)
        found = fitted.load(self.store.path(made)).predictor
        assert isinstance(found, Linear)  # noqa: S101 - logistic regression is
        coef, bias = found.coef, found.intercept
        if len(self.classes) == 2:  # one row, positive for the second
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
            mirrored = "mirrored" if self.dataset.mirror else "not mirrored"
            return self.dataset.mirror, f"{mirrored}, as the catalogue says"
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

        found = concat.load(self.store, self.embeddings, self.rows.ids)
        groups = self.rows.groups if self.rows.grouped else None
        measured = mirroring.measure(
            found.vectors, images.targets, groups, embed_mirrored, self.seed
        )
        if measured is None:
            return False, "not mirrored: too few images to tell whether they may be"
        mirrored = "mirrored" if measured.harmless else "not mirrored"
        return measured.harmless, (
            f"{mirrored}: a linear head is right in {100 * measured.plain:.1f} % of "
            f"images, in {100 * measured.mirrored:.1f} % of them mirrored"
        )

"""Trials as artifacts: how a configuration does on images that it did not learn from.

``trials/<key>/`` (TRIAL) is one configuration that learned from one set of rows, a
cached unit of its own, whoever asks for it: training, or few-shot learning.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tl_pipeline import heads
from tl_pipeline.config.specs import HeadConfig
from tl_pipeline.encoders import concat
from tl_pipeline.errors import DatasetError
from tl_pipeline.evaluation.averaging import Predictions, aligned
from tl_pipeline.pipeline import fits
from tl_pipeline.pipeline.manifest import Rows
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.keys import KeyDocument, digest, key_document
from tl_pipeline.store.tables import TRIAL

if TYPE_CHECKING:
    from tl_pipeline.heads.cross_validation import FoldPredictions, FoldScore

# Bump when the same inputs must give other scores.
VERSION = 2
# What a configuration says of each fold, once it was tried.
Seen = Callable[[HeadConfig, "list[FoldPredictions]"], None]


@dataclass(frozen=True)
class Trial:
    """One configuration, which learned from some of ``images``, and how it scored.

    Over all held-out rows, of which ``right`` (bool) tells; ``Trials.units_of`` what
    they belong to. ``deviation`` is that of the accuracy between ``folds``.
    """

    config: HeadConfig
    key: str
    images: int
    folds: int
    right: np.ndarray
    accuracy: float
    log_loss: float
    deviation: float | None

    @property
    def rows(self) -> int:
        """How many rows scored it."""
        return len(self.right)

    @property
    def label(self) -> str:
        """The configuration as people read it."""
        return heads.label(self.config)


@dataclass(frozen=True)
class Trials:
    """The trials on the embeddings of one encoder, of images of ``dataset``.

    ``held`` are the images that score; without any, the images to learn from are
    divided into ``folds``: see ``heads.folds.divided``.
    """

    store: Store
    dataset: str
    embeddings: Artifact
    seed: int
    held: Rows | None
    folds: int | None

    def inputs(self, rows: Rows, head: str) -> dict[str, str]:
        """The fingerprints of what a trial of ``head`` on ``rows`` depends on."""
        found = {"encoder": self.embeddings.key, **fits.inputs(rows, head)}
        if self.held:
            found["validation rows"] = self.held.fingerprint
        elif rows.groups_fingerprint:  # by which folds are divided
            found["groups"] = rows.groups_fingerprint
        return found

    def missing(self, configs: Sequence[HeadConfig], rows: Rows) -> int:
        """How many of ``configs`` were not tried on ``rows``."""
        keys = [digest(self._document(config, rows)) for config in configs]
        return sum(self.store.find("trials", key) is None for key in keys)

    def of(
        self,
        configs: Sequence[HeadConfig],
        rows: Rows,
        seen: Seen = lambda config, found: None,  # noqa: ARG005
    ) -> list[Trial]:
        """``configs`` on ``rows``; what was not tried is tried, then ``seen`` is told.

        Raises:
            DatasetError: fewer than two classes have an embedded training image, or no
                class has two that could be divided.
            InvalidSpec: images have weights, and a head cannot take them.
        """
        documents = [self._document(config, rows) for config in configs]
        due = [
            at
            for at, document in enumerate(documents)
            if self.store.find("trials", digest(document)) is None
        ]
        if due:
            for at, found in self._try([configs[at] for at in due], rows):
                scores = [one.score() for one in found]
                self.store.build("trials", documents[due[at]], partial(_write, scores))
                seen(configs[due[at]], found)
        return [
            self._read(config, len(rows), digest(document))
            for config, document in zip(configs, documents, strict=True)
        ]

    def units_of(self, rows: Rows) -> np.ndarray:
        """What the rows of ``Trial.right`` belong to, numbers (n,), after ``rows``."""
        if self.held:
            return self.held.groups
        part = self._divided(rows)
        return np.concatenate(
            [rows.groups[part == n] for n in np.unique(part[part >= 0])]
        )

    def predict(self, config: HeadConfig, rows: Rows) -> "list[FoldPredictions]":
        """What ``config`` says of each fold, tried again whether or not it was.

        Raises:
            DatasetError, InvalidSpec: see ``of``.
        """
        ((_, found),) = self._try([config], rows)
        return found

    def together(self, found: "Sequence[FoldPredictions]", rows: Rows) -> Predictions:
        """The predictions of all folds of a trial on ``rows``, by image id."""
        scored = self.held or rows
        numbers = np.concatenate([one.rows for one in found])
        classes = sorted({name for one in found for name in one.classes.tolist()})
        probabilities = np.concatenate(
            [aligned(one.probabilities, one.classes.tolist(), classes) for one in found]
        )
        order = np.argsort(numbers)  # ids are sorted
        ids, labels = (pa.array(v) for v in (scored.ids, scored.labels.tolist()))
        at = pa.array(numbers[order])
        return Predictions(ids.take(at), labels.take(at), classes, probabilities[order])

    def _divided(self, rows: Rows) -> np.ndarray:
        """The fold of each of ``rows``, (n,); -1 where it is never left out."""
        # scikit-learn is imported only when there is something to divide
        from tl_pipeline.heads.folds import divided  # noqa: PLC0415

        targets = np.unique(rows.labels, return_inverse=True)[1]
        groups = rows.groups if rows.grouped else None
        return divided(targets, self.folds, self.seed, groups)

    def _document(self, config: HeadConfig, rows: Rows) -> KeyDocument:
        params = {"head": config.name, **config.params, "seed": self.seed}
        how = {} if self.held else {"folds": self.folds or "by rows"}
        return key_document(
            "trial", VERSION, {**params, **how}, self.inputs(rows, config.name)
        )

    def _try(
        self, configs: Sequence[HeadConfig], learned: Rows
    ) -> "Iterator[tuple[int, list[FoldPredictions]]]":
        # scikit-learn is imported only when there is something to try
        from tl_pipeline.heads import cross_validation, grids  # noqa: PLC0415

        fits.check(learned, self.dataset)
        load = partial(concat.load, self.store, self.embeddings)
        vectors = load(learned.ids)
        there = learned.aligned(vectors.image_ids)
        groups = there.groups if there.grouped else None
        rows = grids.LabelledRows(
            vectors.vectors, there.labels, there.weights, groups, vectors.places
        )
        if self.held:
            found = load(self.held.ids)
            names = self.held.aligned(found.image_ids).labels
            held = grids.LabelledRows(found.vectors, names)
            yield from cross_validation.held_out(configs, self.seed, rows, held)
            return
        try:
            part = self._divided(there)
            yield from cross_validation.cross_validated(configs, self.seed, rows, part)
        except ValueError as error:
            raise DatasetError(
                f"{self.dataset} cannot be cross-validated: {error}; use "
                "--search validation"
            ) from None

    def _read(self, config: HeadConfig, images: int, key: str) -> Trial:
        place = self.store.path(Artifact("trials", key, key))
        found = tables.read(TRIAL, place).to_pydict()
        rows, accuracy = found["rows"], np.array(found["accuracy"])
        return Trial(
            config=config,
            key=key,
            images=images,
            folds=len(rows),
            right=np.concatenate([np.array(one, bool) for one in found["right"]]),
            accuracy=float(np.average(accuracy, weights=rows)),
            log_loss=float(np.average(found["log_loss"], weights=rows)),
            deviation=float(accuracy.std(ddof=1)) if len(rows) > 1 else None,
        )


def _write(scores: "Sequence[FoldScore]", folder: Path) -> None:
    rows = [
        {
            "fold": score.fold,
            "rows": len(score.right),
            "accuracy": score.accuracy,
            "log_loss": score.log_loss,
            "right": score.right.tolist(),
        }
        for score in scores
    ]
    tables.write(TRIAL, tables.from_rows(TRIAL, rows), folder)

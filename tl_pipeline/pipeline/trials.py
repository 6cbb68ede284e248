"""Trials as artifacts: how a configuration does on images that it did not learn from.

``trials/<key>/`` (TRIAL) is one configuration that learned from one set of rows, a
cached unit of its own, whoever asks for it: a search, or few-shot learning.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tl_pipeline import heads
from tl_pipeline.config.specs import HeadConfig
from tl_pipeline.encoders import concat
from tl_pipeline.errors import DatasetError
from tl_pipeline.pipeline import fits
from tl_pipeline.pipeline.labels import TrainingRows
from tl_pipeline.runs.planning import Context
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact
from tl_pipeline.store.keys import KeyDocument, digest, key_document
from tl_pipeline.store.tables import TRIAL

if TYPE_CHECKING:
    from tl_pipeline.heads.trials import Score

# Bump when the same inputs must give other scores.
VERSION = 1


@dataclass(frozen=True)
class Trial:
    """One configuration, which learned from some of ``images``, and how it scored.

    Over all held-out ``rows``; ``deviation`` is that of the accuracy between ``folds``.
    """

    config: HeadConfig
    key: str
    images: int
    folds: int
    rows: int
    accuracy: float
    log_loss: float
    deviation: float | None

    @property
    def label(self) -> str:
        """The configuration as people read it."""
        return heads.label(self.config)


@dataclass(frozen=True)
class Trials:
    """The trials on the embeddings of one encoder.

    ``held`` are the labels of the images that score; without any, the images to learn
    from are divided into ``folds``.
    """

    context: Context
    embeddings: Artifact
    held: dict[str, str]
    folds: int

    def inputs(self, rows: TrainingRows) -> dict[str, str]:
        """The fingerprints of what a trial on ``rows`` depends on."""
        found = {"encoder": self.embeddings.key, "training rows": rows.fingerprint}
        if self.held:
            found["validation rows"] = digest(sorted(self.held.items()))
        if rows.groups:  # by which folds are dealt
            found["groups"] = digest(sorted(rows.groups.items()))
        return found

    def missing(self, configs: Sequence[HeadConfig], rows: TrainingRows) -> int:
        """How many of ``configs`` were not tried on ``rows``."""
        keys = [digest(self._document(config, rows)) for config in configs]
        return sum(self.context.store.find("trials", key) is None for key in keys)

    def of(
        self,
        configs: Sequence[HeadConfig],
        rows: TrainingRows,
        done: Callable[[], None] = lambda: None,
    ) -> list[Trial]:
        """``configs`` on ``rows``; what was not tried is tried, then ``done`` called.

        Raises:
            DatasetError: fewer than two classes have an embedded training image, or no
                class has two that could be divided.
            InvalidSpec: images have weights, and a head cannot take them.
        """
        store = self.context.store
        documents = [self._document(config, rows) for config in configs]
        due = [
            at
            for at, document in enumerate(documents)
            if store.find("trials", digest(document)) is None
        ]
        if due:
            for at, scores in self._try([configs[at] for at in due], rows):
                store.build("trials", documents[due[at]], partial(_write, scores))
                done()
        return [
            self._read(config, len(rows.labels), digest(document))
            for config, document in zip(configs, documents, strict=True)
        ]

    def _document(self, config: HeadConfig, rows: TrainingRows) -> KeyDocument:
        params = {"head": config.name, **config.params, "seed": self.context.seed}
        how = {} if self.held else {"folds": self.folds}
        return key_document("trial", VERSION, {**params, **how}, self.inputs(rows))

    def _try(
        self, configs: Sequence[HeadConfig], learned: TrainingRows
    ) -> "Iterator[tuple[int, list[Score]]]":
        # scikit-learn is imported only when there is something to try
        from tl_pipeline.heads import trials  # noqa: PLC0415
        from tl_pipeline.heads.grids import Rows  # noqa: PLC0415

        context = self.context
        fits.check(context, learned)
        load = partial(concat.load, context.store, self.embeddings)
        vectors = load(learned.labels)
        rows = Rows(vectors.vectors, *learned.columns(vectors.image_ids))
        if self.held:
            found = load(self.held)
            names = np.array([self.held[image_id] for image_id in found.image_ids])
            held = Rows(found.vectors, names)
            yield from trials.held_out(configs, context.seed, rows, held)
            return
        try:
            yield from trials.cross_validated(configs, context.seed, rows, self.folds)
        except ValueError as error:
            raise DatasetError(
                f"{context.dataset.name} cannot be cross-validated: {error}; use "
                "--search validation"
            ) from None

    def _read(self, config: HeadConfig, images: int, key: str) -> Trial:
        place = self.context.store.path(Artifact("trials", key, key))
        found = tables.read(TRIAL, place).to_pydict()
        rows, accuracy = found["rows"], np.array(found["accuracy"])
        return Trial(
            config=config,
            key=key,
            images=images,
            folds=len(rows),
            rows=sum(rows),
            accuracy=float(np.average(accuracy, weights=rows)),
            log_loss=float(np.average(found["log_loss"], weights=rows)),
            deviation=float(accuracy.std(ddof=1)) if len(rows) > 1 else None,
        )


def _write(scores: "Sequence[Score]", folder: Path) -> None:
    rows = [vars(score) for score in scores]
    tables.write(TRIAL, tables.from_rows(TRIAL, rows), folder)

"""Evaluate: one head's fitted grid, or search, x held-out rows -> metrics, predictions.

Reads the manifest, the embeddings and the fitted heads. Writes ``evaluations/<key>/``:
METRICS, PREDICTIONS, ``chosen.json`` (key of the chosen head, its classes) and
``calibration.json`` (its operating point). Every configuration is scored on validation,
the best one alone on test, once, after calibration. What a search has chosen, or what
is to learn from validation too before it meets test, is fitted here, as
``heads/<key>/`` like any other. What a search by cross-validation found of its choice
is carried over as the split FOLDS.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from tl_pipeline import heads
from tl_pipeline.config.specs import HeadConfig, HeadSpec, Method, SearchSpec
from tl_pipeline.data.splits import FOLDS, TEST, TRAIN, VALIDATION
from tl_pipeline.encoders import concat
from tl_pipeline.encoders.concat import AnyEncoder
from tl_pipeline.errors import DatasetError
from tl_pipeline.evaluation.averaging import aligned
from tl_pipeline.evaluation.scored_rows import metric_rows, prediction_rows
from tl_pipeline.pipeline import fits
from tl_pipeline.pipeline.manifest import EncodedImages, Manifest, Rows
from tl_pipeline.pipeline.stage import Unit
from tl_pipeline.pipeline.trials import Trials
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact
from tl_pipeline.store.keys import KeyDocument, digest, key_document
from tl_pipeline.store.tables import METRICS, PREDICTIONS

if TYPE_CHECKING:
    from tl_pipeline.evaluation.scoring import HeldOut

# Bump when the same inputs must give other rows.
VERSION = 2

CHOSEN = "chosen.json"
Row = dict[str, Any]


@dataclass(frozen=True)
class Evaluate(Unit[Artifact]):
    """The heads or the search that ``trained`` names, scored on held-out rows.

    Raises:
        DatasetError: no validation or no test image could be embedded.
    """

    stage: ClassVar[str] = "evaluate"
    kind: ClassVar[str] = "evaluations"
    label: ClassVar[str] = "evaluation"

    manifest: Manifest
    embeddings: Artifact
    trained: tuple[Artifact, ...]
    encoder: AnyEncoder
    head: HeadSpec
    search: SearchSpec
    seed: int
    calibration: Method
    error: float

    @property
    def subject(self) -> str:
        return f"{self.head.name} on {self.manifest.named(self.encoder.label)}"

    def depends_on(self) -> KeyDocument:
        validation, test = map(self._images.held_out, (VALIDATION, TEST))
        control = self.encoder.control or heads.HEADS[self.head.name].control
        params: dict[str, Any] = {
            "encoder": self.manifest.named(self.encoder.label),
            "family": self.head.name,
            "control": control or bool(self.manifest.control),
            "seed": self.seed,
            "calibration": self.calibration,
            "error": self.error,
        }
        inputs = {
            "encoder": self.embeddings.key,
            "heads": digest([artifact.fingerprint for artifact in self.trained]),
            "validation rows": validation.fingerprint,
            "test rows": test.fingerprint,
        }
        groups = [rows.groups_fingerprint for rows in (validation, test)]
        if any(groups):  # they count together in all intervals
            inputs["held-out groups"] = digest(groups)
        if self._cross_validated:
            rows = self._images.learned(TRAIN)
            inputs["rows of folds"] = _grouped_fingerprint(rows)
        if self.search.refit:
            rows = self._images.learned(TRAIN, VALIDATION)
            version = fits.version(self.head.name)
            inputs["refit"] = digest([version, fits.inputs(rows, self.head.name)])
        return key_document("evaluate", VERSION, params, inputs)

    def found(self, made: Artifact) -> str:
        return f"{len(self.trained)} scored already"

    def units(self, made: Artifact | None) -> int:
        return 0 if made else len(self.trained)

    def keys(self, made: Artifact) -> Mapping[str, str]:
        """The key of the chosen head, if it is none of those that were ``trained``."""
        about = json.loads((self.at.store.path(made) / CHOSEN).read_text())
        known = {artifact.key for artifact in self.trained}
        return {} if about["head"] in known else {"head": about["head"]}

    def output(self, made: Artifact | None) -> Artifact:
        return Artifact(self.kind, self.key, self.key)

    def write(self, folder: Path) -> str:
        """Choose on validation, look at test once."""
        # scikit-learn and scipy are imported only when there is something to score
        from tl_pipeline.evaluation.scoring import choose, learn, score, validate  # noqa: PLC0415
        from tl_pipeline.heads import fitted  # noqa: PLC0415

        store = self.at.store
        validation = self._held_out(VALIDATION)
        candidates = self._candidates()
        tried = [
            validate(
                fitted.load(store.path(artifact)),
                validation,
                self.calibration,
                self.seed,
            )
            for artifact in candidates
        ]
        chosen = choose(tried)
        point = learn(chosen, self.calibration, self.error)
        final = candidates[tried.index(chosen)]
        if self.search.refit:
            final = self._fit(chosen.head.config, TRAIN, VALIDATION)
        held_out = self._held_out(TEST)
        test = score(fitted.load(store.path(final)), held_out, point, self.seed)
        metrics = [
            row
            for scored in (*tried, test)
            for row in metric_rows(
                {
                    **self._about,
                    "head": heads.label(scored.head.config),
                    "chosen": scored.head.config == chosen.head.config,
                    "split": scored.rows.split,
                    "images": len(scored.rows.labels),
                },
                scored.scores,
            )
        ]
        if self._cross_validated:
            metrics += self._in_folds(chosen.head.config)
        # one order for both splits: after a refit the head may know more classes
        classes = test.head.classes
        rows = [
            prediction_rows(
                {"evaluation": self.key, "split": scored.rows.split},
                scored.rows.embeddings.image_ids,
                scored.rows.labels,
                self.manifest.rows_of(scored.rows.embeddings.image_ids).named,
                classes,
                aligned(scored.probabilities, scored.head.classes, classes),
                point,
            )
            for scored in (chosen, test)
        ]
        tables.write(METRICS, tables.from_rows(METRICS, metrics), folder)
        tables.write(PREDICTIONS, pa.concat_tables(rows), folder)
        about = json.dumps({"head": final.key, "classes": classes}, ensure_ascii=False)
        (folder / CHOSEN).write_text(about)
        point.write(folder)
        return self.key

    @cached_property
    def _images(self) -> EncodedImages:
        return self.manifest.encoded(self.embeddings)

    @property
    def _about(self) -> Row:
        """What all rows of METRICS tell."""
        return {
            "evaluation": self.key,
            "encoder_key": self.embeddings.key,
            "encoder": self.manifest.named(self.encoder.label),
            "family": self.head.name,
        }

    @property
    def _searched(self) -> bool:
        """Whether a search has chosen the configuration."""
        return self.trained[0].kind == "searches"

    @property
    def _cross_validated(self) -> bool:
        """Whether folds of train have chosen the configuration, and scored it."""
        return self._searched and self.search.select == "cross_validation"

    def _in_folds(self, config: HeadConfig) -> Iterator[Row]:
        """The rows of METRICS of what the search found of its choice, ``config``.

        A trial that is lost is made again.
        """
        from tl_pipeline.evaluation.metrics import fold_scores  # noqa: PLC0415 - scipy

        trials = Trials(
            self.at.store,
            self.manifest.dataset,
            self.embeddings,
            self.seed,
            None,
            self.search.folds,
        )
        rows = self._images.learned(TRAIN)
        (trial,) = trials.of([config], rows)
        about = {"head": trial.label, "chosen": True, "split": FOLDS}
        units = trials.units_of(rows)
        found = fold_scores(trial.right, trial.log_loss, units)
        return metric_rows({**self._about, **about, "images": trial.rows}, found)

    def _held_out(self, split: str) -> "HeldOut":
        from tl_pipeline.evaluation.scoring import HeldOut  # noqa: PLC0415

        rows = self._images.held_out(split)
        if not len(rows):
            raise DatasetError(
                f"{self.manifest.dataset}: no {split} image could be embedded; see the "
                "quarantine table"
            )
        found = concat.load(self.at.store, self.embeddings, rows.ids)
        rows = rows.aligned(found.image_ids)
        return HeldOut(split, found, rows.labels, rows.groups)

    def _candidates(self) -> list[Artifact]:
        """``trained``; or the one head that a search has chosen, fitted on train."""
        if not self._searched:
            return list(self.trained)
        text = (self.at.store.path(self.trained[0]) / CHOSEN).read_text()
        return [self._fit(HeadConfig.model_validate_json(text), TRAIN)]

    def _fit(self, config: HeadConfig, *sides: str) -> Artifact:
        """The head of ``config`` that learned from the splits ``sides``."""
        rows = self._images.learned(*sides)
        (made,) = fits.make(self.at.store, self.embeddings, rows, [config], self.seed)
        return made


def _grouped_fingerprint(rows: Rows) -> str:
    """Stands for the rows of folds, which are divided by groups."""
    groups = list(zip(rows.ids, rows.named, strict=True)) if rows.grouped else []
    return digest([rows.fingerprint, [pair for pair in groups if pair[1] is not None]])

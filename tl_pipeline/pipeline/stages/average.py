"""Average: evaluations of several heads -> one candidate, their mean probabilities.

Reads the evaluations, and the manifest for its groups. Writes ``evaluations/<key>/`` as
evaluate does: METRICS, PREDICTIONS, ``calibration.json`` and ``chosen.json``, which
names the members and how often each counts. Members are calibrated already; their mean
is once more, as it is less sure than they are.
Members are chosen on validation, which greedily chosen ones are not scored on for that:
see ``cross_fitting``. No head is fitted or asked again. An image that one of the
members (on validation one of those to choose from) has not scored is left out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import pyarrow as pa

from tl_pipeline.config.specs import Ensemble, Method
from tl_pipeline.data.splits import TEST, VALIDATION
from tl_pipeline.errors import DatasetError
from tl_pipeline.evaluation import scored_rows
from tl_pipeline.evaluation.averaging import Predictions, averaged, greedy, shared
from tl_pipeline.evaluation.scored_rows import (
    StoredEvaluation,
    metric_rows,
    prediction_rows,
)
from tl_pipeline.pipeline.manifest import Manifest, Rows
from tl_pipeline.pipeline.stage import Unit
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact
from tl_pipeline.store.keys import KeyDocument, digest, key_document
from tl_pipeline.store.tables import METRICS, PREDICTIONS

if TYPE_CHECKING:
    from tl_pipeline.evaluation.cross_fitting import Validated

# Bump when the same inputs must give other rows.
VERSION = 2
_HELD = (VALIDATION, TEST)
_SUBJECTS: dict[Ensemble, str] = {
    "average": "the best head of each encoder",
    "greedy": "heads chosen greedily",
}
_LABELS: dict[Ensemble, str] = {"average": "average", "greedy": "greedy average"}
# Of more encoders only the number is told; each has a row in the SQL table members.
_NAMED = 2


class _Chosen(NamedTuple):
    """How often each candidate counts, and what they say together of held-out rows.

    ``alone`` tells why the best was taken alone, where no more could be chosen.
    """

    times: list[int]
    validation: "Validated"
    alone: str | None = None

    @property
    def counts(self) -> list[int]:
        """Those of the members: of the candidates that count at all."""
        return [n for n in self.times if n]


class _Averaged(NamedTuple):
    """What was chosen, the members with their predictions, and their mean on test."""

    chosen: _Chosen
    members: list[StoredEvaluation]
    test: Predictions
    candidates: int


@dataclass(frozen=True)
class Average(Unit[Artifact]):
    """The mean of ``evaluations``; ``control`` tells what makes it a control.

    Raises:
        DatasetError: no image of a held-out split was scored by all candidates.
    """

    stage: ClassVar[str] = "average"
    kind: ClassVar[str] = "evaluations"
    label: ClassVar[str] = "evaluation"

    manifest: Manifest
    evaluations: tuple[Artifact, ...]
    ensemble: Ensemble
    seed: int
    calibration: Method
    error: float
    control: str = ""

    @property
    def subject(self) -> str:
        subject = _SUBJECTS[self.ensemble]
        return f"{subject} ({self.control})" if self.control else subject

    def depends_on(self) -> KeyDocument:
        heads = {artifact.fingerprint: None for artifact in self.evaluations}
        return key_document(
            "average",
            VERSION,
            {
                "family": self.ensemble,
                "control": bool(self.control),
                "seed": self.seed,
                "calibration": self.calibration,
                "error": self.error,
            },
            {"evaluations": digest(list(heads))},
        )

    def found(self, made: Artifact) -> str:
        about = self.at.store.provenance(made)
        said = f"{len(about['members'])} of {about['candidates']} heads"
        if about["alone"]:
            said += f": the best alone, as {about['alone']}"
        if about["left_out"]:
            said += (
                f"; {about['left_out']:,} images that not all of them scored left out"
            )
        return said

    def told(self, reason: str, made: Artifact) -> str:
        return f"{reason}: {self.found(made)}"

    def units(self, made: Artifact | None) -> int:
        return 0 if made else len(self.evaluations)

    def output(self, made: Artifact | None) -> Artifact:
        return Artifact(self.kind, self.key, self.key)

    def extra(self) -> Mapping[str, Any]:
        chosen, members, test, candidates = self._averaged
        every = set[str]().union(
            *(m.predictions[s].image_ids.to_pylist() for m in members for s in _HELD)
        )
        scored = len(chosen.validation.predictions.image_ids) + len(test.image_ids)
        return {
            "members": [
                {
                    "evaluation": member.evaluation.key,
                    "encoder": member.row["encoder"],
                    "head": member.row["head"],
                    "times": count,
                }
                for member, count in zip(members, chosen.counts, strict=True)
            ],
            "candidates": candidates,
            "left_out": len(every) - scored,
            "alone": chosen.alone,
        }

    def write(self, folder: Path) -> str:
        from tl_pipeline.evaluation.scoring import score_ensemble  # noqa: PLC0415 - scipy

        chosen, members, test, _ = self._averaged
        found = score_ensemble(
            chosen.validation,
            test,
            self._rows(test).groups,
            self.calibration,
            self.error,
            self.seed,
        )
        about = _about(self.key, self.ensemble, members)
        metrics = [
            row
            for split, mean in found.predictions.items()
            for row in metric_rows(
                about | {"split": split, "images": len(mean.image_ids)},
                found.scores[split],
            )
        ]
        tables.write(METRICS, tables.from_rows(METRICS, metrics), folder)
        rows = [
            prediction_rows(
                {"evaluation": self.key, "split": split},
                mean.image_ids,
                mean.labels,
                self._rows(mean).named,
                mean.classes,
                mean.probabilities,
                found.point,
            )
            for split, mean in found.predictions.items()
        ]
        tables.write(PREDICTIONS, pa.concat_tables(rows), folder)
        told = {
            "members": [
                {"evaluation": member.evaluation.key, "times": count}
                for member, count in zip(members, chosen.counts, strict=True)
            ],
            "classes": test.classes,
        }
        (folder / "chosen.json").write_text(json.dumps(told, ensure_ascii=False))
        found.point.write(folder)
        return self.key

    @cached_property
    def _averaged(self) -> _Averaged:
        """Members chosen on validation, and their mean."""
        found = [scored_rows.read(self.at.store, one) for one in self.evaluations]
        self._check(found)
        chosen = self._chosen(found)
        # a candidate that is no member may know classes that no member knows
        test = _mean(found, chosen.times, TEST).naming(
            chosen.validation.predictions.classes
        )
        members = [one for one, n in zip(found, chosen.times, strict=True) if n]
        return _Averaged(chosen, members, test, len(found))

    def _check(self, found: Sequence[StoredEvaluation]) -> None:
        for split in _HELD:
            if not len(shared([one.predictions[split] for one in found])):
                raise DatasetError(
                    f"{self.manifest.dataset}: no {split} image was scored by all "
                    "heads that may be averaged; the quarantine table tells what "
                    "encoders refused"
                )

    def _rows(self, predictions: Predictions) -> Rows:
        """The rows of the manifest that ``predictions`` are of."""
        return self.manifest.rows_of(predictions.image_ids.to_pylist())

    def _chosen(self, found: Sequence[StoredEvaluation]) -> _Chosen:
        """What of ``found`` is put together, and what it says of validation."""
        # scipy is imported only when there is something to choose
        from tl_pipeline.evaluation import cross_fitting  # noqa: PLC0415

        validation = [one.predictions[VALIDATION] for one in found]
        alone = None
        if self.ensemble == "greedy":
            ids = shared(validation)
            validation = [one.of(ids) for one in validation]
            groups = self._rows(validation[0]).groups
            alone = cross_fitting.shortage(groups)
            if not alone:
                crossed = cross_fitting.greedy(self.calibration, validation, groups)
                return _Chosen(greedy(validation), crossed)
        kinds = [self.ensemble if alone else one.row["encoder_key"] for one in found]
        times = _best(found, kinds)
        mean = _mean(found, times, VALIDATION)
        groups = self._rows(mean).groups
        fixed = cross_fitting.fixed(self.calibration, mean, groups)
        return _Chosen(times, fixed, alone)


def _best(found: Sequence[StoredEvaluation], kinds: Sequence[str]) -> list[int]:
    """1 for the best on validation of each of ``kinds``, 0 for others."""
    best: dict[str, StoredEvaluation] = {}
    for one, kind in zip(found, kinds, strict=True):
        known = best.setdefault(kind, one)
        if (one.accuracy, -one.log_loss) > (known.accuracy, -known.log_loss):
            best[kind] = one
    chosen = {one.evaluation.key for one in best.values()}
    return [int(one.evaluation.key in chosen) for one in found]


def _mean(
    found: Sequence[StoredEvaluation], times: Sequence[int], split: str
) -> Predictions:
    """Of those that count, for the images of ``split`` that all of them scored."""
    members = [one.predictions[split] for one, n in zip(found, times, strict=True) if n]
    return averaged(members, [n for n in times if n])


def _about(
    key: str, family: Ensemble, members: Sequence[StoredEvaluation]
) -> dict[str, Any]:
    """What all rows of METRICS tell."""
    encoders = list(dict.fromkeys(member.row["encoder"] for member in members))
    keys = list(dict.fromkeys(member.row["encoder_key"] for member in members))
    heads = "1 head" if len(members) == 1 else f"{len(members)} heads"
    return {
        "evaluation": key,
        "encoder_key": "+".join(keys),
        "encoder": ", ".join(encoders)
        if len(encoders) <= _NAMED
        else f"{len(encoders)} encoders",
        "family": family,
        "head": f"{_LABELS[family]} of {heads}",
        "chosen": True,
    }

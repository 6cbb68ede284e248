"""Average: evaluations of several heads -> one candidate, their mean probabilities.

Reads the evaluations, and the manifest for its groups. Writes ``evaluations/<key>/`` as
evaluate does; ``chosen.json`` names the members and how often each counts. Members are
calibrated already; their mean is once more, as it is less sure than they are.
Members are chosen on validation, which greedily chosen ones are not scored on for that:
see ``cross_fitting``. No head is fitted or asked again. An image that one of the
members (on validation one of those to choose from) has not scored is left out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from tl_pipeline.config.specs import Ensemble, Method
from tl_pipeline.data.splits import TEST
from tl_pipeline.errors import DatasetError
from tl_pipeline.evaluation import scored_rows
from tl_pipeline.evaluation.averaging import Predictions, averaged, greedy, shared
from tl_pipeline.evaluation.costs import Costs
from tl_pipeline.evaluation.scored_rows import StoredEvaluation
from tl_pipeline.pipeline.manifest import Manifest, Rows
from tl_pipeline.pipeline.stage import Unit
from tl_pipeline.store.artifacts import Artifact
from tl_pipeline.store.keys import KeyDocument, digest, key_document

if TYPE_CHECKING:
    from tl_pipeline.evaluation.cross_fitting import Validated

# Bump when the same inputs must give other rows.
VERSION = 6
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
    held_out: "Validated"
    split: str
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
    costs: Costs = field(default_factory=dict)

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
                **({"costs": self.costs} if self.costs else {}),
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
            *(
                said.image_ids.to_pylist()
                for member in members
                for said in (member.held_out, member.test)
            )
        )
        scored = len(chosen.held_out.predictions.image_ids) + len(test.image_ids)
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
        from tl_pipeline.evaluation.scoring import score  # noqa: PLC0415 - scipy

        chosen, members, test, _ = self._averaged
        found = score(
            chosen.split,
            chosen.held_out,
            test,
            self._rows(test).groups,
            self.calibration,
            self.error,
            self.seed,
            costs=self.costs,
        )
        about = _about(self.ensemble, members)
        scored_rows.write(self.key, about, found, self.manifest.groups_of, folder)
        told = {
            "members": [
                {"evaluation": member.evaluation.key, "times": count}
                for member, count in zip(members, chosen.counts, strict=True)
            ],
            "classes": test.classes,
        }
        (folder / "chosen.json").write_text(json.dumps(told, ensure_ascii=False))
        return self.key

    @cached_property
    def _averaged(self) -> _Averaged:
        """Members chosen on held-out images, and their mean."""
        found = [scored_rows.read(self.at.store, one) for one in self.evaluations]
        self._check(found)
        chosen = self._chosen(found)
        tested = [one.test for one in found]
        # a candidate that is no member may know classes that no member knows
        test = _mean(tested, chosen.times).naming(chosen.held_out.predictions.classes)
        members = [one for one, n in zip(found, chosen.times, strict=True) if n]
        return _Averaged(chosen, members, test, len(found))

    def _check(self, found: Sequence[StoredEvaluation]) -> None:
        for split in (found[0].split, TEST):
            said = [one.test if split == TEST else one.held_out for one in found]
            if not len(shared(said)):
                raise DatasetError(
                    f"{self.manifest.dataset}: no image of {split} was scored by all "
                    "heads that may be averaged; the quarantine table tells what "
                    "encoders refused"
                )

    def _rows(self, predictions: Predictions) -> Rows:
        """The rows of the manifest that ``predictions`` are of."""
        return self.manifest.rows_of(predictions.image_ids.to_pylist())

    def _chosen(self, found: Sequence[StoredEvaluation]) -> _Chosen:
        """What of ``found`` is put together, and what it says of held-out images."""
        # scipy is imported only when there is something to choose
        from tl_pipeline.evaluation import cross_fitting  # noqa: PLC0415

        held, split = [one.held_out for one in found], found[0].split
        alone = None
        if self.ensemble == "greedy":
            ids = shared(held)
            held = [one.of(ids) for one in held]
            groups = self._rows(held[0]).groups
            alone = cross_fitting.shortage(groups)
            if not alone:
                crossed = cross_fitting.greedy(self.calibration, held, groups)
                return _Chosen(greedy(held), crossed, split)
        kinds = [self.ensemble if alone else one.row["encoder_key"] for one in found]
        times = _best(found, kinds)
        mean = _mean(held, times)
        groups = self._rows(mean).groups
        fixed = cross_fitting.fixed(self.calibration, mean, groups)
        return _Chosen(times, fixed, split, alone)


def _best(found: Sequence[StoredEvaluation], kinds: Sequence[str]) -> list[int]:
    """1 for the best on held-out images of each of ``kinds``, 0 for others."""
    best: dict[str, StoredEvaluation] = {}
    for one, kind in zip(found, kinds, strict=True):
        known = best.setdefault(kind, one)
        if (one.accuracy, -one.log_loss) > (known.accuracy, -known.log_loss):
            best[kind] = one
    chosen = {one.evaluation.key for one in best.values()}
    return [int(one.evaluation.key in chosen) for one in found]


def _mean(said: Sequence[Predictions], times: Sequence[int]) -> Predictions:
    """Of those that count, for the images that all of them scored."""
    members = [one for one, n in zip(said, times, strict=True) if n]
    return averaged(members, [n for n in times if n])


def _about(family: Ensemble, members: Sequence[StoredEvaluation]) -> dict[str, Any]:
    """What all rows of METRICS tell."""
    encoders = list(dict.fromkeys(member.row["encoder"] for member in members))
    keys = list(dict.fromkeys(member.row["encoder_key"] for member in members))
    heads = "1 head" if len(members) == 1 else f"{len(members)} heads"
    return {
        "encoder_key": "+".join(keys),
        "encoder": ", ".join(encoders)
        if len(encoders) <= _NAMED
        else f"{len(encoders)} encoders",
        "family": family,
        "head": f"{_LABELS[family]} of {heads}",
    }

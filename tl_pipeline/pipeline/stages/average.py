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
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from tl_pipeline.config.specs import Ensemble
from tl_pipeline.data.splits import TEST, VALIDATION
from tl_pipeline.errors import DatasetError
from tl_pipeline.evaluation import scored_rows
from tl_pipeline.evaluation.averaging import Said, averaged, greedy, shared
from tl_pipeline.evaluation.scored_rows import Scored, metric_rows, predictions
from tl_pipeline.pipeline.labels import groups_of, units
from tl_pipeline.runs.planning import Context, Outcome, Step, why_not_cached
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
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
    """How often each candidate counts, and what they say together of validation.

    ``alone`` tells why the best was taken alone, where no more could be chosen.
    """

    times: list[int]
    validation: "Validated"
    alone: str | None = None

    @property
    def counts(self) -> list[int]:
        """Those of the members: of the candidates that count at all."""
        return [n for n in self.times if n]


def plan(
    context: Context,
    manifest: Artifact,  # noqa: ARG001 - the signature of run
    evaluations: Sequence[Artifact],
    ensemble: Ensemble,
) -> Outcome[Artifact]:
    """Look whether these heads were put together already."""
    started = time.perf_counter()
    document = _document(context, evaluations, ensemble)
    key, subject = digest(document), context.named(_SUBJECTS[ensemble])
    made = context.store.find("evaluations", key)
    if made:
        reason = _told(context.store, made)
    else:
        reason = why_not_cached(context, "evaluations", subject, "evaluation", document)
    step = Step(
        stage="average",
        subject=subject,
        cached=made is not None,
        reason=reason,
        keys={"evaluation": key},
        units=0 if made else len(evaluations),
        seconds=time.perf_counter() - started,
    )
    return Outcome(Artifact("evaluations", key, key), (step,))


def run(
    context: Context,
    manifest: Artifact,
    evaluations: Sequence[Artifact],
    ensemble: Ensemble,
) -> Outcome[Artifact]:
    """Choose members on validation, score their mean on validation and on test.

    Raises:
        DatasetError: no image of one of these splits was scored by all candidates.
    """
    started, planned = (
        time.perf_counter(),
        plan(context, manifest, evaluations, ensemble),
    )
    if planned.step.cached:
        return planned
    found = [scored_rows.read(context.store, evaluation) for evaluation in evaluations]
    _check(context, found)
    chosen = _chosen(context, found, ensemble, groups_of(context.store, manifest))
    validation = chosen.validation.said
    # a candidate that is no member may know classes that no member knows
    test = _mean(found, chosen.times, TEST).naming(validation.classes)
    members = [one for one, n in zip(found, chosen.times, strict=True) if n]
    every = set[str]().union(*(m.said[s].image_ids for m in members for s in _HELD))
    scored = len(validation.image_ids) + len(test.image_ids)
    extra = {
        "members": [
            {
                "evaluation": member.evaluation.key,
                "encoder": member.row["encoder"],
                "head": member.row["head"],
                "times": count,
            }
            for member, count in zip(members, chosen.counts, strict=True)
        ],
        "candidates": len(found),
        "left_out": len(every) - scored,
        "alone": chosen.alone,
    }
    document = _document(context, evaluations, ensemble)
    write = partial(_write, context, members, chosen, test, document)
    made = context.store.build("evaluations", document, write, extra)
    reason = f"{planned.step.reason}: {_told(context.store, made)}"
    return planned.ran(time.perf_counter() - started, reason=reason)


def _check(context: Context, found: Sequence[Scored]) -> None:
    for split in _HELD:
        if not len(shared([one.said[split] for one in found])):
            raise DatasetError(
                f"{context.dataset.name}: no {split} image was scored by all heads "
                "that may be averaged; the quarantine table tells what encoders "
                "refused"
            )


def _chosen(
    context: Context,
    found: Sequence[Scored],
    ensemble: Ensemble,
    groups: Mapping[str, str],
) -> _Chosen:
    """What of ``found`` is put together, and what it says of validation."""
    # scipy is imported only when there is something to choose
    from tl_pipeline.evaluation import cross_fitting  # noqa: PLC0415

    said = [one.said[VALIDATION] for one in found]
    ids, alone = shared(said), None
    if ensemble == "greedy":
        belongs = units(ids.tolist(), groups)
        alone = cross_fitting.shortage(belongs)
        if not alone:
            said = [one.of(ids) for one in said]
            crossed = cross_fitting.greedy(context.calibration, said, belongs)
            return _Chosen(greedy(said), crossed)
    times = _best(
        found, [ensemble if alone else one.row["encoder_key"] for one in found]
    )
    mean = _mean(found, times, VALIDATION)
    belongs = units(mean.image_ids.tolist(), groups)
    return _Chosen(
        times, cross_fitting.fixed(context.calibration, mean, belongs), alone
    )


def _best(found: Sequence[Scored], kinds: Sequence[str]) -> list[int]:
    """1 for the best on validation of each of ``kinds``, 0 for others."""
    best: dict[str, Scored] = {}
    for one, kind in zip(found, kinds, strict=True):
        known = best.setdefault(kind, one)
        if (one.accuracy, -one.log_loss) > (known.accuracy, -known.log_loss):
            best[kind] = one
    chosen = {one.evaluation.key for one in best.values()}
    return [int(one.evaluation.key in chosen) for one in found]


def _mean(found: Sequence[Scored], times: Sequence[int], split: str) -> Said:
    """Of those that count, for the images of ``split`` that all of them scored."""
    members = [one.said[split] for one, n in zip(found, times, strict=True) if n]
    return averaged(members, [n for n in times if n])


def _document(
    context: Context, evaluations: Sequence[Artifact], ensemble: Ensemble
) -> KeyDocument:
    heads = {artifact.fingerprint: None for artifact in evaluations}
    return key_document(
        "average",
        VERSION,
        {
            "family": ensemble,
            "control": bool(context.control),
            "seed": context.seed,
            "calibration": context.calibration,
            "error": context.error,
        },
        {"evaluations": digest(list(heads))},
    )


def _told(store: Store, made: Artifact) -> str:
    about = store.provenance(made)
    said = f"{len(about['members'])} of {about['candidates']} heads"
    if about["alone"]:
        said += f": the best alone, as {about['alone']}"
    if about["left_out"]:
        said += f"; {about['left_out']:,} images that not all of them scored left out"
    return said


def _write(
    context: Context,
    members: Sequence[Scored],
    chosen: _Chosen,
    test: Said,
    document: KeyDocument,
    folder: Path,
) -> str:
    from tl_pipeline.evaluation.scoring import score_mean  # noqa: PLC0415 - scipy

    found = score_mean(
        chosen.validation, test, context.calibration, context.error, context.seed
    )
    key = digest(document)
    about = _about(key, document["params"]["family"], members)
    metrics = [
        row
        for split, said in found.said.items()
        for row in metric_rows(
            about | {"split": split, "images": len(said.image_ids)}, found.scores[split]
        )
    ]
    tables.write(METRICS, tables.from_rows(METRICS, metrics), folder)
    rows = [
        predictions(
            {"evaluation": key, "split": split},
            said.image_ids.tolist(),
            said.labels,
            said.classes,
            said.probabilities,
            found.point,
        )
        for split, said in found.said.items()
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
    return key


def _about(key: str, family: Ensemble, members: Sequence[Scored]) -> dict[str, Any]:
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
